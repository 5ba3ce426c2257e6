"""The admin's first page: the map of all devices, one of them in detail, and a table in pages."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tornado.web import HTTPError

from ....core.disk import DiskState
from ....core.machine import MachineState, MachineView
from ....core.units import format_bytes, format_time, ordinal
from ...decide.snapshot import DeviceView, QueueEntry, Snapshot
from ..counts import summary
from ..table import Column, Table, Wish, make_table
from ..words import Moment, moment
from ..writing import Question, Said
from .base import AdminPage
from .map import Cell, CellState, Map, make_map


@dataclass(frozen=True, slots=True)
class Holder:
    """A lease on the device that is shown in detail."""

    user: str
    server: str
    tier: str
    state: str
    since: Moment | None


@dataclass(frozen=True, slots=True)
class Detail:
    """One device with everything that is known of it."""

    cell: Cell
    pool: str
    mode: str
    drained: bool
    holders: tuple[Holder, ...]
    xids: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """A row of the table."""

    cell: Cell
    pool: str
    memory: str
    held_percent: float
    leases: int


@dataclass(frozen=True, slots=True)
class Place:
    """Somebody who waits."""

    user: str
    server: str
    tier: str
    place: str
    since: Moment | None


@dataclass(frozen=True, slots=True)
class MachineLine:
    """A machine, where there are several. `heard` is when it was heard of last, if it can't be reached."""

    name: str
    own: bool
    state: str
    level: str
    words: tuple[str, ...]
    since: Moment | None
    heard: Moment | None
    gpus: str
    leases: int
    release: str


@dataclass(frozen=True, slots=True)
class OverviewPage:
    """Everything that the templates show. `detail` is the device that the address names.

    `queue` has those who wait longest, of all `waiting`.
    """

    simulated: bool
    fault: str
    warnings: tuple[str, ...]
    unknown: int
    map: Map
    machines: tuple[MachineLine, ...]
    summary: str
    leases: int
    queue: tuple[Place, ...]
    waiting: int
    detail: Detail | None
    table: Table[DeviceLine]


MOST_WAITING = 8
"""So many of those who wait are on this page; the table of servers has all."""
COLUMNS: tuple[Column[DeviceLine], ...] = (
    Column("name", "GPU", lambda row: row.cell.name),
    Column("state", "State", lambda row: list(CellState).index(row.cell.state)),
    Column("pool", "Pool", lambda row: row.pool),
    Column("held", "Held", lambda row: row.held_percent),
    Column("used", "Memory in use", lambda row: row.cell.used_percent),
    Column("busy", "Busy", lambda row: row.cell.busy_percent),
    Column("temperature", "Temperature", lambda row: row.cell.temperature_celsius),
    Column("power", "Power", lambda row: row.cell.power_watts),
)


