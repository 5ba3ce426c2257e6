"""Writes docs/settings.md from the traits: `python docs/make_settings.py`."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from traitlets.config import Configurable

PAGE = Path(__file__).with_name("settings.md")
CONFIG = PAGE.parents[1] / "jupyterhub_config.py"

_HEAD = """\
# Settings

Hub and broker read them from one file, `jupyterhub_config.py`. This page is made from the code by
`python docs/make_settings.py`.

What is not here is a setting of [JupyterHub](https://jupyterhub.readthedocs.io/en/stable/reference/config-reference.html)
or of [DockerSpawner](https://jupyterhub-dockerspawner.readthedocs.io/en/stable/), whose settings apply to
`GpuDockerSpawner` as well.

## Environment

The `jupyterhub_config.py` of this repository takes from the environment what differs between
installations:

{environment}
"""


def documented_classes() -> list[type[Configurable]]:
    """The classes whose settings are ours, in the order of the page."""
    from gpuspawner.broker.app import GpuBroker
    from gpuspawner.config.lab import GpuLab
    from gpuspawner.config.site import GpuSite
    from gpuspawner.config.swarm import GpuSwarm
    from gpuspawner.hub.spawner import GpuDockerSpawner
    from gpuspawner.node.remote.agent_process import GpuAgent
    from gpuspawner.tools.cli import Command

    return [GpuSite, GpuLab, GpuSwarm, GpuDockerSpawner, GpuBroker, GpuAgent, Command]


def own_settings(cls: type[Configurable]) -> dict[str, Any]:
    """The configurable traits that `cls` adds or redefines, as they are written in our code."""
    ours = [each for each in cls.__mro__ if each.__module__.startswith("gpuspawner.")]
    names = [name for each in ours for name in each.class_own_traits(config=True) if name in vars(each)]
    traits = cls.class_traits(config=True)
    return {name: traits[name] for name in names}


def render(classes: list[type[Configurable]]) -> str:
    """The page as Markdown."""
    parts = [_HEAD.format(environment=_environment())]
    for cls in classes:
        parts.append(f"## {cls.__name__}\n\n{_first_paragraph(cls)}\n")
        for name, trait in own_settings(cls).items():
            parts.append(f"### c.{cls.__name__}.{name}\n\n{_markdown(trait.help)}\n")
    return "\n".join(parts)


def _environment() -> str:
    """The list of variables in the docstring of `jupyterhub_config.py`, as it stands there."""
    text = ast.get_docstring(ast.parse(CONFIG.read_text(encoding="utf-8"))) or ""
    return "\n".join(line for line in text.splitlines() if line.startswith("    "))


def _first_paragraph(cls: type[Configurable]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _markdown(text: str) -> str:
    return inspect.cleandoc(text).replace("::\n\n    ", ":\n\n    ")


if __name__ == "__main__":
    PAGE.write_text(render(documented_classes()), encoding="utf-8")
