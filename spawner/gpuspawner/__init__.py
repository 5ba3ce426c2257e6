"""gpuspawner: a GPU quota that holds, for every notebook user of a JupyterHub on plain Docker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traitlets.config import Config

    from .hub.spawner import GpuDockerSpawner

__all__ = ["HUB_TEMPLATES", "GpuDockerSpawner", "__version__", "check_settings"]
__version__ = "0.1.0"
HUB_TEMPLATES = str(Path(__file__).parent / "hub" / "templates" / "pages")
"""Our versions of JupyterHub's pages, for `c.JupyterHub.template_paths`."""


def check_settings(config: Config) -> None:
    """The last line of a `jupyterhub_config.py`: a setting that can't be used keeps the hub from starting.

    Raises TraitError, with the remedy, where the file is read by JupyterHub. Broker and commands, which read
    the same file, check what they use.
    """
    app = sys.modules.get("jupyterhub.app")
    if app is None or not app.JupyterHub.initialized():
        return
    from .hub.check import check_spawner

    check_spawner(config)


def __getattr__(name: str) -> Any:
    # Imported on first use: broker and CLI need no hub in their process.
    if name == "GpuDockerSpawner":
        from .hub.spawner import GpuDockerSpawner

        return GpuDockerSpawner
    raise AttributeError(name)
