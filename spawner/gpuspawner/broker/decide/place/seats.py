"""How many leases a pool of turns admits: as many as host memory can hold when all of them are asleep. Pure.

What sleeps lies in host memory, beside the labs themselves. So it is counted before anybody is admitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ....core.errors import ConfigError
from ....core.model import Device, Mode, Pool, Tier
from ....core.turn import TurnSettings
from ....core.units import format_bytes
from .host import Host
from .sharing_rules import TURN_RESERVE_BYTES

Members = Sequence[tuple[Pool, list[Device]]]
MEMORY_PART = 0.9
"""The part of the machine's main memory that labs and what sleeps may take together."""
LAB_BYTES = 4 << 30
"""What the lab of a tier without `mem_limit` is counted with."""
SIMULATED_SEATS = 8
"""For each simulated GPU, where the pool sets none: nothing of it ever sleeps."""


def with_seats(
    taken: Members, tiers: Sequence[Tier], host: Host, warnings: list[str]
) -> list[tuple[Pool, list[Device]]]:
    """The pools with their devices; those of turns with the seats and the sleeping memory that apply here.

    Raises ConfigError, with the line to change, for a pool that can't work or that this machine can't keep.
    """
    left = None if host.memory_bytes is None else int(host.memory_bytes * MEMORY_PART)
    found = []
    for pool, members in sorted(taken, key=lambda each: each[0].turns is None or each[0].turns.seats is None):
        if pool.turns is None or not members:
            found.append((pool, members))
            continue
        _check_devices(pool, members, host)
        size = _sleep_memory_bytes(pool, pool.turns, tiers, members)
        settings = replace(pool.turns, sleep_memory_bytes=size)
        each_bytes = size + _lab_bytes(pool, tiers)
        if host.simulated:
            seats = settings.seats or SIMULATED_SEATS * len(members)
        else:
            seats = _seats(pool, settings, each_bytes, left)
            left = None if left is None else left - seats * size
            if left is not None and settings.seats and left < seats * (each_bytes - size):
                warnings.append(
                    f"c.GpuSite.pools: pool {pool.name!r}: if all {seats} sleep, their labs have "
                    f"{format_bytes(max(0, left))} of main memory: lower seats, sleep_memory or mem_limit"
                )
        found.append((replace(pool, turns=replace(settings, seats=seats)), members))
    order = {pool.name: number for number, (pool, _) in enumerate(taken)}
    return sorted(found, key=lambda each: order[each[0].name])


def _seats(pool: Pool, settings: TurnSettings, each_bytes: int, left: int | None) -> int:
    where, size = f"c.GpuSite.pools: pool {pool.name!r}", settings.sleep_memory_bytes or 0
    if settings.seats is None:
        if left is None:
            raise ConfigError(
                f"{where}: seats is missing, and this machine doesn't say how much memory it has: set seats"
            )
        seats = left // each_bytes
        if not seats:
            raise ConfigError(
                f"{where}: this machine has too little main memory to keep one lease asleep: "
                f"{format_bytes(each_bytes)} for the lab and what sleeps, of {format_bytes(max(0, left))}. "
                "Lower sleep_memory and the tiers' memory, or use mode 'whole' or 'slice'"
            )
        return seats
    if left is not None and settings.seats * size > left:
        raise ConfigError(
            f"{where}: {settings.seats} seats with a sleep_memory of {format_bytes(size)} are more than the "
            f"{format_bytes(max(0, left))} of main memory that this machine can give: set seats to "
            f"{max(0, left) // size} or less, or lower sleep_memory"
        )
    return settings.seats


def _check_devices(pool: Pool, members: Sequence[Device], host: Host) -> None:
    where = f"c.GpuSite.pools: pool {pool.name!r}"
    if host.turns_obstacle and not host.simulated:
        raise ConfigError(f"{where} has mode 'turns': {host.turns_obstacle}")
    if len(members) > 1 and not host.turns_move:
        raise ConfigError(
            f"{where} has {len(members)} GPUs in turns, but this driver can't wake a program on another GPU: "
            'install driver 580 or newer, or make a pool of each GPU ("devices": ["<UUID>"])'
        )
    kinds = {(device.model, device.memory_bytes) for device in members}
    if len(kinds) > 1:
        names = ", ".join(sorted(f"{model} with {format_bytes(size)}" for model, size in kinds))
        raise ConfigError(
            f"{where}: GPUs in turns must be of one type, since programs move between them, but there are "
            f'{names}: choose some with "devices": {{"model": …}}, or make a pool of each'
        )
    if members[0].memory_bytes <= TURN_RESERVE_BYTES:
        raise ConfigError(
            f"{where}: {members[0].uuid} has {format_bytes(members[0].memory_bytes)}, too little for turns"
        )


def _sleep_memory_bytes(
    pool: Pool, settings: TurnSettings, tiers: Sequence[Tier], members: Sequence[Device]
) -> int:
    """What is kept for each lease: as the pool says, else the largest promise of its tiers."""
    if settings.sleep_memory_bytes is not None:
        return settings.sleep_memory_bytes
    usable = members[0].memory_bytes - TURN_RESERVE_BYTES
    promises = [tier.want.memory_bytes or usable for tier in _served(pool, tiers)]
    return max(promises, default=usable)


def _lab_bytes(pool: Pool, tiers: Sequence[Tier]) -> int:
    return max((tier.mem_limit_bytes or LAB_BYTES for tier in _served(pool, tiers)), default=LAB_BYTES)


def _served(pool: Pool, tiers: Sequence[Tier]) -> list[Tier]:
    return [tier for tier in tiers if tier.want.mode is Mode.TURNS and tier.want.pool in (None, pool.name)]
