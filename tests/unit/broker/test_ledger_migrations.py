"""A ledger of an older version opens, and its leases go on."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from gpuspawner.broker.decide.sharing_rules import SharingRules
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger.migrate import MIGRATIONS
from gpuspawner.broker.ledger.schema import HEAD, metadata
from gpuspawner.core.model import Device, GpuRequest, Lease, LeaseState, Mode
from gpuspawner.core.want import Want

GIB = 1 << 30
GPU = Device("GPU-0", "H100 80GB", 80 * GIB, index=0)
SLICED = {"GPU-0": SharingRules("class", Mode.SLICE, slices=8, mps=True)}
COLUMNS = (
    "id, hub, user, server, tier, state, device_count, created_at, since, model, memory_bytes, "
    "compute_percent, container_id, notice, reason"
)


def make_old(path: Path) -> None:
    """A ledger as version 0001 wrote it: a running lease of a whole device and one that waits."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    at = "2026-01-01 12:00:00.000000"
    with sqlite3.connect(path) as rows:
        for name, state, size, container in (("a", "running", 80 * GIB, "c0"), ("b", "waiting", 0, None)):
            values = (
                name * 32,
                "hub",
                name,
                "",
                "gpu",
                state,
                1,
                at,
                at,
                None,
                size,
                100.0,
                container,
                "",
                "",
            )
            rows.execute(f"INSERT INTO leases ({COLUMNS}) VALUES ({', '.join('?' * 15)})", values)
        rows.execute("INSERT INTO lease_devices VALUES (?, 0, 'GPU-0')", ("a" * 32,))
    rows.close()


async def test_leases_of_an_older_ledger_go_on(path: Path, times: Any) -> None:
    make_old(path)
    ledger = times.make_ledger(path)
    await ledger.open()
    try:
        living = {lease.id[0]: lease for lease in await ledger.living()}
        assert [(lease.want.mode, lease.mps, lease.want.pool) for lease in living.values()] == [
            (Mode.WHOLE, False, None)
        ] * 2
        assert (living["a"].device_uuids, living["a"].memory_bytes) == (("GPU-0",), 80 * GIB)
        allocator = Allocator(ledger, clock=times.now)
        await allocator.load([GPU])
        assert [lease.state for lease in allocator.leases()] == [LeaseState.RUNNING, LeaseState.WAITING]
        await allocator.begin_release("a" * 32, "stopped")
        await allocator.close("a" * 32)
        assert allocator.leases()[0].device_uuids == ("GPU-0",)
    finally:
        await ledger.close()


async def test_an_upgraded_ledger_is_like_a_new_one(path: Path, times: Any, query: Any) -> None:
    make_old(path)
    ledger = times.make_ledger(path)
    await ledger.open()
    await ledger.close()
    assert query("SELECT version_num FROM alembic_version") == [(HEAD,)]
    columns = {row[1] for row in query("PRAGMA table_info(leases)")}
    assert columns == {column.name for column in metadata.tables["leases"].columns}


async def test_a_slice_is_the_same_after_a_restart(path: Path, times: Any) -> None:
    ledger = times.make_ledger(path)
    await ledger.open()
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU], SLICED)
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
        await allocator.load([GPU], SLICED)
        (view,) = allocator.snapshot().devices
        assert view.holders == tuple(leases)
        assert [await allocator.acquire(request) for request in requests] == leases
    finally:
        await again.close()


def test_a_lease_has_a_column_for_everything() -> None:
    fields = {name for name in Lease.__dataclass_fields__ if name not in ("want", "device_uuids")}
    sizes = {"memory_bytes": "slice_memory_bytes", "compute_percent": "slice_compute_percent"}
    asked = {sizes.get(name, name) for name in Want.__dataclass_fields__}
    assert {column.name for column in metadata.tables["leases"].columns} - {"number"} == fields | asked