class OverviewHandler(AdminPage):
    """`GET POST admin/`: devices at a glance; drain and undrain."""

    template = "admin_devices.html"
    live_template = "admin_devices_live.html"
    page = ""
    refresh_seconds = 10.0

    async def content(self, *path: str) -> OverviewPage:
        tools = self.tools
        snapshot = tools.allocator.snapshot()
        found = make_map(snapshot.devices, tools.readings())
        return OverviewPage(
            simulated=tools.simulated,
            fault=tools.fault(),
            warnings=tuple(
                f"Disk of {disk.holds}: {disk.sentence()}"
                for disk in tools.disks()
                if disk.state is not DiskState.OK
            ),
            unknown=len(tools.unknown()),
            map=found,
            machines=self._machines(snapshot),
            summary=summary(self.status()),
            queue=tuple(map(self._place, _longest(snapshot.queue))),
            waiting=len(snapshot.queue),
            leases=len(snapshot.leases) - len(snapshot.queue),
            detail=self._detail(snapshot, found),
            table=device_table(snapshot.devices, found, self.wish()),
        )

    def _detail(self, snapshot: Snapshot, found: Map) -> Detail | None:
        uuid = self.get_query_argument("gpu", "")
        at = next((n for n, view in enumerate(snapshot.devices) if view.device.uuid == uuid), None)
        if at is None:
            return None
        view, now = snapshot.devices[at], self.tools.clock()
        seen = self.tools.readings().xids.get(uuid, ())
        return Detail(
            cell=found.cells[at],
            pool=view.terms.pool,
            mode=view.terms.mode.value,
            drained=view.drain is not None,
            holders=tuple(
                Holder(
                    each.user,
                    each.server,
                    self.title_of(each.tier),
                    each.state.value,
                    moment(each.since.isoformat(), now),
                )
                for each in view.holders
            ),
            xids=tuple((format_time(each.at), each.xid) for each in seen),
        )

    def _machines(self, snapshot: Snapshot) -> tuple[MachineLine, ...]:
        """With a single machine the page has no list of them."""
        machines, now = self.tools.machines(snapshot), self.tools.clock()
        return tuple(machine_line(each, now) for each in machines) if len(machines) > 1 else ()

    def _place(self, entry: QueueEntry) -> Place:
        lease, place = entry.lease, f"{ordinal(entry.position)} in line"
        since = moment(lease.created_at.isoformat(), self.tools.clock())
        return Place(lease.user, lease.server, self.title_of(lease.tier), place, since)

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        uuid, author = self.get_body_argument("uuid", ""), self.viewer.author
        reason, rules = self.why(), self.tools.rules
        if what not in ("drain", "undrain"):
            raise HTTPError(400, "no such change: %s", what)

        async def change() -> Said:
            if what == "drain":
                warning = await rules.drain(uuid, author, reason)
                return Said(
                    f"Nothing new is placed on this device. What runs there goes on. {warning}".strip()
                )
            await rules.undrain(uuid, author, reason)
            return Said("Servers are placed on this device again.")

        return await self.write_down(self.writing(f"{what} device", f"device:{uuid[:80]}", {}), change)


def machine_line(machine: MachineView, now: datetime) -> MachineLine:
    """As the list of machines shows it."""
    out = machine.gpus - machine.in_service
    drained = f"{machine.drained} drained" if machine.drained else ""
    more = ", ".join(filter(None, (f"{out} out of service" if out else "", drained)))
    return MachineLine(
        name=machine.name,
        own=machine.own,
        state=machine.state.value,
        level=_LEVELS[machine.state],
        words=tuple(filter(None, (machine.reason, *machine.notices))),
        since=_moment(machine.since, now),
        heard=_moment(machine.heard_at, now),
        gpus=f"{machine.gpus} ({more})" if more else str(machine.gpus),
        leases=machine.leases,
        release=machine.release,
    )


def _moment(at: datetime | None, now: datetime) -> Moment | None:
    return None if at is None else moment(at.isoformat(), now)


_LEVELS = {
    MachineState.READY: "success", MachineState.DRAINING: "warning", MachineState.UNUSED: "warning",
    MachineState.AWAY: "danger", MachineState.REFUSED: "danger",
}  # fmt: skip


def _longest(queue: Sequence[QueueEntry]) -> Sequence[QueueEntry]:
    """Those who wait longest, the longest first."""
    return heapq.nsmallest(MOST_WAITING, queue, key=lambda entry: entry.lease.created_at)


def device_table(views: Sequence[DeviceView], found: Map, wish: Wish) -> Table[DeviceLine]:
    """The wished page of all devices."""
    rows = (
        DeviceLine(
            cell=cell,
            pool=view.terms.pool,
            memory=format_bytes(view.device.memory_bytes),
            held_percent=round(min(100.0, sum(part.percent for part in cell.parts)), 1),
            leases=len(view.holders),
        )
        for view, cell in zip(views, found.cells, strict=True)
    )
    return make_table(rows, COLUMNS, wish, words=lambda row: f"{row.cell.label} {row.pool} {row.cell.uuid}")
