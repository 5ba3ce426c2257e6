"""Who held which device when, from the ledger."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Held, Ledger

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
