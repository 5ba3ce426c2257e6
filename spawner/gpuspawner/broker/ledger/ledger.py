"""The ledger: leases and awake intervals in a database, written before anything happens.

All database work is done by one thread named "ledger" on one connection. A change is one call of `commit`,
which is one transaction, on disk (fsync) when it returns. Every wait has a time limit. Errors are LedgerFault
or ConfigError, each with a sentence that names the remedy; a failed commit has changed nothing that a later
read would show, unless the answer itself was lost.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from ...core.decision import Decision
from ...core.errors import LedgerFault
from ...core.model import GpuRequest, Lease, LeaseState
from ...core.states import LIVING
from ...core.units import Clock, utc_now
from ..decide.allow.budget import Interval
from ..decide.allow.report import Charged
from . import audited, decided, end_warnings, ended, held, prune, rows, sessions, wait_errors
from . import database as database
from .audited import Search, Write
from .clock import Steady, read_steady
from .end_warnings import EndWarning
from .ended import EndedProcess, EndedSearch
from .held import Held, Stay, StaySearch
from .migrate import upgrade
from .rows import Moment
from .schema import leases
from .sessions import PastSession
from .thread import LedgerThread

T = TypeVar("T")

_FIND = sa.select(leases).where(leases.c.id == sa.bindparam("of_lease"))
_LIVING = [state.value for state in LeaseState if state in LIVING]


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit writes: leases as they are now, ids to erase; `beat`: the awake still are awake.

    `charge` are running leases that are awake again after a reboot. With `take_over` the leases are this
    broker's from now on, if another one's before.
    `ended` are processes that the guard ended, `decided` what people decided, `audited` writes for the audit
    log, `wait_errors` how wrong estimated waits were, `end_warnings` warnings of servers' ends that were
    given, `withdrawn` leases of which none counts any more. `prune` deletes so many of the oldest rows at
    most that are older than `before`.
    """

    moment: Moment
    leases: tuple[Lease, ...] = ()
    erase: frozenset[str] = frozenset()
    beat: bool = False
    ended: tuple[EndedProcess, ...] = ()
    decided: tuple[Decision, ...] = ()
    audited: tuple[Write, ...] = ()
    before: datetime | None = None
    prune: int = 0
    take_over: bool = False
    charge: tuple[Lease, ...] = ()
    wait_errors: tuple[float, ...] = ()
    end_warnings: tuple[EndWarning, ...] = ()
    withdrawn: frozenset[str] = frozenset()


