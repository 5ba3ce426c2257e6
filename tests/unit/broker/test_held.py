"""Who held which device when, from the ledger."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Held, Ledger
from gpuspawner.broker.ledger.held import read
from gpuspawner.broker.ledger.schema import awake, lease_devices, leases

from tests.unit.lease_examples import GPU0, GPU1, NOON, A, B, C, request


async def end(allocator: Allocator, lease_id: str) -> None:
    await allocator.begin_release(lease_id, "stopped")
    await allocator.close(lease_id)


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


async def test_who_held_what_when(ledger: Ledger, times: Any) -> None:
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0, GPU1])
    await allocator.acquire(request(A, 2))
    await allocator.set_running(A, "c0")
    times.pass_seconds(600)
    await end(allocator, A)
    await allocator.acquire(request(B))
    times.pass_seconds(60)
    await allocator.set_running(B, "c1")
    times.pass_seconds(60)
    a = (A, "hub", "user-a", "", "gpu", NOON, NOON + minutes(10))
    b = (B, "hub", "user-b", "", "gpu", NOON + minutes(11), None)
    both = {GPU0.uuid, GPU1.uuid}
    assert await ledger.held(NOON, both) == (Held("GPU-0", *a), Held("GPU-0", *b), Held("GPU-1", *a))
    assert await ledger.held(NOON, {GPU1.uuid}) == (Held("GPU-1", *a),)
    assert await ledger.held(NOON + minutes(10.5), both) == (Held("GPU-0", *b),)
    assert await ledger.held(NOON, ()) == ()


async def test_when_users_last_had_a_gpu(ledger: Ledger, times: Any) -> None:
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0])
    await allocator.acquire(request(A))
    await allocator.acquire(request(B))
    times.pass_seconds(60)
    await allocator.begin_release(B, "it was given up")  # it never had a GPU
    await end(allocator, A)
    times.pass_seconds(60)
    await allocator.acquire(request(C))  # it has one now
    many = [f"user-{number}" for number in range(1200)]
    found = await ledger.last_ended("hub", ["user-a", "user-b", "user-c", *many])
    assert found == {"user-a": NOON + minutes(1)}
    assert await ledger.last_ended("another", ["user-a"]) == {}


async def test_a_day_is_read_without_the_years_before(database: str, times: Any) -> None:
    """Both databases find the day's intervals by their ends, however long the history is."""
    ledger = times.make_ledger(database)
    await ledger.open()
    await ledger.close()
    engine = sa.create_engine(database)
    statements: list[tuple[str, Any]] = []
    with engine.begin() as connection:
        put_history(connection, 4000)
        sa.event.listen(connection, "before_cursor_execute", lambda *call: statements.append(call[2:4]))
        found = read(connection, NOON - timedelta(days=1), ["GPU-0"])
        (text, values), *_ = statements
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        plan = " ".join(map(str, connection.exec_driver_sql(explain + text, values).all()))
    engine.dispose()
    assert [each.lease_id for each in found] == [f"{number:032x}" for number in range(24, 0, -1)]
    assert "awake_by_end" in plan
    assert "SCAN" not in plan  # SQLite's word for reading a whole table
    assert "Seq Scan on awake" not in plan


def put_history(connection: sa.Connection, hours: int) -> None:
    """A lease an hour, of half an hour each, the last one an hour ago."""
    starts = {f"{number:032x}": NOON - timedelta(hours=number) for number in range(1, hours + 1)}
    fixed = {
        "hub": "hub", "user": "ada", "server": "", "tier": "gpu", "state": "closed", "device_count": 1,
        "memory_bytes": 0, "compute_percent": 100.0, "notice": "", "reason": "",
    }  # fmt: skip
    connection.execute(
        leases.insert(), [{**fixed, "id": each, "created_at": at, "since": at} for each, at in starts.items()]
    )
    connection.execute(
        lease_devices.insert(),
        [{"lease_id": each, "ordinal": 0, "device_uuid": "GPU-0"} for each in starts],
    )
    interval = {"device_count": 1, "seconds": 1800.0, "boot_id": "boot", "steady_start_seconds": 0.0}
    connection.execute(
        awake.insert(),
        [
            {
                **interval,
                "lease_id": each,
                "started_at": at,
                "seen_at": at,
                "ended_at": at + timedelta(minutes=30),
            }
            for each, at in starts.items()
        ],
    )
    connection.exec_driver_sql("ANALYZE")
