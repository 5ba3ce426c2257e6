"""Snapshots of the allocator's state, which don't change when memory changes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from ...core.decision import Drain
from ...core.model import Device, DeviceHealth, Lease
from .line.estimate import Estimate
from .place.sharing_rules import WHOLE, SharingRules
from .turn_waits import HeldUp
from .turns import Turn


@dataclass(frozen=True, slots=True)
class Capacity:
    """Devices, or slices, that suit a request.

    `free` may be leased now; `total` counts the healthy ones, leased or not; `waiting` is how many requests
    wait for any of them. `drained` devices are in neither: an admin lets nothing new onto them.
    """

    free: int
    total: int
    waiting: int
    drained: int = 0


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device, its health, who holds a share of it, how its pool shares it, and whether it is drained.

    `node` is its machine, for people: "" where there is only one, or where it isn't known.
    """

    device: Device
    health: DeviceHealth
    holders: tuple[Lease, ...]
    terms: SharingRules = WHOLE
    drain: Drain | None = None
    node: str = ""

    @property
    def number(self) -> str:
        """What people call it: "#0", of several machines "#0 of b"."""
        device = self.device
        number = device.uuid if device.index is None else f"#{device.index}"
        return f"{number} of {self.node}" if self.node else number

    @property
    def name(self) -> str:
        """With its model: "H100 80GB #0"."""
        where = f" of {self.node}" if self.node else ""
        return (
            f"{self.device.model}{where}"
            if self.device.index is None
            else f"{self.device.model} {self.number}"
        )


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
class TurnView:
    """Where a lease in turns is, for people.

    `memory_bytes` is what it has on the GPU, or in host memory while it is asleep. `moves`: it is being
    paused, moved or woken now. `position`: its place among those that want a GPU, from 1, and about how long
    it waits; None if it wants none. `can_move` False: its memory can't leave the GPU. `held_up`: why no GPU
    can be expected to be its for now.
    """

    turn: Turn
    since: datetime
    gpu_uuid: str | None = None
    memory_bytes: int = 0
    moves: bool = False
    position: int | None = None
    wait_seconds: float | None = None
    can_move: bool = True
    held_up: HeldUp | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment: devices by index, leases and queue in the order of arrival."""

    devices: tuple[DeviceView, ...]
    leases: tuple[Lease, ...]
    queue: tuple[QueueEntry, ...]


class Change(NamedTuple):
    """News of one lease; `position` and `waiting` are None unless it waits.

    `obstacle` says why the healthy devices can't serve it at all; "" if they can. `wait` is when it is likely
    served; None if that isn't known. `idle_but_out` names the devices that would serve it now if they were in
    service; "" if there are none.
    """

    lease: Lease
    position: int | None
    waiting: int | None
    obstacle: str = ""
    wait: Estimate | None = None
    idle_but_out: str = ""
