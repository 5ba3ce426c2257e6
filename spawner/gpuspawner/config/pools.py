"""Converts `c.GpuSite.pools` to values and checks that each tier has a pool. Pure.

The broker checks what depends on the devices of the machine (`broker/decide/place/pooling.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import ConfigError
from ..core.model import Pool, Tier
from ..core.units import format_bytes, parse_bytes
from ..core.want import Mode, Want
from .nodes import parse_machine
from .tiers import NAME, parse_mode, parse_percent
from .turns import KEYS as TURN_KEYS
from .turns import parse_turns

MOST_SLICES = 48
"""The maximum number of clients of an MPS server on one device (CUDA MPS, r580, "Volta MPS")."""

_KEYS = {
    "name", "mode", "devices", "slices", "sizes", "compute_percent", "mps", "manage_compute_mode",
    "nodes", *TURN_KEYS,
}  # fmt: skip
_SLICE_KEYS = ("slices", "sizes", "compute_percent", "mps", "manage_compute_mode")


def parse_pools(raw: list[dict[str, Any]]) -> tuple[Pool, ...]:
    """Converts the pools' settings to values. Raises ConfigError with pool and key for an invalid setting."""
    pools = tuple(_parse_pool(item) for item in raw)
    names = [pool.name for pool in pools]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"c.GpuSite.pools has {twice[0]!r} twice: give each pool a different name")
    _check_devices(pools)
    return pools


def check_tiers(tiers: Sequence[Tier], pools: Sequence[Pool]) -> None:
    """Raises ConfigError for a tier that no pool could serve on any machine."""
    for tier in tiers:
        if tier.needs_gpu:
            _check_tier(tier, pools)


def _check_tier(tier: Tier, pools: Sequence[Pool]) -> None:
    where, want = f"c.GpuSite.tiers: tier {tier.name!r}", tier.want
    named = [pool for pool in pools if want.pool in (None, pool.name)]
    if want.pool is not None and not named:
        known = ", ".join(repr(pool.name) for pool in pools)
        has = f"has {known}" if known else "is not set"
        raise ConfigError(f"{where} names the pool {want.pool!r}: c.GpuSite.pools {has}")
    if not pools and want.mode not in (Mode.SLICE, Mode.TURNS):
        return  # without this setting there is one pool of whole GPUs and one of MIG instances
    serving = [pool for pool in named if pool.mode is want.mode]
    if not serving:
        what = (
            f"pool {want.pool!r} has mode {named[0].mode.value!r}" if want.pool else "no pool has that mode"
        )
        raise ConfigError(
            f"{where} has mode {want.mode.value!r}, but {what}: correct one of the two, or add a pool like "
            f"{_example(want.mode)} to c.GpuSite.pools"
        )
    obstacles = [_obstacle(want, pool) for pool in serving]
    if all(obstacles):
        raise ConfigError(f"{where}: {obstacles[0]}")


def _obstacle(want: Want, pool: Pool) -> str:
    """Why the pool can't serve the tier's want, with the remedy; "" if no reason is found here."""
    if pool.sizes_bytes and want.memory_bytes is None and len(pool.sizes_bytes) > 1:
        return f"memory is missing, and pool {pool.name!r} has several sizes: set memory to one of them"
    if pool.sizes_bytes and want.memory_bytes not in (None, *pool.sizes_bytes):
        return (
            f"memory is not one of the sizes of pool {pool.name!r}: add it to the sizes, or use one of them"
        )
    kept = None if pool.turns is None else pool.turns.sleep_memory_bytes
    if kept is not None and want.memory_bytes is not None and want.memory_bytes > kept:
        return (
            f"memory {format_bytes(want.memory_bytes)} is more than the sleep_memory of pool {pool.name!r} "
            f"({format_bytes(kept)}), the host memory to which it moves: raise sleep_memory, or lower memory"
        )
    if want.compute_percent is not None and pool.mps is False:
        return (
            f"compute_percent can't be enforced: pool {pool.name!r} has MPS switched off. "
            "Remove compute_percent, or mps"
        )
    if want.compute_percent is not None and want.compute_percent > (pool.compute_percent or 100):
        return (
            f"compute_percent {want.compute_percent:g} is more than the {pool.compute_percent:g} of pool "
            f"{pool.name!r}: raise the pool's (the MPS daemon's limit), or lower the tier's"
        )
    return ""


def _example(mode: Mode) -> str:
    slices = ', "slices": 8' if mode is Mode.SLICE else ""
    return f'{{"name": "{mode.value}", "mode": "{mode.value}"{slices}}}'


