"""The allocator through restarts, failed commits, cancelled callers and crowds."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from gpuspawner.broker.decide.snapshot import Capacity, DeviceView, Snapshot
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core.errors import LeaseConflict, LedgerFault, NoCapacity
from gpuspawner.core.model import Device, DeviceHealth, GpuRequest, Lease
from gpuspawner.core.want import Want

from tests.unit.lease_examples import (
    GPU0,
    GPU1,
    GPU2,
    NOON,
    RELEASING,
    RESERVED,
    RUNNING,
    SIZE,
    WAITING,
    A,
    B,
    C,
    D,
    lease,
    request,
)  # fmt: skip

NOTICE = (
    "GPU 0 has been out of service since 2025-03-01 10:21 UTC: XID 79: GPU has fallen off the bus."
    " Save your work, stop this server and start a new one."
)
LOST = DeviceHealth(
    "GPU-0", False, "XID 79: GPU has fallen off the bus", datetime(2025, 3, 1, 10, 21, tzinfo=UTC)
)


async def test_a_restart_keeps_leases_and_places(allocator: Allocator, ledger: Ledger, times: Any) -> None:
    for lease_id in (A, B, C, D):
        await allocator.acquire(request(lease_id))
    await allocator.set_running(A, "c0")
    await allocator.begin_release(B, "stopped")
    times.set_clock(-7200)
    again = Allocator(ledger, clock=times.now)
    await again.load([GPU0, GPU1])
    assert again.snapshot() == allocator.snapshot()


async def test_a_device_that_is_gone_stays_with_its_lease(
    allocator: Allocator, ledger: Ledger, times: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await allocator.acquire(request(A))
    again = Allocator(ledger, clock=times.now)
    with caplog.at_level(logging.WARNING):
        await again.load([GPU1])
    missing = "it was not found when the broker started"
    notice = (
        f"GPU GPU-0 has been out of service since 2025-03-01 12:00 UTC: {missing}."
        " Save your work, stop this server and start a new one."
    )
    kept = lease(A, RESERVED, "GPU-0", notice=notice)
    placeholder = Device("GPU-0", "not found", SIZE)
    assert again.snapshot() == Snapshot(
        (
            DeviceView(GPU1, DeviceHealth("GPU-1", True), ()),
            DeviceView(placeholder, DeviceHealth("GPU-0", False, missing, NOON), (kept,)),
        ),
        (kept,),
        (),
    )
    assert caplog.messages == [
        f"A leased device was not found: GPU-0 user=user-a server=- lease={A} devices=GPU-0 container=-"
    ]
    assert await again.set_health(DeviceHealth("GPU-0", True)) == ()  # still withdrawn: its size isn't known
    assert again.capacity(Want(1)) == Capacity(free=1, total=1, waiting=0)
    back = Allocator(ledger, clock=times.now)
    await back.load([GPU0, GPU1])
    assert back.leases() == (lease(A, RESERVED, "GPU-0"),)
    assert (await back.acquire(request(B))).device_uuids == ("GPU-1",)
    await again.begin_release(A, "stopped")
    await again.close(A)
    assert [view.device for view in again.snapshot().devices] == [GPU1]


async def test_a_device_that_is_found_late_goes_on_with_its_lease(
    allocator: Allocator, ledger: Ledger, times: Any
) -> None:
    for lease_id in (A, B, C):
        await allocator.acquire(request(lease_id))
    again = Allocator(ledger, clock=times.now)
    await again.load([])
    assert again.misses_devices()
    assert await again.add([GPU1], {}) == (lease(B, RESERVED, "GPU-1"),)  # its notice is gone
    assert await again.add([GPU1, GPU2], {}) == ()
    assert again.lease(C) == lease(C, RESERVED, "GPU-2")  # nobody holds that one: the queue advances
    assert again.misses_devices()
    await again.add([GPU0], {})
    assert not again.misses_devices()
    assert [(view.device, view.health.healthy, view.holders) for view in again.snapshot().devices] == [
        (GPU0, True, (lease(A, RESERVED, "GPU-0"),)),
        (GPU1, True, (lease(B, RESERVED, "GPU-1"),)),
        (GPU2, True, (lease(C, RESERVED, "GPU-2"),)),
    ]
    await again.begin_release(A, "stopped")
    await again.close(A)
    assert again.capacity(Want(1)) == Capacity(free=1, total=3, waiting=0)


async def test_waiting_for_devices_that_are_gone(allocator: Allocator, ledger: Ledger, times: Any) -> None:
    await allocator.acquire(request(A))
    await allocator.acquire(request(B, 2))
    again = Allocator(ledger, clock=times.now)
    await again.load([GPU1])
    assert again.lease(B) == lease(B, WAITING, count=2)
    with pytest.raises(NoCapacity):
        await again.acquire(request(B, 2))
    assert again.lease(B) is None
    assert await again.acquire(request(C)) == lease(C, RESERVED, "GPU-1")


async def test_a_ledger_that_gives_a_device_twice(
    ledger: Ledger, times: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An invariant broke somewhere else: it is said, and the device is free only when both have ended."""
    await ledger.save(lease(A, RUNNING, "GPU-0"), lease(B, RUNNING, "GPU-0"), at=NOON)
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0])
    assert [(each.levelname, each.message) for each in caplog.records if each.levelno >= logging.WARNING] == [
        (
            "ERROR",
            "The ledger gives a device to two leases; both keep it:"
            f" user=user-b server=- lease={B} devices=GPU-0 container=-",
        )
    ]
    await allocator.acquire(request(C))
    for lease_id, state in ((A, WAITING), (B, RESERVED)):
        await allocator.begin_release(lease_id, "stopped")
        await allocator.close(lease_id)
        found = allocator.lease(C)
        assert found is not None
        assert found.state is state


