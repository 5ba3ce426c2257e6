"""Who held which device when, from the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import EndedProcess, EndedSearch, Held, Ledger, OfGroups, Stay, StaySearch
from gpuspawner.broker.ledger.held import read, search
from gpuspawner.broker.ledger.schema import awake, lease_devices, leases

from tests.unit.lease_examples import GPU0, GPU1, NOON, A, B, C, request

T = TypeVar("T")


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
    assert await ledger.servers_ended("hub", ["user-a", "user-b", "user-c", *many]) == {
        ("user-a", ""): NOON + minutes(1), ("user-b", ""): NOON + minutes(1),
    }  # fmt: skip
    assert await ledger.servers_ended("another", ["user-a"]) == {}


async def test_the_past_in_pages_and_by_groups(database: str, times: Any) -> None:
    """On both databases."""
    ledger = times.make_ledger(database)
    await ledger.open()
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([replace(each, node="m1") for each in (GPU0, GPU1)])
    for lease_id, groups in ((A, ("ml", "cs")), (B, ("cs",)), (C, ())):
        await allocator.acquire(replace(request(lease_id), groups=groups))
        await allocator.set_running(lease_id, "c")
        record = EndedProcess(NOON, "memory", lease_id, "hub", "u", "", "c", "GPU-0", 1, "p", 2, 1, 1.0, "s")
        await ledger.record(record)
        times.pass_seconds(60)
        await end(allocator, lease_id)
    ended = EndedProcess(NOON, "memory", None, "", "", "", "c", "GPU-0", 1, "p", 2, 1, 1.0, "s")
    await ledger.record(ended)  # nobody knows whose

    async def stays(**search: Any) -> str:
        found = await ledger.stays(StaySearch(**{"start": NOON, "end": None, "most": 9, **search}))
        return "".join(each.lease_id[0] for each in found)

    assert await stays() == "cba"
    assert (await stays(most=2), await stays(before=2), await stays(user="user-b")) == ("cb", "a", "b")
    assert await stays(start=NOON + minutes(2.5)) == "c"
    assert await stays(end=NOON + minutes(1)) == "a"
    assert (await stays(device_uuid="GPU-0"), await stays(device_uuid="GPU-1")) == ("cba", "")
    of = OfGroups("hub", frozenset({"ml", "cs"}))
    assert await stays(of=of) == "ba"
    assert await stays(of=OfGroups("another", of.groups)) == ""
    assert await stays(of=OfGroups("hub", frozenset())) == ""
    first = (await ledger.stays(StaySearch(NOON, None, 9)))[-1]
    assert first == Stay(
        1, A, "hub", "user-a", "", "gpu", 1.0, NOON, NOON + minutes(1), "m1", ("GPU-0",), ("ml", "cs")
    )
    everything = await ledger.guarded(EndedSearch(9))
    assert [(number, each.lease_id) for number, each in everything] == [(4, None), (3, C), (2, B), (1, A)]
    assert [number for number, _ in await ledger.guarded(EndedSearch(2, before=4))] == [3, 2]
    assert [number for number, _ in await ledger.guarded(EndedSearch(9, of=of))] == [2, 1]
    await ledger.close()


async def test_a_page_of_a_day_is_read_without_the_years_before(database: str, times: Any) -> None:
    day = StaySearch(NOON - timedelta(days=1), None, 500, before=3999)
    found = await read_by_end(
        times.make_ledger(database), database, lambda connection: search(connection, day)
    )
    assert len(found) == 24


async def test_a_day_is_read_without_the_years_before(database: str, times: Any) -> None:
    """Both databases find the day's intervals by their ends, however long the history is."""
    day = NOON - timedelta(days=1)
    ledger = times.make_ledger(database)
    found = await read_by_end(ledger, database, lambda connection: read(connection, day, ["GPU-0"]))
    assert [each.lease_id for each in found] == [f"{number:032x}" for number in range(24, 0, -1)]


async def read_by_end(ledger: Ledger, database: str, ask: Callable[[sa.Connection], T]) -> T:
    """What is read of 4,000 hours of history; the database must find it by the ends of the intervals."""
    await ledger.open()
    await ledger.close()
    engine = sa.create_engine(database)
    statements: list[tuple[str, Any]] = []
    with engine.begin() as connection:
        put_history(connection, 4000)
        sa.event.listen(connection, "before_cursor_execute", lambda *call: statements.append(call[2:4]))
        found = ask(connection)
        (text, values), *_ = statements
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        plan = " ".join(map(str, connection.exec_driver_sql(explain + text, values).all()))
    engine.dispose()
    assert "awake_by_end" in plan
    assert "SCAN" not in plan  # SQLite's word for reading a whole table
    assert "Seq Scan on awake" not in plan
    return found


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
