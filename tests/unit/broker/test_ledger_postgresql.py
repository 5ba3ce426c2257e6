"""PostgreSQL that locks, hangs or refuses: every wait ends, with a sentence that names the remedy."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core.errors import ConfigError, LedgerFault

from tests.postgres import Server
from tests.soon import SOON_SECONDS
from tests.unit.lease_examples import GPU0, GPU1, NOON, PAIR, PAIR_RUNNING, A, B, request


@pytest.fixture
def server(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """With short limits, so that the tests are short."""
    monkeypatch.setattr("gpuspawner.broker.ledger.database.BUSY_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr("gpuspawner.broker.ledger.database.STATEMENT_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr("gpuspawner.broker.ledger.database.CONNECT_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr("gpuspawner.broker.ledger.thread.ANSWER_SECONDS", 4.0)
    return postgres


@pytest.fixture
def name(server: Server) -> str:
    """A new database."""
    return server.create()


@pytest.fixture
async def ledger(server: Server, name: str, times: Any) -> AsyncIterator[Ledger]:
    """Open, with one lease."""
    ledger = times.make_ledger(server.url(name))
    await ledger.open()
    await ledger.save(PAIR, at=NOON)
    yield ledger
    async with asyncio.timeout(SOON_SECONDS):
        await ledger.close()


@contextmanager
def locked(server: Server, name: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[None]:
    """Another session keeps the leases to itself."""
    with server.connect(name) as other:
        other.execute("BEGIN")
        other.execute(f"LOCK TABLE leases IN {mode} MODE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def stopped(server: Server, name: str) -> Iterator[None]:
    """The server and its sessions say nothing more: SIGSTOP, as a machine that hangs."""
    with server.connect(name) as other:
        pids = [row[0] for row in other.execute("SELECT pid FROM pg_stat_activity").fetchall()]
    pids = [server.process.pid, *pids]
    try:
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # a session that has ended meanwhile, as autovacuum's
        os.kill(pid, number)


async def test_a_foreign_lock_holds_up_nobody_for_long(
    ledger: Ledger, server: Server, name: str, times: Any
) -> None:
    """Neither who wants a lease, nor, behind the allocator's lock, who gives one back."""
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0, GPU1])
    with locked(server, name):
        asked = [
            asyncio.create_task(allocator.acquire(request(A))),
            asyncio.create_task(allocator.begin_release(PAIR.id, "stopped")),
        ]
        async with asyncio.timeout(SOON_SECONDS):
            faults = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(fault) for fault in faults] == [LedgerFault, LedgerFault]
        assert str(faults[0]).endswith(
            "is locked by another session: see pg_stat_activity and pg_locks, end that session"
            " (pg_terminate_backend), and try again. Nothing was lost."
        )
        assert [lease.id for lease in allocator.leases()] == [PAIR.id]
    assert (await allocator.acquire(request(B))).id == B
    assert {lease.id for lease in await ledger.living()} == {PAIR.id, B}


async def test_a_foreign_lock_does_not_keep_the_ledger_from_closing(
    server: Server, name: str, times: Any
) -> None:
    ledger = times.make_ledger(server.url(name), beat_seconds=0.05)
    await ledger.open()
    await ledger.save(PAIR_RUNNING, at=NOON)
    with locked(server, name):
        await asyncio.sleep(0.2)  # a beat waits for the lock
        async with asyncio.timeout(SOON_SECONDS):
            await ledger.close()


async def test_another_broker_that_opens_the_ledger_is_waited_for(
    server: Server, name: str, times: Any
) -> None:
    """Two at once must not both migrate it."""
    urls = [times.make_ledger(server.url(name), owner=owner) for owner in ("one", "other", "third")]
    done = await asyncio.gather(*(ledger.open() for ledger in urls), return_exceptions=True)
    faults = [each for each in done if each is not None]
    assert all(isinstance(fault, LedgerFault) and "is locked" in str(fault) for fault in faults)
    assert len(faults) < 3
    for ledger in urls:
        await ledger.close()


async def test_a_statement_that_takes_too_long_ends(ledger: Ledger) -> None:
    def sleep() -> None:
        with ledger._transaction() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(30)")

    with pytest.raises(LedgerFault, match=r"took longer than 2 s for one statement: see the load"):
        await ledger._in_thread(sleep)
    assert await ledger.living() == (PAIR,)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_server_that_hangs_is_broken_off(ledger: Ledger, server: Server, name: str) -> None:
    with stopped(server, name):
        async with asyncio.timeout(SOON_SECONDS):
            with pytest.raises(LedgerFault, match="does not answer"):
                await ledger.save(PAIR_RUNNING, at=NOON)
            with pytest.raises(LedgerFault, match="does not answer"):
                await ledger.living()
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            try:
                assert (await ledger.living())[0].id == PAIR.id
                break
            except LedgerFault:
                await asyncio.sleep(0.1)
    await ledger.save(PAIR_RUNNING, at=NOON)
    assert await ledger.living() == (PAIR_RUNNING,)
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_closing_while_the_server_hangs(server: Server, name: str, times: Any) -> None:
    ledger = times.make_ledger(server.url(name))
    await ledger.open()
    with stopped(server, name):
        saving = asyncio.create_task(ledger.save(PAIR, at=NOON))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(SOON_SECONDS):
            await ledger.close()
        with pytest.raises(LedgerFault):
            await saving
    await asyncio.to_thread(_join_ledgers)
    gc.collect()  # psycopg leaves a connection that could not be made to the garbage collector


def _join_ledgers() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("ledger-"):
            thread.join(SOON_SECONDS)


async def test_a_session_that_an_admin_ends_is_replaced(ledger: Ledger, server: Server, name: str) -> None:
    with server.connect(name) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await ledger.save(PAIR_RUNNING, at=NOON)
    assert await ledger.living() == (PAIR_RUNNING,)


async def test_no_server(tmp_path: Path, times: Any) -> None:
    url = f"postgresql://gpus@/ledger?host={tmp_path}"
    with pytest.raises(LedgerFault, match=r"The database server of the ledger .* does not answer"):
        await times.make_ledger(url).open()


async def test_no_such_database(server: Server, times: Any) -> None:
    with pytest.raises(ConfigError, match=r"can't be opened \(.*does not exist.*\): create the database"):
        await times.make_ledger(server.url("nowhere")).open()


async def test_a_standby_says_so(ledger: Ledger, server: Server, name: str) -> None:
    """As on one: every transaction is read-only."""

    def protect() -> None:
        with ledger._engine.connect() as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = on")
            connection.commit()

    await ledger._in_thread(protect)
    with pytest.raises(LedgerFault, match="can only be read: name the primary server"):
        await ledger.save(PAIR_RUNNING, at=NOON)
    assert await ledger.living() == (PAIR,)


async def test_the_limits_hold_in_every_session(ledger: Ledger, server: Server) -> None:
    def ask() -> list[Any]:
        with ledger._transaction() as connection:
            names = ("lock_timeout", "statement_timeout")
            return [connection.exec_driver_sql(f"SHOW {each}").scalar() for each in names]

    assert await ledger._in_thread(ask) == ["300ms", "2s"]


def test_the_fixture_is_what_it_says(server: Server, name: str) -> None:
    """Were it SQLite by mistake, nothing above would mean anything."""
    with psycopg.connect(host=str(server.folder), user="postgres", dbname=name) as connection:
        assert connection.info.server_version >= 120000
