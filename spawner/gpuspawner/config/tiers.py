"""Converts `c.GpuSite.tiers` to values, or raises ConfigError with the remedy. Pure."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from typing import Any

from ..core.errors import ConfigError
from ..core.image_reference import parse_pinned
from ..core.model import Tier
from ..core.units import format_bytes, parse_bytes
from ..core.want import Mode, Want

DEFAULT_TIERS: list[dict[str, Any]] = [
    {
        "name": "cpu",
        "title": "CPU",
        "description": "Write code and run small tests. No GPU.",
    },
    {
        "name": "gpu",
        "title": "One GPU",
        "description": "A whole GPU that only you use.",
        "devices": 1,
    },
]

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")
"""Valid names of tiers and pools."""
PROFILE = re.compile(r"^(\d+c\.)?\d+g\.\d+gb(\+\w+(\.\w+)*)?$")
"""A MIG profile as nvidia-smi names it: "1g.10gb", "1c.3g.20gb", "1g.10gb+me"."""

_KEYS = {
    "name", "title", "description", "devices", "model", "mode", "image", "mem_limit", "cpu_limit",
    "memory", "compute_percent", "mig_profile", "pool", "shm", "pids", "cpu_shares", "default",
    "queue_timeout", "node_label",
}  # fmt: skip
_ONLY_IN = {
    "memory": (Mode.SLICE, Mode.TURNS),
    "compute_percent": (Mode.SLICE,),
    "mig_profile": (Mode.MIG,),
}


def parse_tiers(raw: list[dict[str, Any]]) -> tuple[Tier, ...]:
    """Converts the tiers' settings to values. Raises ConfigError with tier and key for an invalid setting."""
    if not raw:
        raise ConfigError(
            "c.GpuSite.tiers is empty: give at least one tier, or remove the setting to use the default"
        )
    tiers = tuple(_parse_tier(item) for item in raw)
    names = [tier.name for tier in tiers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"c.GpuSite.tiers has {twice[0]!r} twice: give each tier a different name")
    defaults = [tier.name for tier in tiers if tier.default]
    if len(defaults) > 1:
        raise ConfigError(
            f"c.GpuSite.tiers: {defaults[0]!r} and {defaults[1]!r} are both the default: choose one"
        )
    return tiers


def parse_mode(value: object, where: str) -> Mode:
    """The mode named by `value`. Raises ConfigError for an unknown one."""
    try:
        return Mode(str(value))
    except ValueError:
        raise ConfigError(f"{where}: mode is {value!r}: use 'whole', 'slice', 'mig' or 'turns'") from None


