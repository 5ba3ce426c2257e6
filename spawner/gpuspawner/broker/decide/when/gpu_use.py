"""When a lease last used its GPUs, from what the node can tell. Pure.

The node tells for each device which containers used it. Use by somebody whom it can't tell, and a device that
doesn't answer, count for every lease on the device: what isn't known is not taken for idle. Where NVML has no
use by process, the device's own utilization counts for all on it. MIG instances and simulated GPUs have
neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ....core.model import Device, Lease
from ....node.api import Usage


@dataclass(frozen=True, slots=True)
class GpuUse:
    """`used_at`: the last use that is known, None if none is. `measured` False: some of it can't be known."""

    measured: bool
    used_at: datetime | None = None


def gpu_use(lease: Lease, devices: Mapping[str, Device], usage: Mapping[str, Usage], now: datetime) -> GpuUse:
    """Of all devices of the lease together; the maps are by UUID."""
    each = [_on_device(lease, devices.get(uuid), usage.get(uuid), now) for uuid in lease.device_uuids]
    used = [use.used_at for use in each if use.used_at is not None]
    return GpuUse(bool(each) and all(use.measured for use in each), max(used, default=None))


def _on_device(lease: Lease, device: Device | None, usage: Usage | None, now: datetime) -> GpuUse:
    if device is not None and (device.simulated or device.is_mig):
        return GpuUse(False)
    if usage is None:  # it doesn't answer, or was not read yet
        return GpuUse(True, now)
    if usage.users is not None:
        known = (usage.users.last_used.get(str(lease.container_id)), usage.users.unknown_at)
        return GpuUse(True, max((at for at in known if at is not None), default=None))
    if usage.utilization_percent is None:
        return GpuUse(False)
    return GpuUse(True, now if usage.utilization_percent else None)