class Ledger:
    """The ledger at a database URL: `sqlite:////folder/ledger.sqlite`, or PostgreSQL's.

    Several brokers may have one database: `owner` is the id of this one, and it changes its own leases only.

    `steady` measures how long a lease was awake, so that setting the clock charges and forgives nothing;
    every `beat_seconds` the awake intervals are marked as seen, which bounds what a power cut can hide.
    """

    def __init__(
        self,
        url: str,
        *,
        owner: str = "",
        clock: Clock = utc_now,
        steady: Callable[[], Steady] = read_steady,
        beat_seconds: float = 60.0,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
    ) -> None:
        self._engine = database.make_engine(url)
        self._owner = owner
        self._clock = clock
        self._steady = steady
        self._beat_seconds = beat_seconds
        self._log = log or logging.getLogger(__name__)
        self._connection: Any = None
        if self._engine.dialect.name == "postgresql":
            sa.event.listen(self._engine, "connect", self._connected)
        self._thread = LedgerThread(lambda: database.hang_up(self._connection))
        sa.event.listen(self._engine, "after_cursor_execute", lambda *_: self._thread.heard())
        self._opened = False
        self.uncharged: frozenset[str] = frozenset()
        """After `open`: ids of the running leases that are not charged: a reboot ended their interval.
        Only Docker knows whether their containers run again."""
        self._beating: asyncio.Task[None] | None = None
        self.on_fault: Callable[[], None] = lambda: None
        """Called, on the event loop, for each read or write that failed; must not fail."""

    async def open(self) -> None:
        """Connect, migrate, and end what a reboot interrupted.

        Raises ConfigError if the place or the schema can't be used, LedgerFault if the database is locked,
        full or damaged. The ledger is closed again then.
        """
        try:
            await self._thread.run(self._open, database.MIGRATION_TIMEOUT_SECONDS)
        except BaseException:
            await self.close()
            raise
        self._beating = asyncio.create_task(self._beat(), name="ledger-beat")

    async def close(self) -> None:
        """Disconnect; leases stay as they are. May be called twice; the ledger can't be opened again."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None
        await self._thread.close(self._close)

    async def save(
        self,
        *leases: Lease,
        at: datetime,
        ago_seconds: float = 0.0,
        erase: Iterable[str] = (),
        take_over: bool = False,
    ) -> None:
        """Insert or replace `leases` in one transaction, on disk when this returns.

        A lease that is now running starts an awake interval at `at`, one that no longer is ends it. With
        `ago_seconds` the change itself happened that long before `at` and was only noticed then. Leases with
        an id in `erase` never were: a commit whose failure was reported may have been written anyway.
        A lease that is another broker's raises LedgerFault, and nothing is written, but with `take_over`.
        """
        moment = Moment(at, self._steady()).before(ago_seconds)
        await self._in_thread(self.commit, Change(moment, leases, frozenset(erase), take_over=take_over))

    async def charge(self, lease: Lease, *, at: datetime, ago_seconds: float = 0.0) -> None:
        """A running lease whose interval a reboot ended is awake again, on disk when this returns.

        Nothing changes if it has an open interval. `ago_seconds` is as for `save`. Raises LedgerFault.
        """
        moment = Moment(at, self._steady()).before(ago_seconds)
        await self._in_thread(self.commit, Change(moment, charge=(lease,)))

    def commit(self, change: Change) -> int:
        """Write one change in one transaction: the only way by which anything gets into the ledger.

        Runs in the ledger's thread, and blocks on fsync; how many rows were pruned. Raises LedgerFault;
        nothing is written then.
        """
        with self._transaction(write=True) as connection:
            for lease in change.leases:
                if change.take_over:
                    rows.take_over(connection, lease.id, self._owner)
                rows.write(connection, lease, change.moment, self._owner)
            for lease in change.charge:
                rows.charge(connection, lease, change.moment)
            rows.erase(connection, change.erase, self._owner)
            if change.beat:
                rows.see(connection, change.moment, self._owner)
            ended.write(connection, change.ended)
            decided.write(connection, change.decided)
            audited.write(connection, change.audited)
            wait_errors.write(connection, change.wait_errors, change.moment.at, self._owner)
            end_warnings.write(connection, change.end_warnings, change.withdrawn, self._owner)
            return prune.prune(connection, change.before, change.prune) if change.before else 0

    async def living(self) -> tuple[Lease, ...]:
        """All leases of this broker that are not closed, in the order in which they were first saved."""
        query = sa.select(leases).where(leases.c.state.in_(_LIVING), leases.c.owner == self._owner)
        return await self._read(query.order_by(leases.c.number))

    async def find(self, lease_id: str) -> Lease | None:
        """The lease, in whatever state and of whichever broker; None if there never was one with this id."""
        found = await self._read(_FIND, {"of_lease": lease_id})
        return found[0] if found else None

    async def before_start(
        self, request: GpuRequest, since: datetime | None
    ) -> tuple[Lease | None, tuple[Interval, ...]]:
        """The lease with the request's id, if there ever was one, and the user's `intervals` after `since`.

        One read of all that a start is held against. None: no intervals. Raises LedgerFault.
        """
        now, user = Moment(self._clock(), self._steady()), (request.hub, request.user)

        def run() -> tuple[Lease | None, tuple[Interval, ...]]:
            with self._transaction() as connection:
                found = rows.read(connection, _FIND, {"of_lease": request.lease_id})
                used = () if since is None else rows.intervals(connection, since, now, user)
                return (found[0] if found else None), used

        return await self._in_thread(run)

    async def owned_elsewhere(self, lease_id: str) -> bool:
        """Whether another broker answers for the lease. Raises LedgerFault."""

        def run() -> bool:
            with self._transaction() as connection:
                return rows.owner_of(connection, lease_id) not in (None, self._owner)

        return await self._in_thread(run)

    async def history(self, limit: int = 100) -> tuple[Lease, ...]:
        """Closed leases, the newest first."""
        closed = sa.select(leases).where(leases.c.state == LeaseState.CLOSED.value)
        return await self._read(closed.order_by(leases.c.number.desc()).limit(limit))

    async def record(self, *items: EndedProcess) -> None:
        """Record what the guard did, on disk when this returns. Raises LedgerFault."""
        await self._in_thread(self.commit, Change(Moment(self._clock(), self._steady()), ended=items))

    async def ended(self, limit: int = 100) -> tuple[EndedProcess, ...]:
        """The processes that the guard ended, the newest first. Raises LedgerFault."""

        def run() -> tuple[EndedProcess, ...]:
            with self._transaction() as connection:
                return tuple(each for _, each in ended.read(connection, EndedSearch(limit)))

        return await self._in_thread(run)

    async def guarded(self, search: EndedSearch) -> tuple[tuple[int, EndedProcess], ...]:
        """Some of them with their numbers, the newest first. Raises LedgerFault."""

        def run() -> tuple[tuple[int, EndedProcess], ...]:
            with self._transaction() as connection:
                return ended.read(connection, search)

        return await self._in_thread(run)

    async def sessions(
        self, since: datetime, most: int = 100_000, user: tuple[str, str] | None = None
    ) -> tuple[PastSession, ...]:
        """The sessions that were awake after `since`, of one (hub, user) or of all, by their begin.

        Raises LedgerFault.
        """

        def run() -> tuple[PastSession, ...]:
            with self._transaction() as connection:
                return sessions.read(connection, since, most, user)

        return await self._in_thread(run)

    async def decide(self, *items: Decision) -> None:
        """Record what somebody decided, on disk when this returns. Raises LedgerFault."""
        await self._in_thread(self.commit, Change(Moment(self._clock(), self._steady()), decided=items))

    async def add_wait_errors(self, sides: Iterable[float]) -> None:
        """Record how wrong estimated waits were, for `wait_errors`. Raises LedgerFault."""
        moment = Moment(self._clock(), self._steady())
        await self._in_thread(self.commit, Change(moment, wait_errors=tuple(sides)))

    async def wait_errors(self) -> tuple[float, ...]:
        """How wrong this broker's estimated waits were: the newest, the oldest of them first.

        Raises LedgerFault.
        """

        def run() -> tuple[float, ...]:
            with self._transaction() as connection:
                return wait_errors.read(connection, self._owner)

        return await self._in_thread(run)

    async def note_end_warnings(self, *given: EndWarning, withdrawn: Iterable[str] = ()) -> None:
        """Record warnings that were given of servers' ends, on disk when this returns. Raises LedgerFault.

        Of the leases in `withdrawn` no warning counts any more.
        """
        moment = Moment(self._clock(), self._steady())
        change = Change(moment, end_warnings=given, withdrawn=frozenset(withdrawn))
        await self._in_thread(self.commit, change)

    async def end_warnings(self) -> tuple[EndWarning, ...]:
        """The warnings of the ends of this broker's running leases. Raises LedgerFault."""

        def run() -> tuple[EndWarning, ...]:
            with self._transaction() as connection:
                return end_warnings.read(connection, self._owner)

        return await self._in_thread(run)

    async def decisions(self) -> tuple[Decision, ...]:
        """All decisions made at run time, in order. Raises LedgerFault."""

        def run() -> tuple[Decision, ...]:
            with self._transaction() as connection:
                return decided.read(connection)

        return await self._in_thread(run)

    async def audit(self, *items: Write) -> None:
        """Add writes to the audit log, or their results, on disk when this returns. Raises LedgerFault."""
        await self._in_thread(self.commit, Change(Moment(self._clock(), self._steady()), audited=items))

    async def audited(self, search: Search) -> tuple[tuple[int, Write], ...]:
        """Writes of the audit log with their numbers, the newest first. Raises LedgerFault."""

        def run() -> tuple[tuple[int, Write], ...]:
            with self._transaction() as connection:
                return audited.read(connection, search)

        return await self._in_thread(run)

    async def audited_request(self, author: str, request_id: str) -> Write | None:
        """The author's write with this request id, None if there is none. Raises LedgerFault."""

        def run() -> Write | None:
            with self._transaction() as connection:
                return audited.by_request(connection, author, request_id)

        return await self._in_thread(run)

    async def audited_write(self, write_id: str) -> Write | None:
        """The write with this id, None if there is none. Raises LedgerFault."""

        def run() -> Write | None:
            with self._transaction() as connection:
                return audited.by_id(connection, write_id)

        return await self._in_thread(run)

    async def charged(self, since: datetime) -> tuple[Charged, ...]:
        """The awake intervals that reach beyond `since`, open ones up to now. Raises LedgerFault."""
        now = Moment(self._clock(), self._steady())

        def run() -> tuple[Charged, ...]:
            with self._transaction() as connection:
                return rows.charged(connection, since, now)

        return await self._in_thread(run)

    async def intervals(self, since: datetime, hub: str, user: str) -> tuple[Interval, ...]:
        """The same of one user, without whose and what for. Raises LedgerFault."""
        now = Moment(self._clock(), self._steady())

        def run() -> tuple[Interval, ...]:
            with self._transaction() as connection:
                return rows.intervals(connection, since, now, (hub, user))

        return await self._in_thread(run)

    async def held(self, since: datetime, uuids: Collection[str]) -> tuple[Held, ...]:
        """Who held these devices after `since`, by device and begin. Raises LedgerFault."""

        def run() -> tuple[Held, ...]:
            with self._transaction() as connection:
                return held.read(connection, since, uuids)

        return await self._in_thread(run)

    async def stays(self, search: StaySearch) -> tuple[Stay, ...]:
        """When leases were awake, the newest first. Raises LedgerFault."""

        def run() -> tuple[Stay, ...]:
            with self._transaction() as connection:
                return held.search(connection, search)

        return await self._in_thread(run)

    async def last_ended(self, hub: str, users: Collection[str]) -> dict[str, datetime]:
        """When the last lease with a GPU of each of these users ended, if they ever had one.

        Raises LedgerFault.
        """

        def run() -> dict[str, datetime]:
            with self._transaction() as connection:
                return held.last_ended(connection, hub, users)

        return await self._in_thread(run)

    async def servers_ended(self, hub: str, users: Collection[str]) -> dict[tuple[str, str], datetime]:
        """When the last lease of each of these users' servers ended, by user and name. Raises LedgerFault."""

        def run() -> dict[tuple[str, str], datetime]:
            with self._transaction() as connection:
                return held.servers_ended(connection, hub, users)

        return await self._in_thread(run)

    async def prune(self, before: datetime, most: int) -> int:
        """Delete up to `most` rows of what ended before that; how many were deleted. Raises LedgerFault."""
        moment = Moment(self._clock(), self._steady())
        return await self._in_thread(self.commit, Change(moment, before=before, prune=most))

    async def gpu_seconds(self, user: str, since: datetime) -> float:
        """What the user used after `since`: awake seconds × part of a GPU; running leases count up to now."""
        now = Moment(self._clock(), self._steady())

        def sum_up() -> float:
            with self._transaction() as connection:
                return rows.gpu_seconds(connection, user, since, now)

        return await self._in_thread(sum_up)

    async def beat(self) -> None:
        """Mark the awake intervals as seen now."""
        await self._in_thread(self.commit, Change(Moment(self._clock(), self._steady()), beat=True))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._beat_seconds)
            try:
                await self.beat()
            except LedgerFault as error:
                self._log.warning("%s", error)

    async def _read(
        self, query: sa.Select[tuple[object, ...]], values: dict[str, object] | None = None
    ) -> tuple[Lease, ...]:
        def run() -> tuple[Lease, ...]:
            with self._transaction() as connection:
                return rows.read(connection, query, values)

        return await self._in_thread(run)

    async def _in_thread(self, run: Callable[..., T], *args: object) -> T:
        try:
            return await self._thread.run(lambda: run(*args))
        except LedgerFault:
            self.on_fault()
            raise

    def _connected(self, connection: Any, _record: object) -> None:
        """Remembers PostgreSQL's connection, to break it if it does not answer; in the ledger's thread."""
        self._connection = connection

    def _open(self) -> None:
        path = database.sqlite_path(self._engine)
        try:
            if path is not None:
                database.create_private(path)
            with (
                self._engine.connect().execution_options(**{database.WRITE: True}) as connection,
                connection.begin(),
            ):
                database.begin_open(connection)
                database.quick_check(connection)
                upgrade(connection)
                rows.claim(connection, self._owner)
                ended = rows.end_at_reboot(connection, self._steady().boot_id, self._owner)
                self.uncharged = rows.uncharged(connection, self._owner)
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise database.explain(error, self._engine, opening=True) from error
        if ended:
            self._log.info(
                "The machine was rebooted: ended %d awake intervals at the time they were last seen", ended
            )
        self._opened = True

    def _close(self) -> None:
        self._opened = False
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sa.Connection]:
        if not self._opened:
            raise LedgerFault("The ledger is not open: start the broker again.")
        try:
            with (
                self._engine.connect().execution_options(**{database.WRITE: write}) as connection,
                connection.begin(),
            ):
                yield connection
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise database.explain(error, self._engine) from error