@pytest.fixture
async def failing(path: Path, times: Any, faulty_ledger: type[Ledger]) -> AsyncIterator[Any]:
    failing = times.make_ledger(path, faulty_ledger)
    await failing.open()
    yield failing
    await failing.close()


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_failed_commit_changes_nothing(failing: Any, times: Any, fault: str) -> None:
    """And if it was written all the same, the next commit takes it back: no device goes to two leases."""
    allocator = Allocator(failing, clock=times.now)
    await allocator.load([GPU0])
    await allocator.acquire(request(A))
    await allocator.acquire(request(B))
    await allocator.begin_release(A, "stopped")
    before = allocator.snapshot()
    failing.fault = fault
    with pytest.raises(LedgerFault):
        await allocator.close(A)  # would give the device to B
    failing.fault = fault
    with pytest.raises(LedgerFault):
        await allocator.acquire(request(C))
    assert allocator.snapshot() == before
    await allocator.begin_release(B, "cancelled")
    assert await failing.living() == allocator.leases() == (lease(A, RELEASING, "GPU-0", reason="stopped"),)
    await allocator.close(A)
    assert await allocator.acquire(request(C)) == lease(C, RESERVED, "GPU-0")
    assert await failing.living() == allocator.leases()


async def test_find_does_not_believe_a_commit_that_failed(failing: Any, times: Any) -> None:
    allocator = Allocator(failing, clock=times.now)
    await allocator.load([GPU0])
    failing.fault = "after"
    running = lease(A, RUNNING, "GPU-0", container_id="c0")
    with pytest.raises(LedgerFault):
        await allocator.adopt(running)
    assert await allocator.find(A) is None
    assert await allocator.adopt(running) == running


async def test_a_broken_device_is_withdrawn_even_if_the_ledger_fails(failing: Any, times: Any) -> None:
    allocator = Allocator(failing, clock=times.now)
    await allocator.load([GPU0])
    await allocator.acquire(request(A))
    failing.fault = "before"
    with pytest.raises(LedgerFault):
        await allocator.set_health(LOST)
    assert allocator.capacity(Want(1)).total == 0
    assert [each.notice for each in await allocator.set_health(LOST)] == [NOTICE]
    failing.fault = "before"
    with pytest.raises(LedgerFault):
        await allocator.set_health(DeviceHealth("GPU-0", True))
    assert allocator.capacity(Want(1)).total == 0
    assert [each.notice for each in await allocator.set_health(DeviceHealth("GPU-0", True))] == [""]


