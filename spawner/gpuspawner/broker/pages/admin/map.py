"""A map of all devices at a glance: a cell for each, with what is held, used, and wrong. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType

from ....core.model import Device, Lease, LeaseState
from ....core.text import isolated
from ....core.units import format_bytes
from ....core.want import Mode
from ....node.api import Usage, XidSeen, meaning, resolution
from ...decide.place.placement import share_of
from ...decide.snapshot import DeviceView

DETAILED = 64
"""Up to so many devices, each cell has room for names and numbers; beyond that it is a small square."""
_NAMES = 3


class CellState(StrEnum):
    """What colour a cell has: the first of these that is true."""

    OUT = "out of service"
    DRAINED = "drained"
    FULL = "full"
    PARTLY = "partly held"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Part:
    """A lease's share of a device, in percent of its memory."""

    user: str
    percent: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One device. Percentages are of its memory; None where NVML doesn't tell.

    `reason` says why it is out of service or drained, `resting` how many leases hold it without using it,
    `unguarded` why no quota is enforced on it now.
    """

    uuid: str
    name: str
    short: str
    state: CellState
    reason: str
    parts: tuple[Part, ...]
    resting: int
    used_percent: float | None
    used: str
    busy_percent: float | None
    temperature_celsius: float | None
    power_watts: float | None
    power: str
    xids: tuple[int, ...]
    unguarded: str
    machine: str = ""
    """Where there are several."""

    @property
    def names(self) -> str:
        """The users, as far as there is room: "ada, bob and 2 others"."""
        users = [isolated(user) for user in dict.fromkeys(part.user for part in self.parts)]
        if len(users) <= _NAMES:
            return ", ".join(users)
        return f"{', '.join(users[: _NAMES - 1])} and {len(users) - _NAMES + 1} others"

    @property
    def xid_is_fault(self) -> bool:
        """Whether the newest XID is a fault of the GPU, not of a program on it."""
        return bool(self.xids) and resolution(self.xids[0]).is_fault

    @property
    def xid_words(self) -> str:
        """The newest XID with its meaning: "XID 31: error of a program, GPU stays in service"."""
        return f"XID {self.xids[0]}: {meaning(self.xids[0])}" if self.xids else ""

    @property
    def condition(self) -> str:
        """Its state with the reason: "drained by admin: new fans", "out of service: XID 79"."""
        if not self.reason:
            return str(self.state)
        between = " " if self.state is CellState.DRAINED else ": "
        return f"{self.state}{between}{self.reason}"

    @property
    def label(self) -> str:
        """All of it in words, for screen readers and as a tip."""
        words: Iterable[str] = (
            f"{self.name}: {self.condition}",
            f"held by {self.names}" if self.parts else "",
            f"{self.used} in use" if self.used else "",
            "" if self.busy_percent is None else f"{self.busy_percent:.0f} % busy",
            "" if self.temperature_celsius is None else f"{self.temperature_celsius:.0f} °C",
            self.power,
            f"XID {', '.join(map(str, self.xids))}" if self.xids else "",
            f"no quota is enforced now: {self.unguarded}" if self.unguarded else "",
        )
        return ", ".join(filter(None, words))


@dataclass(frozen=True, slots=True)
class Map:
    """All cells, and how many there are of each state; `detailed` if cells have room for words."""

    cells: tuple[Cell, ...]
    counts: Mapping[CellState, int]
    detailed: bool

    @property
    def shows_use(self) -> bool:
        """Whether a cell shows how much memory is in use: simulated devices have none."""
        return self.detailed and any(cell.used_percent is not None for cell in self.cells)

    @property
    def machines(self) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
        """The cells by machine, which come one after the other; with a single machine its name is ""."""
        groups = itertools.groupby(self.cells, attrgetter("machine"))
        return tuple((name, tuple(cells)) for name, cells in groups)


@dataclass(frozen=True, slots=True)
class Readings:
    """What is read of the devices, by UUID; `xids`: the newest first; `blind`: why no quota is enforced.

    `awake_on`: the device on which a lease in turns computes, by lease id.
    """

    usage: Mapping[str, Usage] = field(default_factory=lambda: MappingProxyType({}))
    xids: Mapping[str, tuple[XidSeen, ...]] = field(default_factory=lambda: MappingProxyType({}))
    blind: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    awake_on: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def make_map(views: Sequence[DeviceView], readings: Readings) -> Map:
    """The map of these devices, in their order."""
    cells = tuple(_cell(view, readings) for view in views)
    counts = Counter(cell.state for cell in cells)
    return Map(cells, {state: counts[state] for state in CellState if counts[state]}, len(cells) <= DETAILED)


def _cell(view: DeviceView, readings: Readings) -> Cell:
    device, usage = view.device, readings.usage.get(view.device.uuid, Usage())
    awake = [lease for lease in view.holders if _is_awake(lease, device.uuid, readings)]
    state, reason = _state(view)
    used = None if device.simulated else usage.used_bytes
    return Cell(
        uuid=device.uuid,
        name=view.name,
        short=str(device.uuid[4:8] if device.index is None else device.index),
        state=state,
        reason=reason,
        parts=tuple(_part(lease, device) for lease in awake),
        resting=len(view.holders) - len(awake),
        used_percent=None if used is None else min(100.0, 100 * used / max(1, device.memory_bytes)),
        used="" if used is None else f"{format_bytes(used)} of {format_bytes(device.memory_bytes)}",
        busy_percent=usage.utilization_percent,
        temperature_celsius=usage.temperature_celsius,
        power_watts=usage.power_watts,
        power=_power(usage),
        xids=tuple(dict.fromkeys(seen.xid for seen in readings.xids.get(device.uuid, ()))),
        unguarded=readings.blind.get(device.uuid, ""),
        machine=view.node,
    )


def _is_awake(lease: Lease, uuid: str, readings: Readings) -> bool:
    """Whether the lease uses this device: in turns several leases hold it, and one at most computes on it."""
    if lease.state is LeaseState.ASLEEP:
        return False
    return lease.mode is not Mode.TURNS or readings.awake_on.get(lease.id) == uuid


def _part(lease: Lease, device: Device) -> Part:
    share = share_of(lease, device)
    return Part(lease.user, min(100.0, 100 * share.memory_bytes / max(1, device.memory_bytes)))


def _state(view: DeviceView) -> tuple[CellState, str]:
    if not view.health.healthy:
        return CellState.OUT, view.health.reason
    if view.drain is not None:
        by, reason = f"by {isolated(view.drain.author)}", isolated(view.drain.reason)
        return CellState.DRAINED, f"{by}: {reason}" if reason else by
    if not view.holders:
        return CellState.FREE, ""
    return (CellState.PARTLY if _free_slices(view) or _free_seats(view) else CellState.FULL), ""


def _free_seats(view: DeviceView) -> int:
    """How many more servers may take turns on a device."""
    return max(0, (view.terms.seats or 0) - len(view.holders)) if view.terms.in_turns else 0


def _free_slices(view: DeviceView) -> int:
    """How many more slices fit on a device; none on one that gets nothing new."""
    terms = view.terms
    if not terms.sliced or not view.health.healthy or view.drain is not None:
        return 0
    held = sum(share_of(lease, view.device).memory_bytes for lease in view.holders)
    fitting = _fitting(view, terms.usable_bytes(view.device.memory_bytes) - held)
    most = terms.most_leases
    return fitting if most is None else max(0, min(fitting, most - len(view.holders)))


def _fitting(view: DeviceView, memory_bytes: int) -> int:
    terms = view.terms
    smallest = min(terms.sizes_bytes, default=terms.largest_bytes(view.device.memory_bytes))
    return max(0, memory_bytes) // smallest if smallest else 0


def _power(usage: Usage) -> str:
    if usage.power_watts is None:
        return ""
    limit = "" if usage.power_limit_watts is None else f" of {usage.power_limit_watts:.0f}"
    return f"{usage.power_watts:.0f}{limit} W"
