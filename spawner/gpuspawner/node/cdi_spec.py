"""Which GPUs the CDI specs of this machine name, and whether they fit it (Container Device Interface 0.8)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from .driver_files import spec_obstacle

NVIDIA_KIND = "nvidia.com/gpu"
DEFAULT_DIRS = ("/etc/cdi", "/var/run/cdi")
"""Where the engine looks by default (dockerd 28, `--cdi-spec-dir`)."""
_PATHS = {"deviceNodes": ("hostPath", "path"), "mounts": ("hostPath",), "hooks": ("path",)}
"""The kinds of `containerEdits` with a path of the host, and the keys that have it; the first one counts."""


@dataclass(frozen=True, slots=True)
class CdiSpecs:
    """Names of `nvidia.com/gpu` devices ("0", "GPU-…", "all"), and a sentence for each invalid spec.

    `obstacles`: why no container can start with a device, by its name, with the remedy.
    """

    devices: tuple[str, ...]
    problems: tuple[str, ...]
    obstacles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def read_specs(dirs: Iterable[str], module_version: str | None = None, root: Path = Path("/")) -> CdiSpecs:
    """Reads `*.json` and `*.yaml` in `dirs`, as the engine does. Missing folders count as empty. Blocks.

    A device in two folders has its spec from the later one (CDI 0.8, "Priority"). The paths that a spec needs
    are looked for below `root`.
    """
    obstacles: dict[str, str] = {}
    problems: list[str] = []
    for folder in dirs:
        for path in sorted(Path(folder).glob("*")):
            if path.suffix not in (".json", ".yaml"):
                continue
            try:
                seen = path.stat()
                for name, needed in _devices_in(path, seen.st_mtime_ns, seen.st_size):
                    obstacles[name] = spec_obstacle(str(path), needed, module_version, root)
            except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
                problems.append(f"{path} can't be read: {' '.join(str(error).split())}")
    found = {name: obstacle for name, obstacle in obstacles.items() if obstacle}
    return CdiSpecs(tuple(sorted(obstacles)), tuple(problems), found)


@lru_cache(maxsize=64)
def _devices_in(path: Path, mtime_ns: int, size: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The file's GPUs, as `_devices`. It is parsed again only if it has changed: that takes up to seconds.

    Raises OSError, and many errors for a file that is no spec; they aren't cached.
    """
    return tuple(_devices(_load(path)))


def _load(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def _devices(spec: Any) -> list[tuple[str, tuple[str, ...]]]:
    """The spec's GPUs, each with the paths that it needs on this machine. Raises ValueError."""
    if not isinstance(spec, dict) or not isinstance(spec.get("devices"), list):
        raise ValueError("it is not a CDI spec: `kind` or `devices` is missing")
    if spec.get("kind") != NVIDIA_KIND:
        return []
    common = tuple(_paths(spec.get("containerEdits")))
    return [
        (str(device["name"]), (*_paths(device.get("containerEdits")), *common))
        for device in spec["devices"]
        if isinstance(device, dict) and "name" in device
    ]


def _paths(edits: Any) -> Iterator[str]:
    """The host's paths in `containerEdits`: device nodes, mounts and hooks."""
    if not isinstance(edits, dict):
        return
    for kind, keys in _PATHS.items():
        for entry in edits.get(kind) or ():
            path = next((str(entry[key]) for key in keys if entry.get(key)), "")
            if path.startswith("/"):
                yield path