async def test_who_gets_a_place_by_a_loss_gets_it_after_a_failed_commit_too(failing: Any, times: Any) -> None:
    """B waits for three devices, and C behind it; when one breaks, C's turn comes."""
    allocator = Allocator(failing, clock=times.now)
    await allocator.load([GPU0, GPU1, GPU2])
    await allocator.acquire(request(A))
    (held,) = allocator.leases()[0].device_uuids
    lost = DeviceHealth(next(each.uuid for each in (GPU0, GPU1, GPU2) if each.uuid != held), False, "XID 79")
    await allocator.acquire(request(B, count=3))
    assert (await allocator.acquire(request(C))).state is WAITING
    failing.fault = "before"
    with pytest.raises(LedgerFault):
        await allocator.set_health(lost)
    await allocator.set_health(lost)
    assert [each.state for each in allocator.leases()] == [RESERVED, WAITING, RESERVED]


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancelled_caller_leaves_memory_and_ledger_alike(
    allocator: Allocator, ledger: Ledger, turns: int
) -> None:
    """At each await of the step: either it was never asked, or it is wholly there and can be given back."""
    task = asyncio.ensure_future(allocator.acquire(request(A)))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    ended = await allocator.begin_release(A, "cancelled")
    assert ended in (None, lease(A, RELEASING, "GPU-0", reason="cancelled"))
    assert allocator.leases() == await ledger.living() == (() if ended is None else (ended,))
    await allocator.close(A)
    assert allocator.capacity(Want(1)) == Capacity(free=2, total=2, waiting=0)


async def test_thirty_at_once(allocator: Allocator, ledger: Ledger) -> None:
    requests = [
        GpuRequest(f"{number:032x}", "hub", f"user-{number}", "", "gpu", Want(1)) for number in range(30)
    ]
    leases = await asyncio.gather(*map(allocator.acquire, requests))
    assert [each.state for each in leases] == [RESERVED] * 2 + [WAITING] * 28
    assert await ledger.living() == allocator.leases() == tuple(leases)
    for number in range(30):
        await allocator.begin_release(f"{number:032x}", "stopped")
        await allocator.close(f"{number:032x}")
    assert allocator.leases() == ()


async def test_two_requests_of_one_server_at_once(allocator: Allocator) -> None:
    one, other = request(A), replace(request(A), lease_id=B)
    answers = await asyncio.gather(allocator.acquire(one), allocator.acquire(other), return_exceptions=True)
    assert [type(each) for each in answers] == [Lease, LeaseConflict]


async def test_closed_leases_leave_no_trace_in_memory(allocator: Allocator) -> None:
    """Everything that memory holds is reachable from the allocator: after 80 leases it is what it was."""

    def reachable() -> int:
        gc.collect()
        seen: set[int] = set()
        pending: list[object] = [allocator._book, allocator._watches, allocator._doubtful, allocator._steps]
        while pending:
            item = pending.pop()
            if id(item) not in seen and not isinstance(item, type | FunctionType):
                seen.add(id(item))
                pending.extend(gc.get_referents(item))
        return len(seen)

    async def one(number: int) -> weakref.ref[GpuRequest] | None:
        lease_id = f"{number:032x}"
        asked = GpuRequest(lease_id, "hub", f"user-{number}", "", "gpu", Want(1 + number % 2))
        await allocator.acquire(asked)
        async with allocator.watch(lease_id) as changes:
            await anext(changes)
        await allocator.set_running(lease_id, "c")
        await allocator.begin_release(lease_id, "stopped")
        await allocator.close(lease_id)
        return None

    for number in range(4):
        await one(number)
    before = reachable()
    for number in range(4, 84):
        await one(number)
    assert reachable() == pytest.approx(before, abs=5)
