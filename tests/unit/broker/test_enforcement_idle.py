"""Daemons and compute modes that nobody needs any more end; those that somebody needs never do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gpuspawner.node.inventory import ComputeMode

from tests.unit.share_walk import MemoryLedger
from tests.unit.slice_machine import NEEDS_ROOT, A, B, Machine, machine_in, until

pytestmark = NEEDS_ROOT


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """Three GPUs, two of them for slices."""
    async with machine_in(tmp_path) as machine:
        yield machine


async def test_what_nobody_uses_any_more_ends_and_what_is_used_again_stays(machine: Machine) -> None:
    machine.idle_seconds = 1.0
    broker = await machine.broker(managed=frozenset({A}))
    first = await machine.lease()
    await broker.prepare(first)
    before = machine.pid(A)
    await machine.close(first)
    second = await machine.lease()
    assert second.device_uuids == (A,)
    await asyncio.sleep(1.3)
    assert machine.pid(A) == before is not None
    await machine.close(second)
    await until(lambda: machine.pid(A) is None)
    await until(lambda: machine.inventory.compute_mode(A) is ComputeMode.DEFAULT)
    third = await machine.lease()
    await broker.prepare(third)
    assert machine.pid(A) is not None
    assert machine.inventory.compute_mode(A) is ComputeMode.EXCLUSIVE_PROCESS


async def test_a_broker_that_ends_leaves_behind_only_what_is_in_use(machine: Machine) -> None:
    broker = await machine.broker(managed=frozenset({A, B}))
    first, second = await machine.lease(), await machine.lease()
    for lease in (first, second):
        await broker.prepare(lease)
    await machine.close(first)
    await machine.end()
    assert (machine.pid(A), machine.pid(B) is None) == (None, False)
    modes = [machine.inventory.compute_mode(uuid) for uuid in (A, B)]
    assert modes == [ComputeMode.DEFAULT, ComputeMode.EXCLUSIVE_PROCESS]


async def test_after_a_crash_what_nobody_uses_ends_once_docker_was_read(machine: Machine) -> None:
    """The ledger may be lost as well: till Docker has said so, nobody knows that nobody uses it."""
    broker = await machine.broker(managed=frozenset({A}))
    await broker.prepare(await machine.lease())
    machine.holders.ready.clear()  # as after kill -9: nothing is ended
    machine.ledger, machine.idle_seconds = MemoryLedger(), 0.1
    await machine.end()
    await machine.broker(managed=frozenset({A}))
    machine.holders.ready.clear()
    await asyncio.sleep(0.4)
    assert machine.pid(A) is not None
    assert machine.inventory.compute_mode(A) is ComputeMode.EXCLUSIVE_PROCESS
    machine.holders.ready.set()
    await until(lambda: machine.pid(A) is None)
    await until(lambda: machine.inventory.compute_mode(A) is ComputeMode.DEFAULT)
