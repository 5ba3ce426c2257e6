"""The allocator by example: what a caller sees and is told."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from gpuspawner.broker.decide.snapshot import Capacity, Change, DeviceView, QueueEntry, Snapshot
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core.errors import LeaseConflict, NoCapacity
from gpuspawner.core.model import Device, DeviceHealth, GpuRequest
from gpuspawner.core.want import Want

from tests.unit.lease_examples import (
    CLOSED,
    GPU0,
    GPU1,
    NOON,
    RELEASING,
    RESERVED,
    RUNNING,
    SIMULATED,
    SIZE,
    WAITING,
    A,
    B,
    C,
    D,
    lease,
    request,
)  # fmt: skip


async def test_the_way_of_a_lease(allocator: Allocator, ledger: Ledger, times: Any) -> None:
    reserved = lease(A, RESERVED, "GPU-0")
    assert await allocator.acquire(request(A)) == reserved
    assert await ledger.find(A) == reserved
    assert (allocator.lease(A), allocator.leases()) == (reserved, (reserved,))
    assert allocator.of_server("hub", "user-a", "") == (reserved,)
    times.pass_seconds(2)
    running = replace(reserved, state=RUNNING, since=NOON + timedelta(seconds=2), container_id="c0")
    assert await allocator.set_running(A, "c0") == running
    assert await allocator.set_running(A, "c0") == running
    times.pass_seconds(3600)
    ended = replace(running, state=RELEASING, since=NOON + timedelta(seconds=3602), reason="stopped")
    assert await allocator.begin_release(A, "stopped") == ended
    assert await allocator.begin_release(A, "stopped once more") == ended
    times.pass_seconds(1)
    await allocator.close(A)
    await allocator.close(A)
    closed = replace(ended, state=CLOSED, since=NOON + timedelta(seconds=3603))
    assert await ledger.find(A) == await allocator.find(A) == closed
    assert (allocator.lease(A), allocator.leases()) == (None, ())
    assert allocator.of_server("hub", "user-a", "") == ()
    assert await allocator.begin_release(A, "stopped") is None
    assert await ledger.gpu_seconds("user-a", NOON) == 3600.0


async def test_snapshot_and_capacity(allocator: Allocator) -> None:
    for lease_id in (A, B, C):
        await allocator.acquire(request(lease_id))
    first, second = lease(A, RESERVED, "GPU-0"), lease(B, RESERVED, "GPU-1")
    third = lease(C, WAITING)
    assert allocator.snapshot() == Snapshot(
        (
            DeviceView(GPU0, DeviceHealth("GPU-0", True), (first,)),
            DeviceView(GPU1, DeviceHealth("GPU-1", True), (second,)),
        ),
        (first, second, third),
        (QueueEntry(third, 1, 1),),
    )
    assert allocator.capacity(Want(1)) == Capacity(free=0, total=2, waiting=1)
    assert allocator.capacity(Want(1, "h100")) == Capacity(free=0, total=2, waiting=1)
    assert allocator.capacity(Want(1, "A100")) == Capacity(free=0, total=0, waiting=0)
    await allocator.begin_release(A, "stopped")
    assert allocator.capacity(Want(1)) == Capacity(free=0, total=2, waiting=1)  # releasing is not free
    await allocator.begin_release(C, "cancelled")
    await allocator.close(A)
    assert allocator.capacity(Want(1)) == Capacity(free=1, total=2, waiting=0)


@pytest.mark.parametrize(
    ("asked", "refusal", "message"),
    [
        (
            request(A, 3),
            NoCapacity,
            "You asked for 3 GPUs, but this machine has only 2: choose another tier, or CPU.",
        ),
        (
            request(A, 1, "A100"),
            NoCapacity,
            "You asked for a GPU with 'a100' in its name, but this machine has none:"
            " choose another tier, or CPU.",
        ),
        (
            replace(request(B), user="user-z"),
            LeaseConflict,
            "This lease belongs to another request: start the server again.",
        ),
        (request(B, 2), LeaseConflict, "This lease belongs to another request: start the server again."),
        (
            replace(request(B), lease_id=A),
            LeaseConflict,
            "This server's previous lease is still ending: try again in a moment.",
        ),
        (request(C), LeaseConflict, "This lease is being ended: start the server again."),
        (request(D), LeaseConflict, "This lease has ended: start the server again."),
    ],
)
async def test_refused(allocator: Allocator, asked: GpuRequest, refusal: type, message: str) -> None:
    await allocator.acquire(request(D))
    await allocator.begin_release(D, "stopped")
    await allocator.close(D)
    await allocator.acquire(request(B))
    await allocator.acquire(request(C))
    await allocator.begin_release(C, "stopped")
    before = allocator.snapshot()
    with pytest.raises(refusal) as refused:
        await allocator.acquire(asked)
    assert refused.value.message == message
    assert allocator.snapshot() == before


async def test_containers_that_may_not_be(allocator: Allocator) -> None:
    for lease_id in (A, B, C, D):
        await allocator.acquire(request(lease_id))
    await allocator.set_running(A, "c0")
    await allocator.begin_release(B, "stopped")
    await allocator.begin_release(D, "cancelled")
    for lease_id, container_id, message in [
        (A, "c1", "This lease has a container already: start the server again."),
        (B, "c1", "A releasing lease can't get a container: start the server again."),
        (C, "c1", "A waiting lease can't get a container: start the server again."),
        (D, "c1", "This lease has ended: start the server again."),
    ]:
        with pytest.raises(LeaseConflict) as refused:
            await allocator.set_running(lease_id, container_id)
        assert refused.value.message == message
    with pytest.raises(LeaseConflict) as refused:
        await allocator.close(A)
    assert refused.value.message == "A running lease can't be closed before its release has begun."


async def test_watching_the_queue_move(allocator: Allocator) -> None:
    for lease_id in (A, B, C, D):
        await allocator.acquire(request(lease_id))
    async with allocator.watch(D) as changes:
        assert await anext(changes) == Change(lease(D, WAITING), 2, 2)
        await allocator.begin_release(C, "cancelled")
        assert await anext(changes) == Change(lease(D, WAITING), 1, 1)
        await allocator.begin_release(A, "stopped")  # nothing new for D yet
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await allocator.close(A)
        assert await waiting == Change(lease(D, RESERVED, "GPU-0"), None, None)
        await allocator.begin_release(D, "stopped")
        await allocator.close(D)
        ended = lease(D, CLOSED, "GPU-0", reason="stopped")
        assert [change async for change in changes] == [Change(ended, None, None)]
    assert len(allocator._watches) == 0
    with pytest.raises(LeaseConflict) as refused:
        async with allocator.watch(D):
            pass
    assert refused.value.message == "This lease has ended: start the server again."


async def test_two_watchers_and_one_that_goes(allocator: Allocator) -> None:
    for lease_id in (A, B, C):
        await allocator.acquire(request(lease_id))
    async with allocator.watch(C) as first, allocator.watch(C) as second:
        assert await anext(first) == await anext(second) == Change(lease(C, WAITING), 1, 1)
        async with allocator.watch(C) as third:
            assert await anext(third) == Change(lease(C, WAITING), 1, 1)
        await allocator.begin_release(C, "cancelled")
        ended = Change(lease(C, CLOSED, reason="cancelled"), None, None)
        assert await anext(first) == await anext(second) == ended
    assert len(allocator._watches) == 0


NOTICE = (
    "GPU 0 has been out of service since 2025-03-01 10:21 UTC: XID 79: GPU has fallen off the bus."
    " Save your work, stop this server and start a new one."
)
LOST = DeviceHealth(
    "GPU-0", False, "XID 79: GPU has fallen off the bus", datetime(2025, 3, 1, 10, 21, tzinfo=UTC)
)


async def test_a_withdrawn_device_tells_its_holder_and_goes_to_nobody(
    allocator: Allocator, ledger: Ledger
) -> None:
    await allocator.acquire(request(A))
    told = lease(A, RESERVED, "GPU-0", notice=NOTICE)
    async with allocator.watch(A) as changes:
        await anext(changes)
        assert await allocator.set_health(LOST) == (told,)
        assert await anext(changes) == Change(told, None, None)
    assert await allocator.set_health(LOST) == ()
    assert await ledger.find(A) == told
    assert allocator.capacity(Want(1)) == Capacity(free=1, total=1, waiting=0)
    await allocator.begin_release(A, "stopped")
    await allocator.close(A)
    await allocator.acquire(request(B))
    assert allocator.lease(B) == lease(B, RESERVED, "GPU-1")
    assert await allocator.acquire(request(C)) == lease(C, WAITING)  # it may come back, so it is waited for
    assert await allocator.set_health(DeviceHealth("GPU-0", True)) == ()
    assert allocator.lease(C) == lease(C, RESERVED, "GPU-0")


async def test_who_waits_for_a_withdrawn_device_blocks_nobody(allocator: Allocator) -> None:
    """Two GPUs, one out of service: who asks for both waits, is told why, and the other GPU is given out."""
    await allocator.set_health(LOST)
    assert LOST.since is not None
    at = f"{LOST.since.astimezone():%H:%M %Z}"
    out = f"GPU 0 has been out of service since {at}: XID 79: GPU has fallen off the bus."
    obstacle = f"You asked for 2 GPUs, but not enough GPUs are in service now. {out}"
    pair = lease(A, WAITING, count=2)
    assert await allocator.acquire(request(A, 2)) == pair
    assert await allocator.acquire(request(B)) == lease(B, RESERVED, "GPU-1")
    await allocator.acquire(request(C))
    async with allocator.watch(A) as pairs, allocator.watch(C) as singles:
        assert await anext(pairs) == Change(pair, 1, 2, obstacle)
        assert await anext(singles) == Change(lease(C, WAITING), 1, 1, idle_but_out=out)
        await allocator.begin_release(B, "stopped")
        await allocator.close(B)
        assert await anext(singles) == Change(lease(C, RESERVED, "GPU-1"), None, None)
        await allocator.set_health(DeviceHealth("GPU-0", True))
        assert await anext(pairs) == Change(pair, 1, 1)
        # All are healthy again: now it is the first, and keeps the free GPU for itself.
        assert await allocator.acquire(request(D)) == lease(D, WAITING)
        await allocator.begin_release(C, "stopped")
        await allocator.close(C)
        assert await anext(pairs) == Change(lease(A, RESERVED, "GPU-0", "GPU-1", count=2), None, None)


async def test_a_device_that_comes_back_clears_the_notice(allocator: Allocator) -> None:
    await allocator.acquire(request(A))
    await allocator.set_health(LOST)
    assert await allocator.set_health(DeviceHealth("GPU-0", True)) == (lease(A, RESERVED, "GPU-0"),)
    assert allocator.lease(A) == lease(A, RESERVED, "GPU-0")


async def test_notice_of_two_simulated_or_unnumbered_devices(ledger: Ledger, times: Any) -> None:
    nameless = Device("GPU-x", "H100 80GB", SIZE)
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([SIMULATED, nameless])
    await allocator.acquire(request(A, 2))
    await allocator.set_health(DeviceHealth("GPU-2", False, "it can't be read."))
    (told,) = await allocator.set_health(DeviceHealth("GPU-x", False))
    assert told.notice == (
        "Simulated GPU 2 has been out of service since 2025-03-01 12:00 UTC: it can't be read."
        " GPU GPU-x has been out of service since 2025-03-01 12:00 UTC: it can't be used."
        " Save your work, stop this server and start a new one."
    )
    assert await allocator.set_health(DeviceHealth("GPU-unknown", False)) == ()


async def test_adopting_a_container(allocator: Allocator, ledger: Ledger) -> None:
    running = lease(A, RUNNING, "GPU-1", container_id="c0")
    assert await allocator.adopt(replace(running, memory_bytes=1)) == running
    assert await ledger.find(A) == running
    for other, message in [
        (running, "The ledger knows this lease already."),
        (replace(running, id=B), "This server has another lease."),
        (lease(B, RUNNING, "GPU-1"), "A device of this lease is not free, or not on this machine."),
        (lease(B, RUNNING, "GPU-9"), "A device of this lease is not free, or not on this machine."),
        (lease(B, RUNNING), "A device of this lease is not free, or not on this machine."),
    ]:
        with pytest.raises(LeaseConflict) as refused:
            await allocator.adopt(other)
        assert refused.value.message == message
    assert allocator.leases() == (running,)
    await allocator.set_health(LOST)
    adopted = await allocator.adopt(lease(C, RUNNING, "GPU-0", container_id="c1"))
    assert adopted == lease(C, RUNNING, "GPU-0", container_id="c1", notice=NOTICE)


async def test_late_stop_is_not_charged(allocator: Allocator, ledger: Ledger, times: Any) -> None:
    await allocator.acquire(request(A))
    await allocator.set_running(A, "c0")
    times.pass_seconds(600)
    await allocator.begin_release(A, "died", ended_at=NOON + timedelta(seconds=10))
    assert await ledger.gpu_seconds("user-a", NOON) == 10.0


async def test_what_the_log_says(allocator: Allocator, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await allocator.acquire(request(A))
        await allocator.set_running(A, "c" * 64)
        await allocator.set_health(LOST)
        await allocator.begin_release(A, "stopped")
    ending = f"user=user-a server=- lease={A} devices=GPU-0 container="
    assert caplog.messages == [
        f"Lease is reserved: {ending}-",
        f"Lease is running: {ending}{'c' * 12}",
        "Device GPU-0 is out of service: XID 79: GPU has fallen off the bus",
        f"Notice for its user: {NOTICE!r} {ending}{'c' * 12}",
        f"Lease is releasing (stopped): {ending}{'c' * 12}",
    ]
