"""Leases in turns in allocator and ledger: who is charged for what, through restarts and lost ledgers."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.decide.book import QueueRules
from gpuspawner.broker.decide.line.fairshare import FairShare
from gpuspawner.broker.decide.line.queue import Claim
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.decide.turns import Rank
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core import labels
from gpuspawner.core.errors import LedgerFault
from gpuspawner.core.model import Device, GpuRequest, Lease, LeaseState, Mode
from gpuspawner.core.want import Want
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.lease_examples import NOON

GIB = 1 << 30
DEVICES = (Device("GPU-1", "H100", 80 * GIB, index=0), Device("GPU-2", "H100", 80 * GIB, index=1))
SEATS = SharingRules("turns", Mode.TURNS, reserve_bytes=3 * GIB, seats=4)
WANT = Want(1, mode=Mode.TURNS, memory_bytes=24 * GIB)


async def broker_on(ledger: Ledger, times: Any) -> Allocator:
    allocator = Allocator(ledger, clock=lambda: times.wall)
    await allocator.load(DEVICES, {device.uuid: SEATS for device in DEVICES})
    return allocator


@pytest.fixture
async def allocator(ledger: Ledger, times: Any) -> Allocator:
    return await broker_on(ledger, times)


async def start(allocator: Allocator, number: int = 1) -> Lease:
    request = GpuRequest(f"{number:032x}", "hub", "ada", f"server-{number}", "turns", WANT)
    lease = await allocator.acquire(request)
    return await allocator.set_running(lease.id, f"container-{number}")


async def test_gpu_seconds_run_only_while_a_lease_is_awake(
    allocator: Allocator, ledger: Ledger, times: Any
) -> None:
    lease = await start(allocator)
    assert (lease.state, lease.gpu_fraction, lease.memory_bytes) == (LeaseState.ASLEEP, 1.0, 24 * GIB)
    times.pass_seconds(100)
    assert await ledger.gpu_seconds("ada", NOON) == 0.0
    for _ in range(3):
        woken = await allocator.wake(lease.id)
        assert woken is not None
        assert woken.state is LeaseState.RUNNING
        assert await allocator.wake(lease.id) is None
        times.pass_seconds(10)
        slept = await allocator.sleep(lease.id)
        assert slept is not None
        assert slept.device_uuids == ("GPU-1", "GPU-2")  # its seat stays
        assert await allocator.sleep(lease.id) is None
        times.pass_seconds(1000)
    assert await ledger.gpu_seconds("ada", NOON) == 30.0  # one GPU, although it reaches two


async def test_a_group_s_guarantee_in_turns_is_what_it_does_not_hold_elsewhere(
    ledger: Ledger, times: Any
) -> None:
    """Two GPUs are guaranteed; one is held whole, and of two seats one computes: the plan counts that one."""

    def claim(lease: Lease) -> Claim:
        return Claim(group="lab", guaranteed_devices=2.0)

    rules = QueueRules(claim=claim, fair=FairShare())
    allocator = Allocator(ledger, clock=lambda: times.wall, rules=rules)
    whole = Device("GPU-3", "H100", 80 * GIB, index=2)
    await allocator.load([*DEVICES, whole], {device.uuid: SEATS for device in DEVICES})
    seats = [await start(allocator, number) for number in (1, 2)]
    assert [allocator.turn_rank(seat) for seat in seats] == [Rank(0, (0, 0), "lab", 2.0)] * 2
    await allocator.wake(seats[0].id)
    assert [allocator.turn_rank(seat) for seat in seats] == [Rank(0, (0, 0), "lab", 2.0)] * 2
    held = await allocator.acquire(GpuRequest("9" * 32, "hub", "bo", "", "gpu", Want(1)))
    assert held.device_uuids == ("GPU-3",)
    assert [allocator.turn_rank(seat) for seat in seats] == [Rank(0, (0, 0), "lab", 1.0)] * 2
    await allocator.sleep(seats[0].id)
    await allocator.begin_release(held.id, "stopped")
    await allocator.close(held.id)
    assert [allocator.turn_rank(seat) for seat in seats] == [Rank(0, (0, 0), "lab", 2.0)] * 2


async def test_a_turn_that_is_recorded_late_counts_from_when_it_was(
    allocator: Allocator, ledger: Ledger, times: Any
) -> None:
    lease = await start(allocator)
    times.pass_seconds(60)
    await allocator.wake(lease.id, ago_seconds=20)
    times.pass_seconds(10)
    await allocator.sleep(lease.id, ago_seconds=5)
    assert await ledger.gpu_seconds("ada", NOON) == 25.0


async def test_a_release_ends_an_interval_and_nothing_wakes_it_again(
    allocator: Allocator, ledger: Ledger, times: Any
) -> None:
    lease = await start(allocator)
    await allocator.wake(lease.id)
    times.pass_seconds(7)
    await allocator.begin_release(lease.id, "stopped")
    times.pass_seconds(7)
    assert await allocator.wake(lease.id) is None
    assert await allocator.sleep(lease.id) is None
    await allocator.close(lease.id)
    assert await allocator.sleep(lease.id) is None
    assert await ledger.gpu_seconds("ada", NOON) == 7.0


async def test_what_the_ledger_refuses_changes_nothing(
    allocator: Allocator, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await start(allocator)

    def full(change: Any) -> int:
        raise LedgerFault("The disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "commit", full)
        with pytest.raises(LedgerFault):
            await allocator.wake(lease.id)
    assert allocator.lease(lease.id) == lease
    woken = await allocator.wake(lease.id)
    assert woken is not None


async def test_a_new_broker_reads_who_is_awake_and_adopts_who_is_unknown(
    allocator: Allocator, ledger: Ledger, times: Any
) -> None:
    lease = await start(allocator)
    await allocator.wake(lease.id)
    times.pass_seconds(5)
    again = await broker_on(ledger, times)
    found = again.lease(lease.id)
    assert found is not None
    assert found.state is LeaseState.RUNNING
    # Another, whose lease was in a lost part of the ledger: its labels say all GPUs that it reaches.
    other = replace(lease, id="f" * 32, server="other", container_id="container-f")
    container = labels.parse(labels.lease_labels(other))
    adopted = await again.adopt(container.lease("container-f", times.wall, 160 * GIB))
    assert (adopted.state, adopted.device_uuids) == (LeaseState.ASLEEP, ("GPU-1", "GPU-2"))
    assert (adopted.memory_bytes, adopted.want) == (24 * GIB, WANT)


STEPS = st.lists(
    st.tuples(st.sampled_from(["wake", "sleep", "pass", "clock", "broker"]), st.integers(1, 500)), max_size=25
)


@settings(max_examples=25)
@given(STEPS)
def test_what_is_charged_is_the_time_awake(new_times: Any, steps: list[tuple[str, int]]) -> None:
    """Whatever happens between: turns, brokers that are killed, a clock that somebody sets."""

    async def walk(path: Path) -> None:
        times, awake, charged = new_times(), False, 0.0
        ledger = times.make_ledger(path)
        await ledger.open()
        allocator = await broker_on(ledger, times)
        lease = await start(allocator)
        for step, seconds in steps:
            if step == "broker":
                await ledger.close()
                ledger = times.make_ledger(path)
                await ledger.open()
                allocator = await broker_on(ledger, times)
            elif step == "clock":
                times.set_clock(seconds)
            elif step == "pass":
                times.pass_seconds(seconds)
                charged += seconds * awake
            else:
                await (allocator.wake if step == "wake" else allocator.sleep)(lease.id)
                awake = step == "wake"
        assert await ledger.gpu_seconds("ada", NOON - timedelta(days=1)) == pytest.approx(charged)
        await ledger.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(walk(Path(folder) / "ledger.sqlite"))
