"""`gpuspawner translate-profiles FILE`: reads KubeSpawner's profiles and prints tiers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from traitlets import Bool
from traitlets.config import Application, Config
from traitlets.config.loader import PyFileConfigLoader

from .. import __version__
from ..core.errors import ConfigError
from .profiles import Defaults, Translation, render, translate


class TranslateProfiles(Application):
    """Translates KubeSpawner's profile_list to tiers: prints the settings, and lists what it left out.

    FILE is a jupyterhub_config.py with c.KubeSpawner.profile_list (it is run, as a hub would run it), or a
    YAML file: zero-to-jupyterhub's values with singleuser.profileList, or the list alone. The exit status is
    0 if everything was translated, 1 if something was left out, 2 if the file can't be read.
    """

    name = "gpuspawner-translate-profiles"
    description = __doc__
    version = __version__
    examples = "gpuspawner translate-profiles values.yaml > tiers.py"
    flags = {  # noqa: RUF012 - traitlets reads it as a plain class attribute
        "json": ({"TranslateProfiles": {"as_json": True}}, "print JSON instead of Python")
    }
    exit_status = 0

    as_json = Bool(
        False,
        help="""
        Print JSON instead of Python, with what was left out under `left`.

        Default: off. Example: `gpuspawner translate-profiles values.yaml --json`
        """,
    ).tag(config=True)

    def start(self) -> None:
        """Prints the settings to stdout, and to stderr a line for each thing that was left out."""
        try:
            if len(self.extra_args) != 1:
                raise ConfigError("give one file: gpuspawner translate-profiles FILE")
            path = Path(self.extra_args[0])
            translation = translate(*read(path))
        except ConfigError as error:
            self.exit_status = 2
            print(f"gpuspawner translate-profiles: {error}", file=sys.stderr)
            return
        self.exit_status = 1 if translation.left else 0
        print(_as_json(translation) if self.as_json else render(translation, path.name), end="")
        if translation.left:
            print("\nNot translated:", file=sys.stderr)
        for each in translation.left:
            print(f"  {each}", file=sys.stderr)


def read(path: Path) -> tuple[Any, Defaults]:
    """The profiles of a file and what stands beside them. Raises ConfigError, with the remedy."""
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}")
    if path.suffix == ".py":
        return _of_python(path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return _of_yaml(document)


def _of_python(path: Path) -> tuple[Any, Defaults]:
    """A hub's config file. It is code, and may fail in any way."""
    try:
        config = PyFileConfigLoader(path.name, path=str(path.resolve().parent)).load_config()
    except Exception as error:
        raise ConfigError(f"{path} failed with {error!r}: run it where its imports are installed") from error
    settings = dict(config.get("Spawner", Config())) | dict(config.get("KubeSpawner", Config()))
    if "profile_list" not in settings:
        raise ConfigError(f"{path} doesn't set c.KubeSpawner.profile_list")
    return settings["profile_list"], Defaults(
        image=str(settings.get("image") or settings.get("image_spec") or ""),
        mem_limit=settings.get("mem_limit"),
        cpu_limit=settings.get("cpu_limit"),
        resource_limits=settings.get("extra_resource_limits") or {},
    )


def _of_yaml(document: Any) -> tuple[Any, Defaults]:
    """The list alone, zero-to-jupyterhub's values, or values of a chart that contains them."""
    if isinstance(document, list):
        return document, Defaults()
    values = _part(document)
    if isinstance(values.get("jupyterhub"), Mapping):
        values = _part(values["jupyterhub"])
    user = _part(values.get("singleuser"))
    profiles = user.get("profileList") or values.get("profileList")
    if not profiles:
        raise ConfigError("it has no singleuser.profileList: give zero-to-jupyterhub's values, or the list")
    image = _part(user.get("image"))
    name, tag = image.get("name"), image.get("tag")
    return profiles, Defaults(
        image=f"{name}:{tag}" if name and tag else str(name or ""),
        mem_limit=_part(user.get("memory")).get("limit"),
        cpu_limit=_part(user.get("cpu")).get("limit"),
        resource_limits=_part(_part(user.get("extraResource")).get("limits")),
    )


def _part(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _as_json(translation: Translation) -> str:
    document = {
        **{key: value for key, value in asdict(translation.defaults).items() if key != "resource_limits"},
        "tiers": list(translation.tiers),
        "allowed_images": dict(translation.images),
        "left": [str(each) for each in translation.left],
    }
    return json.dumps(document, indent=1) + "\n"
