"""Snapshots of the allocator's state, which don't change when memory changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...core.decision import Drain
from ...core.model import Device, DeviceHealth, Lease
from .line.estimate import Estimate
from .place.sharing_rules import WHOLE, SharingRules


@dataclass(frozen=True, slots=True)
class Capacity:
    """Devices, or slices, that suit a request.

    `free` may be leased now; `total` counts the healthy ones, leased or not; `waiting` is how many requests
    wait for any of them.
    """

    free: int
    total: int
    waiting: int


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device, its health, who holds a share of it, how its pool shares it, and whether it is drained."""

    device: Device
    health: DeviceHealth
    holders: tuple[Lease, ...]
    terms: SharingRules = WHOLE
    drain: Drain | None = None


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A waiting lease and its place: `position` from 1 among the `waiting` that compete with it.

    `wait` is when it is likely served; None if that isn't known.
    """

    lease: Lease
    position: int
    waiting: int
    wait: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment: devices by index, leases and queue in the order of arrival."""

    devices: tuple[DeviceView, ...]
    leases: tuple[Lease, ...]
    queue: tuple[QueueEntry, ...]


class Change(NamedTuple):
    """News of one lease; `position` and `waiting` are None unless it waits.

    `obstacle` says why the healthy devices can't serve it at all; "" if they can. `wait` is when it is likely
    served; None if that isn't known.
    """

    lease: Lease
    position: int | None
    waiting: int | None
    obstacle: str = ""
    wait: Estimate | None = None
