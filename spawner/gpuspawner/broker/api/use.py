"""What each lease uses of its devices now, from the readings of the devices. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...core.model import Lease, LeaseState
from ...core.want import Mode
from ...node.api import Usage
from .roster import LeaseUse


def use_of(
    leases: Iterable[Lease], usage: Mapping[str, Usage], slices: Mapping[str, int]
) -> dict[str, LeaseUse]:
    """By lease id. Who has a device alone uses what is used of it; of a slice, `slices` tells its memory.

    Compute is the mean over the devices. What somebody asleep or waiting uses is not known here.
    """
    return {
        lease.id: _slice(lease, slices) if lease.mode is Mode.SLICE else _whole(lease, usage)
        for lease in leases
        if lease.state is LeaseState.RUNNING and lease.mode is not Mode.TURNS
    }


def _slice(lease: Lease, slices: Mapping[str, int]) -> LeaseUse:
    return LeaseUse(slices.get(lease.id))


def _whole(lease: Lease, usage: Mapping[str, Usage]) -> LeaseUse:
    each = [usage.get(uuid, Usage()) for uuid in lease.device_uuids]
    used = [one.used_bytes for one in each if one.used_bytes is not None]
    busy = [one.utilization_percent for one in each if one.utilization_percent is not None]
    complete = bool(each) and len(used) == len(each)
    return LeaseUse(sum(used) if complete else None, sum(busy) / len(busy) if busy else None)