def _parse_pool(raw: dict[str, Any]) -> Pool:
    name = raw.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"c.GpuSite.pools: name {name!r} can't be used: use lower-case letters, digits, '-', '_'"
        )
    where = f"c.GpuSite.pools: pool {name!r}"
    unknown = sorted(set(raw) - _KEYS)
    if unknown:
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}: use {', '.join(sorted(_KEYS))}")
    mode = parse_mode(raw.get("mode", Mode.WHOLE), where)
    uuids, model, count = _parse_devices(raw.get("devices", "all"), where)
    for key in _SLICE_KEYS:
        if raw.get(key) and mode is not Mode.SLICE:
            raise ConfigError(f"{where}: {key} is only for mode 'slice': remove it, or set the mode")
    for key in TURN_KEYS:
        if raw.get(key) is not None and mode is not Mode.TURNS:
            raise ConfigError(f"{where}: {key} is only for mode 'turns': remove it, or set the mode")
    mps, manage = raw.get("mps"), raw.get("manage_compute_mode", False)
    if mps not in (None, True, False) or manage not in (True, False):
        raise ConfigError(f"{where}: mps and manage_compute_mode are True or False")
    pool = Pool(
        name=name,
        mode=mode,
        uuids=uuids,
        model=model,
        count=count,
        slices=_parse_slices(raw.get("slices"), where),
        sizes_bytes=_parse_sizes(raw.get("sizes"), where),
        compute_percent=parse_percent(raw.get("compute_percent"), where),
        mps=mps,
        manage_compute_mode=manage,
        turns=parse_turns(raw, where) if mode is Mode.TURNS else None,
        nodes=_parse_nodes(raw.get("nodes"), where),
    )
    if mode is Mode.SLICE:
        _check_slices(pool, where)
    return pool


def _check_slices(pool: Pool, where: str) -> None:
    if (pool.slices is None) == (not pool.sizes_bytes):
        raise ConfigError(
            f'{where}: give either the number of equal slices of a device, "slices": 8, or '
            'the sizes they may have, "sizes": ["8G", "16G"]'
        )
    if pool.mps is False and pool.compute_percent is not None:
        raise ConfigError(
            f"{where}: compute_percent can't be enforced if mps is False: remove one of the two"
        )
    if pool.mps is False and pool.manage_compute_mode:
        raise ConfigError(
            f"{where}: manage_compute_mode lets only MPS reach the GPU, but mps is False: remove one of the "
            "two"
        )


def _parse_devices(value: object, where: str) -> tuple[tuple[str, ...], str | None, int | None]:
    """UUIDs, model and count of `devices`."""
    if value == "all":
        return (), None, None
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) and each for each in value):
        if len(set(value)) < len(value):
            raise ConfigError(f"{where}: devices has a UUID twice: list each UUID once")
        return tuple(value), None, None
    if isinstance(value, dict) and value and set(value) <= {"model", "count"}:
        model, count = value.get("model"), value.get("count")
        good_model = model is None or (isinstance(model, str) and model)
        good_count = count is None or (isinstance(count, int) and not isinstance(count, bool) and count > 0)
        if good_model and good_count:
            return (), model, count
    raise ConfigError(
        f'{where}: devices is {value!r}: give "all", a list of UUIDs (`nvidia-smi -L` shows them), or '
        '{"model": "H100", "count": 2}'
    )


def _parse_nodes(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not value:
        raise ConfigError(f'{where}: nodes is {value!r}: give a list of machines, like ["gpu-b"]')
    return tuple(dict.fromkeys(parse_machine(each, f"{where}: nodes") for each in value))


def _parse_slices(value: object, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SLICES:
        raise ConfigError(f"{where}: slices is {value!r}: give a whole number from 1 to {MOST_SLICES}")
    return value


def _parse_sizes(value: object, where: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not value:
        raise ConfigError(f'{where}: sizes is {value!r}: give a list like ["8G", "16G"]')
    return tuple(sorted({parse_bytes(each, f"{where}: sizes") for each in value}))


def _check_devices(pools: Sequence[Pool]) -> None:
    """Raises ConfigError if a device is in two pools, as far as the settings alone show it."""
    owner: dict[str, str] = {}
    everything: list[Pool] = []
    for pool in pools:
        for uuid in pool.uuids:
            if uuid in owner:
                raise ConfigError(
                    f"c.GpuSite.pools: {uuid} is in pool {owner[uuid]!r} and in pool {pool.name!r}: a device "
                    "is in one pool only, name it once"
                )
            owner[uuid] = pool.name
        if not pool.takes_all:
            continue
        other = next((each for each in everything if _overlap(each, pool)), None)
        if other is not None:
            raise ConfigError(
                f"c.GpuSite.pools: pools {other.name!r} and {pool.name!r} both take all devices: a "
                'device is in one pool only, give one of them a list of UUIDs or {"model": …, "count": …}'
            )
        everything.append(pool)


def _overlap(one: Pool, other: Pool) -> bool:
    """Whether both may have the same device, as far as machines and MIG decide that."""
    if (one.mode is Mode.MIG) != (other.mode is Mode.MIG):
        return False
    return not one.nodes or not other.nodes or not set(one.nodes).isdisjoint(other.nodes)
