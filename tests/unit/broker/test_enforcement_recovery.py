"""What the enforcement mends: daemons that died or hung unwatched, full disks, GPUs that hang, early ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gpuspawner.broker.decide.place.devices import MISSING
from gpuspawner.broker.decide.place.pooling import Pooling
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.core.errors import DeviceFault, LedgerFault
from gpuspawner.core.model import DeviceHealth
from gpuspawner.node.api import MpsEvent, MpsState
from gpuspawner.node.guard.guard import GuardEvent
from gpuspawner.node.guard.judge import Offence
from gpuspawner.node.inventory import ComputeMode
from gpuspawner.node.mps.daemon import BACK, DIED

from tests.soon import SOON_SECONDS
from tests.unit.slice_machine import DEVICES, NEEDS_ROOT, NOW, SLICED, A, B, C, Machine, machine_in, until

pytestmark = NEEDS_ROOT


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """Three GPUs, two of them for slices."""
    async with machine_in(tmp_path) as machine:
        yield machine


def order(machine: Machine, text: str) -> None:
    machine.place().make()
    (machine.place().log / "orders").write_text(text)


async def test_a_daemon_that_hangs_at_a_restart_is_replaced_and_its_gpu_comes_back(machine: Machine) -> None:
    broker = await machine.broker()
    lease = await machine.lease(running=False)
    await broker.prepare(lease)
    before = machine.pid()
    await machine.end()
    order(machine, "hang")
    await machine.broker()
    await until(lambda: not machine.healthy(A))
    order(machine, "")
    await until(lambda: machine.healthy(A))
    assert machine.pid() not in (None, before)
    await until(lambda: len(machine.holders.told) == 2)
    assert machine.holders.told == [(lease.id, DIED), (lease.id, BACK)]


async def test_who_lost_a_daemon_while_there_was_no_broker_is_told(machine: Machine) -> None:
    """As under systemd without `KillMode=process`: the daemon ends with the broker."""
    broker = await machine.broker()
    lease = await machine.lease(running=False)
    await broker.prepare(lease)
    before = machine.pid()
    await machine.end()
    os.kill(before or 0, signal.SIGKILL)
    await until(lambda: machine.pid() is None)
    await machine.broker()
    await until(lambda: machine.holders.told)
    assert machine.pid() not in (None, before)
    assert machine.holders.told == [(lease.id, BACK)]


async def test_what_a_killed_broker_left_ends_with_its_successor(machine: Machine) -> None:
    """Its last lease ended meanwhile; the successor itself ends before the GPU was idle for long."""
    broker = await machine.broker(managed=frozenset({A}))
    lease = await machine.lease(running=False)
    await broker.prepare(lease)
    await machine.end()
    await machine.close(lease)
    assert machine.inventory.compute_mode(A) is ComputeMode.EXCLUSIVE_PROCESS
    await machine.broker(managed=frozenset({A}))
    await machine.end()
    assert machine.pid() is None
    assert machine.inventory.compute_mode(A) is ComputeMode.DEFAULT


async def test_a_daemon_that_starts_when_nobody_waits_any_more_ends_too(machine: Machine) -> None:
    machine.idle_seconds = 0.2
    broker = await machine.broker(managed=frozenset({A}))
    order(machine, "no-start")
    lease = await machine.lease(running=False)
    with pytest.raises(DeviceFault):
        await broker.prepare(lease)
    await machine.close(lease)
    order(machine, "")
    await until(lambda: machine.healthy(A))
    await until(lambda: machine.pid() is None)
    await until(lambda: machine.inventory.compute_mode(A) is ComputeMode.DEFAULT)


async def test_a_gpu_whose_return_can_not_be_recorded_comes_back_later(machine: Machine) -> None:
    broker = await machine.broker()
    lease = await machine.lease(running=False)
    await broker.prepare(lease)
    refused: list[DeviceHealth] = []
    record = machine.holders.set_health

    async def full(health: DeviceHealth) -> None:
        if health.healthy:
            refused.append(health)
            raise LedgerFault("The disk is full")
        await record(health)

    machine.holders.set_health = full  # type: ignore[method-assign]
    os.kill(machine.pid() or 0, signal.SIGKILL)
    await until(lambda: len(refused) > 1)
    assert not machine.healthy(A)
    machine.holders.set_health = record  # type: ignore[method-assign]
    await until(lambda: machine.healthy(A))


async def test_a_notice_that_can_not_be_written_is_given_later_unless_there_is_newer(
    machine: Machine,
) -> None:
    await machine.broker()
    lease, other = await machine.lease(running=False), await machine.lease(running=False)
    event = GuardEvent(NOW, Offence.MEMORY, "c" * 64, lease.id, A, 7, "python3", 9, 8, 2.0, "First.")
    tell, refused = machine.holders.tell, []

    async def full(lease_id: str, sentence: str) -> None:
        refused.append(sentence)
        raise LedgerFault("The disk is full")

    machine.holders.tell = full  # type: ignore[method-assign]
    await machine.node.report(event)
    await machine.node.report(MpsEvent(A, MpsState.RUNNING, notice="Second."))
    await machine.node.report(MpsEvent(B, MpsState.RUNNING, notice="Third."))
    await until(lambda: len(refused) > 6)
    machine.holders.tell = tell  # type: ignore[method-assign]
    await until(lambda: len(machine.holders.told) == 2)
    await asyncio.sleep(0.2)
    assert sorted(machine.holders.told) == [(lease.id, "Second."), (other.id, "Third.")]


async def test_a_leased_gpu_that_is_not_found_is_one_where_nothing_is_held(machine: Machine) -> None:
    broker = await machine.broker()
    lease = await machine.lease(running=False)
    assert broker.blind() == {}
    await broker.extend(Pooling(DEVICES[1:], {B: SLICED, C: SharingRules("whole")}))
    assert (lease.device_uuids, broker.blind()) == ((A,), {A: MISSING})
    await machine.close(lease)
    assert broker.blind() == {}


async def test_a_gpu_that_hangs_in_nvml_leaves_the_others_compute_modes_alone(machine: Machine) -> None:
    broker = await machine.broker(managed=frozenset({A, B}))
    first, second = await machine.lease(running=False), await machine.lease(running=False)
    assert (first.device_uuids, second.device_uuids) == ((A,), (B,))
    ask, asked, goes_on = machine.inventory.compute_mode, threading.Event(), threading.Event()

    def hanging(uuid: str) -> ComputeMode:
        if uuid == A:
            asked.set()
            goes_on.wait(2 * SOON_SECONDS)
        return ask(uuid)

    machine.inventory.compute_mode = hanging  # type: ignore[method-assign]
    waiting = asyncio.create_task(broker.prepare(first))
    await until(asked.is_set)
    async with asyncio.timeout(SOON_SECONDS):
        await broker.prepare(second)
    assert not waiting.done()
    goes_on.set()
    await waiting
    assert [ask(uuid) for uuid in (A, B)] == [ComputeMode.EXCLUSIVE_PROCESS] * 2
    await machine.close(first)
    await machine.close(second)
    await machine.end()
    assert [ask(uuid) for uuid in (A, B)] == [ComputeMode.DEFAULT] * 2


async def test_a_gpu_whose_mps_failed_comes_back_although_everybody_has_left(machine: Machine) -> None:
    """It is tried until it runs, whoever leaves and however long nobody uses it; then it ends as idle."""
    machine.idle_seconds = 0.2
    broker = await machine.broker(managed=frozenset({A}))
    lease = await machine.lease()
    await broker.prepare(lease)
    order(machine, "no-start")
    os.kill(machine.pid() or 0, signal.SIGKILL)
    await until(lambda: not machine.healthy(A))
    await machine.close(lease)
    await asyncio.sleep(1.0)  # nobody has used it for five times as long as a daemon may be idle
    assert not machine.healthy(A)
    order(machine, "")
    await until(lambda: machine.healthy(A))
    await until(lambda: machine.pid() is None)
    await until(lambda: machine.inventory.compute_mode(A) is ComputeMode.DEFAULT)
    assert machine.healthy(A)
    assert {(await machine.lease()).device_uuids for _ in range(2)} == {(A,), (B,)}


async def test_a_gpu_whose_mps_failed_at_the_start_comes_back_although_everybody_has_left(
    machine: Machine,
) -> None:
    machine.idle_seconds = 0.2
    broker = await machine.broker()
    order(machine, "fail")
    lease = await machine.lease(running=False)
    with pytest.raises(DeviceFault):
        await broker.prepare(lease)
    await machine.close(lease)
    await asyncio.sleep(0.5)
    assert not machine.healthy(A)
    order(machine, "")
    await until(lambda: machine.healthy(A))
