"""What one lease uses now: the memory that counts against its quota, and how busy its GPU is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...core.model import Lease, Mode
from ...node.api import Usage


@dataclass(frozen=True, slots=True)
class Use:
    """`memory_bytes` counts against the lease's quota. None: NVML doesn't tell, or the GPU is simulated.

    `busy_percent` is the part of the time in which a program ran on the lease's GPUs: of a whole GPU it is
    the lease's own, of a shared one that of all who share it.
    """

    memory_bytes: int | None = None
    busy_percent: float | None = None


NOTHING_KNOWN = Use()


def use_of(lease: Lease, usage: Mapping[str, Usage]) -> Use:
    """Of all devices of the lease together: memory is summed up, `busy_percent` is the mean.

    Not for a lease in turns, whose device list is the pool's.
    """
    readings = [usage.get(uuid, Usage()) for uuid in lease.device_uuids]
    memory = [_memory(lease, reading) for reading in readings]
    busy = [reading.utilization_percent for reading in readings]
    total, percent = _sum(memory), _sum(busy)
    return Use(
        None if total is None else int(total),
        None if percent is None else percent / len(busy),
    )


def use_in_turns(memory_bytes: int, gpu_uuid: str | None, usage: Mapping[str, Usage]) -> Use:
    """Of a lease in turns: its memory, wherever it is, and how busy the GPU is that it has now."""
    if gpu_uuid is None:
        return Use(memory_bytes, 0.0)
    return Use(memory_bytes, usage.get(gpu_uuid, Usage()).utilization_percent)


def _memory(lease: Lease, reading: Usage) -> int | None:
    """Of a shared device, what the guard counts: the container's processes. Of a device of its own, all."""
    if lease.mode is Mode.SLICE:
        return reading.memory_bytes.get(str(lease.container_id))
    return reading.used_bytes


def _sum(values: Iterable[float | None]) -> float | None:
    """None if there is none, or if one isn't known."""
    known = list(values)
    there = [value for value in known if value is not None]
    return sum(there) if known and len(there) == len(known) else None