def parse_percent(value: object, where: str) -> float | None:
    """A whole percentage from 1 to 100; None stays None. Raises ConfigError.

    The MPS control daemon accepts only whole numbers (CUDA MPS, `set_default_active_thread_percentage`).
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 100 or value % 1:
        raise ConfigError(f"{where}: compute_percent is {value!r}: give a whole number from 1 to 100")
    return float(value)


def _parse_tier(raw: dict[str, Any]) -> Tier:
    name = raw.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"c.GpuSite.tiers: name {name!r} can't be used: use lower-case letters, digits, '-', '_'"
        )
    where = f"c.GpuSite.tiers: tier {name!r}"
    unknown = sorted(set(raw) - _KEYS)
    if unknown:
        close = get_close_matches(unknown[0], _KEYS, 1) or [", ".join(sorted(_KEYS))]
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}: use {close[0]}")
    mode = parse_mode(raw.get("mode", Mode.WHOLE), where)
    _check_keys_of_mode(raw, mode, where)
    cpu_limit = raw.get("cpu_limit")
    if cpu_limit is not None and (not isinstance(cpu_limit, int | float) or cpu_limit <= 0):
        raise ConfigError(f"{where}: cpu_limit is {cpu_limit!r}: give a number of cores, like 2 or 0.5")
    return Tier(
        name=name,
        title=str(raw.get("title") or name),
        description=str(raw.get("description", "")),
        want=_parse_want(raw, mode, where),
        image=_parse_image(raw, where),
        mem_limit_bytes=_parse_size(raw, "mem_limit", where),
        cpu_limit=None if cpu_limit is None else float(cpu_limit),
        queue_timeout_seconds=_parse_seconds(raw, "queue_timeout", where),
        shm_bytes=_parse_shm(raw, where),
        pids=_parse_whole(raw, "pids", (64, 4_194_304), where),
        cpu_shares=_parse_whole(raw, "cpu_shares", (2, 262_144), where),
        default=_parse_default(raw, where),
    )


def _parse_seconds(raw: dict[str, Any], key: str, where: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
        raise ConfigError(f"{where}: {key} is {value!r}: give a number of seconds, 1 or more, like 1800")
    return float(value)


def _parse_want(raw: dict[str, Any], mode: Mode, where: str) -> Want:
    return Want(
        device_count=_parse_count(raw, mode, where),
        model=str(raw["model"]) if raw.get("model") else None,
        mode=mode,
        pool=raw.get("pool"),
        mig_profile=raw.get("mig_profile"),
        memory_bytes=_parse_size(raw, "memory", where),
        compute_percent=parse_percent(raw.get("compute_percent"), where),
        node_label=_parse_label(raw, where),
    )


def _parse_label(raw: dict[str, Any], where: str) -> str | None:
    label = raw.get("node_label")
    if label is not None and not (isinstance(label, str) and NAME.fullmatch(label)):
        raise ConfigError(f"{where}: node_label is {label!r}: give a label of c.GpuSite.node_labels")
    return label


def _check_keys_of_mode(raw: dict[str, Any], mode: Mode, where: str) -> None:
    for key, needed in _ONLY_IN.items():
        if raw.get(key) is not None and mode not in needed:
            names = " or ".join(repr(each.value) for each in needed)
            raise ConfigError(
                f"{where}: {key} is only for mode {names}, but the tier's mode is {mode.value!r}: "
                f'add "mode": "{needed[0].value}", or remove {key}'
            )
    profile = raw.get("mig_profile")
    if profile is not None and not (isinstance(profile, str) and PROFILE.fullmatch(profile)):
        raise ConfigError(f'{where}: mig_profile is {profile!r}: write it as `nvidia-smi -L` does, "1g.10gb"')
    pool = raw.get("pool")
    if pool is not None and not (isinstance(pool, str) and NAME.fullmatch(pool)):
        raise ConfigError(f"{where}: pool is {pool!r}: give the name of a pool of c.GpuSite.pools")


def _parse_count(raw: dict[str, Any], mode: Mode, where: str) -> int:
    devices = raw.get("devices", 0 if mode is Mode.WHOLE else 1)
    if not isinstance(devices, int) or isinstance(devices, bool) or not 0 <= devices <= 64:
        raise ConfigError(f"{where}: devices is {devices!r}: give a whole number from 0 (CPU) to 64")
    if mode is Mode.SLICE and devices != 1:
        # One MPS daemon serves one GPU, and a process can reach one daemon only.
        raise ConfigError(f"{where}: devices is {devices}: a slice is part of one device, remove devices")
    if mode is Mode.TURNS and devices != 1:
        raise ConfigError(f"{where}: devices is {devices}: a turn is on one GPU at a time, remove devices")
    if mode is Mode.MIG and devices == 0:
        raise ConfigError(f"{where}: devices is 0: a CPU tier has no mode, remove mode")
    if raw.get("pool") is not None and devices == 0:
        raise ConfigError(f'{where}: it has a pool but no devices: add "devices": 1, or remove pool')
    if raw.get("node_label") is not None and devices == 0:
        raise ConfigError(
            f'{where}: it has a node_label but no devices: add "devices": 1, or remove node_label'
        )
    return devices


def _parse_image(raw: dict[str, Any], where: str) -> str | None:
    image = raw.get("image")
    if not image:
        return None
    try:
        parse_pinned(image)
    except ValueError as problem:
        raise ConfigError(
            f'{where}: image is {image!r}: {problem}. Write it like "gpuspawner/lab-torch:0.1.0"'
        ) from None
    return str(image)


def _parse_size(raw: dict[str, Any], key: str, where: str) -> int | None:
    value = raw.get(key)
    return None if value is None else parse_bytes(value, f"{where}: {key}")


def _parse_shm(raw: dict[str, Any], where: str) -> int | None:
    """The size of /dev/shm. Its files count towards the memory limit, so it can't be larger than that."""
    size, memory = _parse_size(raw, "shm", where), _parse_size(raw, "mem_limit", where)
    if size is not None and memory is not None and size > memory:
        raise ConfigError(
            f"{where}: shm is {format_bytes(size)}, more than the mem_limit that includes it "
            f"({format_bytes(memory)}): make shm smaller or mem_limit larger"
        )
    return size


def _parse_whole(raw: dict[str, Any], key: str, between: tuple[int, int], where: str) -> int | None:
    """A whole number within Docker's bounds. Raises ConfigError."""
    value, (least, most) = raw.get(key), between
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{where}: {key} is {value!r}: give a whole number from {least} to {most}")
    return value


def _parse_default(raw: dict[str, Any], where: str) -> bool:
    value = raw.get("default", False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: default is {value!r}: set it to True for the tier that is preselected")
    return value
