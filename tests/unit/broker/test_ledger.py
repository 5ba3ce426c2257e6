"""The ledger: what is written is read, the schema is what it says, a crash loses nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from gpuspawner.broker.ledger import Ledger, migrate, schema
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Mode, Want
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.lease_examples import NOON, PAIR, PAIR_RUNNING


@pytest.fixture
def path(database: str) -> str:
    """Where the ledger is: each test runs on SQLite and on PostgreSQL."""
    return database


# What is written is read.

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
datetimes = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
wants = st.builds(
    Want,
    device_count=st.integers(1, 64),
    model=st.none() | names,
    mode=st.sampled_from(Mode),
    pool=st.none() | names,
    mig_profile=st.none() | names,
    memory_bytes=st.none() | st.integers(1, 1 << 45),
    compute_percent=st.none() | st.floats(1, 100),
)
leases = st.builds(
    Lease,
    id=st.text("0123456789abcdef", min_size=32, max_size=32),
    hub=names,
    user=names,
    server=names,
    tier=names,
    state=st.sampled_from(LeaseState),
    want=wants,
    created_at=datetimes,
    since=datetimes,
    device_uuids=st.lists(names, min_size=3, max_size=3).map(tuple),
    device_fractions=st.just(()) | st.tuples(*[st.floats(0, 1, exclude_min=True)] * 3),
    groups=st.lists(names, max_size=4).map(tuple),
    node=names,
    memory_bytes=st.integers(0, 1 << 45),
    compute_percent=st.floats(0, 100),
    container_id=st.none() | names,
    notice=names,
    reason=names,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(leases, max_size=3), max_size=4))
def test_any_leases_come_back(fresh: Callable[[], str], new_times: Any, batches: list[list[Lease]]) -> None:
    async def check() -> None:
        path = fresh()
        times = new_times()
        ledger = times.make_ledger(path)
        await ledger.open()
        expected: dict[str, Lease] = {}
        for batch in batches:
            await ledger.save(*batch, at=NOON)
            expected.update({lease.id: lease for lease in batch})
        living = [lease for lease in expected.values() if lease.state is not LeaseState.CLOSED]
        closed = [lease for lease in expected.values() if lease.state is LeaseState.CLOSED]
        assert {each: await ledger.find(each) for each in expected} == expected
        assert await ledger.living() == tuple(living)
        await ledger.close()
        again = times.make_ledger(path)
        await again.open()
        assert await again.living() == tuple(living)
        assert await again.history() == tuple(reversed(closed))
        assert await again.history(1) == tuple(closed[-1:])
        await again.close()

    asyncio.run(check())


async def test_unknown_is_none(ledger: Ledger) -> None:
    assert await ledger.find("2" * 32) is None
    assert await ledger.living() == ()
    assert await ledger.history() == ()
    assert await ledger.gpu_seconds("ada", NOON) == 0.0


async def test_any_zone_comes_back_as_utc(ledger: Ledger) -> None:
    tokyo = replace(PAIR, since=NOON.astimezone(ZoneInfo("Asia/Tokyo")))
    await ledger.save(tokyo, at=NOON)
    (found,) = await ledger.living()
    assert (found, found.since.tzinfo) == (PAIR, UTC)


async def test_order_of_arrival_outlives_a_clock_set_back(ledger: Ledger) -> None:
    second = replace(PAIR, id="2" * 32, created_at=NOON - timedelta(hours=1))
    await ledger.save(PAIR, at=NOON)
    await ledger.save(second, at=NOON)
    await ledger.save(PAIR_RUNNING, at=NOON)
    assert await ledger.living() == (PAIR_RUNNING, second)


async def test_many_leases(tmp_path: Path, times: Any) -> None:
    """More than SQLite takes as parameters of one statement."""
    ledger = times.make_ledger(tmp_path / "many.sqlite")
    await ledger.open()
    many = tuple(replace(PAIR, id=f"{number:032x}") for number in range(1200))
    await ledger.save(*many, at=NOON)
    assert await ledger.living() == many
    await ledger.close()


async def test_erased_leases_never_were(ledger: Ledger, times: Any) -> None:
    await ledger.save(PAIR_RUNNING, replace(PAIR_RUNNING, id="2" * 32), at=NOON)
    times.pass_seconds(10)
    await ledger.save(at=NOON, erase=[PAIR_RUNNING.id, "3" * 32])
    assert await ledger.find(PAIR_RUNNING.id) is None
    assert await ledger.gpu_seconds("ada", NOON) == 20.0


# Schema.


async def test_migrations_make_what_the_schema_describes(ledger: Ledger, path: str) -> None:
    engine = sa.create_engine(path)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        wanted = {
            "sqlite": "CREATE UNIQUE INDEX awake_open ON awake (lease_id) WHERE ended_at IS NULL",
            "postgresql": "CREATE UNIQUE INDEX awake_open ON public.awake USING btree (lease_id)"
            " WHERE (ended_at IS NULL)",
        }
        sql = {
            "sqlite": "SELECT sql FROM sqlite_master WHERE name = 'awake_open'",
            "postgresql": "SELECT indexdef FROM pg_indexes WHERE indexname = 'awake_open'",
        }
        assert connection.exec_driver_sql(sql[engine.dialect.name]).scalar() == wanted[engine.dialect.name]
    engine.dispose()
    script = ScriptDirectory(str(migrate.MIGRATIONS))
    assert script.get_heads() == [schema.HEAD]


async def test_a_migration_that_fails_leaves_nothing_behind(
    path: str, monkeypatch: pytest.MonkeyPatch, times: Any
) -> None:
    monkeypatch.setattr("gpuspawner.broker.ledger.rows.end_at_reboot", lambda *_: 1 / 0)
    ledger = times.make_ledger(path)
    with pytest.raises(ZeroDivisionError):
        await ledger.open()
    engine = sa.create_engine(path)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


async def test_committed_before_save_returns(ledger: Ledger, query: Any) -> None:
    await ledger.save(PAIR, at=NOON)
    assert query("SELECT id, state FROM leases") == [(PAIR.id, "reserved")]


async def test_on_disk_before_save_returns(tmp_path: Path, times: Any) -> None:
    path = tmp_path / "file.sqlite"
    ledger = times.make_ledger(path)
    await ledger.open()
    with ledger._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL: fsync at every commit
    assert path.stat().st_mode & 0o777 == 0o600
    await ledger.close()


async def test_all_work_is_done_by_the_ledger_thread(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    commit = ledger.commit

    def spy(change: object) -> None:
        seen.append(threading.current_thread().name)
        commit(change)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger, "commit", spy)
    await ledger.save(PAIR, replace(PAIR, id="2" * 32), at=NOON)
    await ledger.beat()
    assert seen == ["ledger-1", "ledger-1"]


async def test_opening_again_needs_no_alembic(ledger: Ledger, path: str) -> None:
    await ledger.save(*(replace(PAIR, id=f"{n:032x}") for n in range(300)), at=NOON)
    program = (
        "import asyncio, sys\n"
        "from gpuspawner.broker.ledger import Ledger\n"
        f"ledger = Ledger({path!r})\n"
        "async def main():\n"
        "    await ledger.open()\n"
        "    await ledger.close()\n"
        "    assert 'alembic' not in sys.modules\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, env=environment, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# Crashes.


async def test_killed_in_a_commit(path: str, times: Any) -> None:
    """SIGKILL while a transaction is half written: it never was, and all before it is there."""
    program = (
        "import asyncio, os, signal\n"
        "from dataclasses import fields, replace\n"
        "from gpuspawner.broker.ledger import Ledger, rows\n"
        "import test_ledger as here\n"
        f"ledger = Ledger({path!r})\n"
        "async def main():\n"
        "    await ledger.open()\n"
        "    await ledger.save(here.PAIR, at=here.NOON)\n"
        "    rows.charge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    await ledger.save(replace(here.PAIR, id='2' * 32), here.PAIR_RUNNING, at=here.NOON)\n"
        "asyncio.run(main())\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env=environment, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-9, "")
    ledger = times.make_ledger(path)
    await ledger.open()
    assert await ledger.living() == (PAIR,)
    await ledger.close()
