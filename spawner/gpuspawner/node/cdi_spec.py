"""Which GPUs the CDI specs of this machine name (Container Device Interface 0.8)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

NVIDIA_KIND = "nvidia.com/gpu"
DEFAULT_DIRS = ("/etc/cdi", "/var/run/cdi")
"""Where the engine looks by default (dockerd 28, `--cdi-spec-dir`)."""


@dataclass(frozen=True, slots=True)
class CdiSpecs:
    """Names of `nvidia.com/gpu` devices ("0", "GPU-…", "all"), and a sentence for each invalid spec."""

    devices: tuple[str, ...]
    problems: tuple[str, ...]


def read_specs(dirs: Iterable[str]) -> CdiSpecs:
    """Reads `*.json` and `*.yaml` in `dirs`, as the engine does. Missing folders count as empty. Blocks."""
    names: set[str] = set()
    problems: list[str] = []
    for folder in dirs:
        for path in sorted(Path(folder).glob("*")):
            if path.suffix not in (".json", ".yaml"):
                continue
            try:
                names.update(_names(_load(path)))
            except (OSError, ValueError, yaml.YAMLError) as error:
                problems.append(f"{path} can't be read: {' '.join(str(error).split())}")
    return CdiSpecs(tuple(sorted(names)), tuple(problems))


def _load(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def _names(spec: Any) -> Iterable[str]:
    if not isinstance(spec, dict) or not isinstance(spec.get("devices"), list):
        raise ValueError("it is not a CDI spec: `kind` or `devices` is missing")
    if spec.get("kind") != NVIDIA_KIND:
        return ()
    return [
        str(device["name"]) for device in spec["devices"] if isinstance(device, dict) and "name" in device
    ]
