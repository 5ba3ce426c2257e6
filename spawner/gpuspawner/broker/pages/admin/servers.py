"""All servers with a GPU and all that wait, as a table in pages; stop or release them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

from tornado.web import HTTPError

from ....core.errors import BadOption, GpuSpawnerError, Refusal
from ....core.model import Lease
from ....core.text import isolated
from ....core.units import format_bytes
from ..table import Column, Table, make_table
from ..words import Moment, moment
from ..writing import Question, Said, Writing
from .base import AdminPage


@dataclass(frozen=True, slots=True)
class ServerLine:
    """A row of the table."""

    id: str
    user: str
    server: str
    groups: str
    tier: str
    state: str
    since: Moment | None
    devices: str
    memory: str
    notice: str


@dataclass(frozen=True, slots=True)
class ServersPage:
    """Everything that the templates show."""

    simulated: bool
    table: Table[Lease]
    rows: tuple[ServerLine, ...]


COLUMNS: tuple[Column[Lease], ...] = (
    Column("user", "User", lambda lease: lease.user),
    Column("groups", "Groups", lambda lease: ", ".join(lease.groups)),
    Column("tier", "Tier", lambda lease: lease.tier),
    Column("state", "State", lambda lease: lease.state.value),
    Column("since", "For", lambda lease: _began(lease)),
    Column("devices", "GPU", lambda lease: lease.device_uuids or None),
    Column("memory", "Memory", lambda lease: lease.memory_bytes),
)


class ServersHandler(AdminPage):
    """`GET POST admin/servers/`"""

    template = "admin_servers.html"
    live_template = "admin_servers_live.html"
    page = "servers/"

    async def content(self, *path: str) -> ServersPage:
        snapshot, now = self.tools.allocator.snapshot(), self.tools.clock()
        names = {view.device.uuid: view.number for view in snapshot.devices}
        titles = {tier.name: tier.title for tier in self.tools.rules.rulebook.known.tiers}
        table = make_table(
            snapshot.leases,
            COLUMNS,
            self.wish(),
            words=lambda lease: f"{_words(lease, names)} {titles.get(lease.tier, '')}",
        )
        rows = tuple(_line(lease, titles.get(lease.tier, lease.tier), names, now) for lease in table.rows)
        return ServersPage(self.tools.simulated, table, rows)

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        if what != "stop":
            raise HTTPError(400, "no such change: %s", what)
        chosen = dict.fromkeys(self.get_body_arguments("lease"))
        leases = [lease for each in chosen if (lease := self.tools.allocator.lease(each)) is not None]
        if not leases:
            raise BadOption("No server was chosen, or it has ended meanwhile.")
        servers = "1 server" if len(leases) == 1 else f"{len(leases)} servers"
        if not self.confirmed:
            names = tuple(
                f"{isolated(each.user)}, {isolated(each.server or 'default server')} "
                f"({isolated(self.title_of(each.tier))})"
                for each in leases
            )
            text = (
                "What runs there ends, and what is not saved to a file is lost. Who waits leaves the queue."
            )
            values: dict[str, str | list[str]] = {"do": "stop", "lease": [lease.id for lease in leases]}
            return Question(f"Stop {servers}?", text, f"Stop {servers}", values, names)
        author = self.viewer.author
        groups = tuple(sorted({group for lease in leases for group in lease.groups}))
        document = {"lease_ids": [lease.id for lease in leases], "users": [lease.user for lease in leases]}
        writing = Writing(self.viewer.admin, "stop servers", "servers", groups, document)

        async def stop() -> Said:
            done = await asyncio.gather(
                *(self.tools.service.release(lease.id, f"stopped by {author}") for lease in leases),
                return_exceptions=True,
            )
            failed = [
                f"{isolated(lease.user)}: {each.message if isinstance(each, Refusal) else each}"
                for lease, each in zip(leases, done, strict=True)
                if isinstance(each, GpuSpawnerError)
            ]
            stopped = len(leases) - len(failed)
            what = "1 server ends." if stopped == 1 else f"{stopped} servers end."
            return Said(" ".join([what, *failed]), good=not failed)

        return await self.write_down(writing, stop)


def _line(lease: Lease, tier: str, names: dict[str, str], now: datetime) -> ServerLine:
    return ServerLine(
        id=lease.id,
        user=lease.user,
        server=lease.server,
        groups=", ".join(lease.groups),
        tier=tier,
        state=lease.state.value,
        since=moment(_began(lease).isoformat(), now),
        devices=", ".join(names.get(uuid, uuid) for uuid in lease.device_uuids),
        memory=format_bytes(lease.memory_bytes) if lease.memory_bytes else "",
        notice=lease.notice,
    )


def _began(lease: Lease) -> datetime:
    """Since when it is in this state; of one that waits, when it was asked for."""
    return lease.since if lease.device_uuids else lease.created_at


def _words(lease: Lease, names: dict[str, str]) -> str:
    """What is searched."""
    devices = (names.get(uuid, uuid) for uuid in lease.device_uuids)
    return " ".join((lease.user, lease.server, *lease.groups, lease.tier, lease.state.value, *devices))
