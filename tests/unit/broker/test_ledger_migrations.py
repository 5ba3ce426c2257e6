"""A ledger of an older version opens, and its leases go on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger.migrate import MIGRATIONS
from gpuspawner.broker.ledger.schema import HEAD, metadata
from gpuspawner.core.model import Device, GpuRequest, Lease, LeaseState, Mode
from gpuspawner.core.want import Want

GIB = 1 << 30
GPU = Device("GPU-0", "H100 80GB", 80 * GIB, index=0, node="gpu-box")
GPU1 = Device("GPU-1", "H100 80GB", 80 * GIB, index=1, node="gpu-box")
SLICED = {"GPU-1": SharingRules("class", Mode.SLICE, slices=8, mps=True)}
AT = "2026-01-01 12:00:00.000000"
REVISIONS = ("0001", "0002", "0003")


@pytest.fixture
def path(database: str) -> str:
    """Where the ledger is: each test runs on SQLite and on PostgreSQL."""
    return database


def upgrade(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def put(connection: sa.Connection, table: str, **values: Any) -> None:
    columns = ", ".join(f'"{name}"' for name in values)
    places = ", ".join(f":{name}" for name in values)
    connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), values)


def put_lease(connection: sa.Connection, name: str, state: str, **more: Any) -> None:
    fixed = {
        "hub": "hub", "user": name, "server": "", "tier": "gpu", "device_count": 1, "created_at": AT,
        "since": AT, "model": None, "memory_bytes": 0, "compute_percent": 100.0, "container_id": None,
        "notice": "", "reason": "",
    }  # fmt: skip
    put(connection, "leases", **{**fixed, "id": name * 32, "state": state, **more})


def put_interval(connection: sa.Connection, name: str, count: int, ended_at: str | None) -> None:
    put(
        connection, "awake", lease_id=name * 32, device_count=count, started_at=AT, ended_at=ended_at,
        seen_at=AT, seconds=100.0 if ended_at else 0.0, boot_id="boot-1", steady_start_seconds=1000.0,
    )  # fmt: skip


def make_old(url: str, revision: str) -> None:
    """A ledger as that version left it: what runs, waits, has ended, and from 0002 on a running slice."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        upgrade(connection, revision)
        put_lease(connection, "a", "running", memory_bytes=80 * GIB, container_id="c0")
        put(connection, "lease_devices", lease_id="a" * 32, ordinal=0, device_uuid="GPU-0")
        put_interval(connection, "a", 1, None)
        put_lease(connection, "b", "waiting")
        put_lease(connection, "c", "closed", device_count=2, memory_bytes=160 * GIB, reason="stopped")
        for ordinal in (0, 1):
            put(connection, "lease_devices", lease_id="c" * 32, ordinal=ordinal, device_uuid=f"GPU-{ordinal}")
        put_interval(connection, "c", 2, "2026-01-01 12:01:40.000000")
        if revision >= "0002":
            slice_ = {"mode": "slice", "mps": True, "memory_bytes": 9 * GIB, "compute_percent": 25.0}
            put_lease(connection, "d", "running", container_id="c1", **slice_)
            put(connection, "lease_devices", lease_id="d" * 32, ordinal=0, device_uuid="GPU-1")
            put_interval(connection, "d", 1, None)
        if revision >= "0003":
            put(
                connection, "ended_processes", at=AT, offence="over_quota", hub="hub", user="a", server="",
                container_id="c0", device_uuid="GPU-0", pid=7, name="python", used_bytes=1, over_seconds=1.0,
                sentence="It was ended.",
            )  # fmt: skip
    engine.dispose()


@pytest.mark.parametrize("revision", REVISIONS)
async def test_leases_of_an_older_ledger_go_on(path: str, times: Any, revision: str) -> None:
    make_old(path, revision)
    times.wall = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    times.pass_seconds(60)
    ledger = times.make_ledger(path, owner="me", beat_seconds=1000)
    await ledger.open()
    try:
        living = {lease.id[0]: lease for lease in await ledger.living()}
        assert [living[name].want for name in "ab"] == [Want(1)] * 2
        assert (living["a"].device_uuids, living["a"].memory_bytes) == (("GPU-0",), 80 * GIB)
        assert (living["a"].device_fractions, living["a"].groups, living["a"].node) == ((), (), "")
        allocator = Allocator(ledger, clock=times.now)
        await allocator.load([GPU, GPU1], SLICED)
        running, waiting = allocator.leases()[:2]
        assert [running.state, waiting.state] == [LeaseState.RUNNING, LeaseState.WAITING]
        assert (running.device_fractions, running.node) == ((1.0,), "gpu-box")
        await allocator.begin_release("a" * 32, "stopped")
        await allocator.close("a" * 32)
        assert allocator.leases()[0].device_uuids == ("GPU-0",)
        ever = datetime(2025, 1, 1, tzinfo=UTC)
        assert await ledger.gpu_seconds("a", ever) == 60.0
        assert await ledger.gpu_seconds("c", ever) == 200.0  # what it was charged with before
        if revision >= "0002":  # the whole interval, also what came before the upgrade, is an eighth's
            assert await ledger.gpu_seconds("d", ever) == 60.0 / 8
        assert [each.pid for each in await ledger.ended()] == ([7] if revision >= "0003" else [])
        assert [lease.id[0] for lease in await ledger.history()] == ["c", "a"]
        other = times.make_ledger(path, owner="other", beat_seconds=1000)
        await other.open()
        assert await other.living() == ()  # the first broker that opened it has claimed them
        await other.close()
    finally:
        await ledger.close()


@pytest.mark.parametrize("revision", REVISIONS)
async def test_an_upgraded_ledger_is_like_a_new_one(path: str, times: Any, revision: str) -> None:
    make_old(path, revision)
    ledger = times.make_ledger(path)
    await ledger.open()
    await ledger.close()
    engine = sa.create_engine(path)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == HEAD
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


async def test_a_slice_is_the_same_after_a_restart(path: str, times: Any) -> None:
    ledger = times.make_ledger(path)
    await ledger.open()
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU1], SLICED)
    requests = [
        GpuRequest("a" * 32, "hub", "anna", "", "s", Want(1, mode=Mode.SLICE, memory_bytes=4 * GIB)),
        GpuRequest("b" * 32, "hub", "bob", "", "s", Want(1, None, Mode.SLICE, "class", compute_percent=9.0)),
    ]
    leases = [await allocator.acquire(request) for request in requests]
    assert [(lease.memory_bytes, lease.compute_percent, lease.mps) for lease in leases] == [
        (4 * GIB, 25.0, True),
        (10 * GIB, 9.0, True),
    ]
    await ledger.close()
    again = times.make_ledger(path)
    await again.open()
    try:
        assert await again.living() == tuple(leases)
        allocator = Allocator(again, clock=times.now)
        await allocator.load([GPU1], SLICED)
        (view,) = allocator.snapshot().devices
        assert view.holders == tuple(leases)
        assert [await allocator.acquire(request) for request in requests] == leases
    finally:
        await again.close()


def test_a_lease_has_a_column_for_everything() -> None:
    elsewhere = ("want", "device_uuids", "device_fractions", "groups")
    fields = {name for name in Lease.__dataclass_fields__ if name not in elsewhere}
    sizes = {
        "memory_bytes": "slice_memory_bytes",
        "compute_percent": "slice_compute_percent",
        "node": "home_node",
    }
    asked = {sizes.get(name, name) for name in Want.__dataclass_fields__}
    assert {column.name for column in metadata.tables["leases"].columns} - {
        "number",
        "owner",
    } == fields | asked
