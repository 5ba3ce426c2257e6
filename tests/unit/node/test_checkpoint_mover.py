"""Pausing, moving and waking whole containers: all their processes or none, whatever fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.node.checkpoint import mover as mover_module
from gpuspawner.node.checkpoint.book import SleepBook
from gpuspawner.node.checkpoint.cgroup import MemoryCgroup
from gpuspawner.node.checkpoint.host import Seat
from gpuspawner.node.checkpoint.mover import Mover, MoverRules, condition_of
from gpuspawner.node.checkpoint.order import (
    HELPER_LOST,
    ILLEGAL_STATE,
    OPERATING_SYSTEM,
    OUT_OF_MEMORY,
    SILENT,
    Operation,
    ProcessState,
)
from gpuspawner.node.checkpoint.outcome import Condition, Obstacle
from gpuspawner.node.processes import Process
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scripted_checkpoint import GIB, UUIDS, A, B, C, Machine, Program

LOCK, CHECKPOINT, RESTORE, UNLOCK = Operation.LOCK, Operation.CHECKPOINT, Operation.RESTORE, Operation.UNLOCK
RUNNING, LOCKED, CHECKPOINTED = ProcessState.RUNNING, ProcessState.LOCKED, ProcessState.CHECKPOINTED
SEAT = Seat("c", 1, UUIDS)
RULES = MoverRules(settle_seconds=1.0, lock_seconds=0.1)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One container with two programs on the first GPU."""
    machine = Machine(tmp_path / "cgroup")
    machine.add(11, gib=8)
    machine.add(12, gib=4)
    return machine


@pytest.fixture(autouse=True)
def _large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: 500 GiB are free."""
    monkeypatch.setattr(MemoryCgroup, "room_bytes", lambda self: 500 * GIB)


@pytest.fixture
def mover(machine: Machine, tmp_path: Path) -> Iterator[Mover]:
    mover = Mover(machine, machine, SleepBook(tmp_path / "asleep.json"), RULES)
    yield mover
    mover.close()


def states(machine: Machine) -> list[ProcessState | None]:
    return [each.state for each in machine.programs.values()]


async def test_pause_locks_every_process_and_wake_unlocks_them(machine: Machine, mover: Mover) -> None:
    paused = await mover.pause(SEAT)
    assert (paused.condition, paused.obstacle, states(machine)) == (Condition.PAUSED, None, [LOCKED, LOCKED])
    woke = await mover.wake(SEAT, A)
    assert (woke.condition, woke.obstacle, states(machine)) == (Condition.AWAKE, None, [RUNNING, RUNNING])
    assert machine.calls == [(LOCK, 11), (LOCK, 12), (UNLOCK, 11), (UNLOCK, 12)]


async def test_sleep_locks_all_before_it_moves_any(machine: Machine, mover: Mover) -> None:
    slept = await mover.sleep(SEAT)
    assert (slept.condition, slept.moved_bytes, slept.process_count) == (Condition.ASLEEP, 12 * GIB, 2)
    assert machine.calls == [(LOCK, 11), (LOCK, 12), (CHECKPOINT, 11), (CHECKPOINT, 12)]
    assert machine.free_bytes(A) == 80 * GIB


async def test_it_wakes_on_another_gpu_with_a_map_of_all_its_device_nodes(
    machine: Machine, mover: Mover
) -> None:
    await mover.sleep(SEAT)
    assert (await mover.wake(SEAT, C)).condition is Condition.AWAKE
    assert machine.maps == [((A, C), (B, B), (C, A))] * 2
    assert machine.on_gpus(UUIDS) == {11: {C: 8 * GIB}, 12: {C: 4 * GIB}}
    await mover.sleep(SEAT)
    await mover.wake(SEAT, B)
    assert machine.maps[2:] == [((A, A), (B, C), (C, B))] * 2
    assert machine.on_gpus(UUIDS) == {11: {B: 8 * GIB}, 12: {B: 4 * GIB}}


async def test_a_plain_restore_where_it_was(machine: Machine, mover: Mover) -> None:
    await mover.sleep(SEAT)
    await mover.wake(SEAT, A)
    assert machine.maps == [(), ()]


async def test_one_that_runs_or_is_paused_elsewhere_is_moved(machine: Machine, mover: Mover) -> None:
    """A new kernel begins on its first GPU, wherever its lease is awake."""
    await mover.pause(SEAT)
    machine.add(13, gib=1, gpu=B)
    assert (await mover.wake(SEAT, B)).condition is Condition.AWAKE
    assert {pid: list(gpus) for pid, gpus in machine.on_gpus(UUIDS).items()} == {11: [B], 12: [B], 13: [B]}


async def test_no_cuda_state_is_asleep_enough(machine: Machine, mover: Mover) -> None:
    machine.programs[12].state = None
    assert (await mover.sleep(SEAT)).condition is Condition.ASLEEP
    machine.programs.pop(11)
    assert (await mover.look(SEAT)) is Condition.NONE
    assert (await mover.sleep(SEAT)).done


async def test_processes_that_appear_meanwhile_are_taken_too(machine: Machine, mover: Mover) -> None:
    machine.arrivals = [Program(Process(pid, pid * 10, "new"), gpus={A: GIB}) for pid in (21, 22, 23)]
    assert (await mover.sleep(SEAT)).condition is Condition.ASLEEP
    assert states(machine) == [CHECKPOINTED] * 5


async def test_new_processes_without_end_are_said(machine: Machine, mover: Mover) -> None:
    machine.arrivals = [Program(Process(pid, pid * 10, "new"), gpus={A: 0}) for pid in range(100, 400)]
    outcome = await mover.pause(SEAT)
    assert outcome.obstacle is Obstacle.RESTLESS
    assert LOCKED not in states(machine)


async def test_managed_memory_is_undone_and_said_and_pausing_works(machine: Machine, mover: Mover) -> None:
    machine.programs[12].managed = True
    outcome = await mover.sleep(SEAT)
    assert (outcome.condition, outcome.obstacle) == (Condition.AWAKE, Obstacle.UNSUPPORTED)
    assert "managed memory" in outcome.sentence
    assert machine.on_gpus(UUIDS) == {11: {A: 8 * GIB}, 12: {A: 4 * GIB}}
    assert (await mover.pause(SEAT)).done


async def test_a_busy_process_is_not_waited_for_longer(machine: Machine, mover: Mover) -> None:
    machine.programs[12].busy = True
    outcome = await mover.pause(SEAT)
    assert (outcome.condition, outcome.obstacle) == (Condition.AWAKE, Obstacle.BUSY)


async def test_a_process_that_was_paused_before_stays_paused(machine: Machine, mover: Mover) -> None:
    await mover.pause(SEAT)
    machine.programs[12].managed = True
    outcome = await mover.sleep(SEAT)
    assert (outcome.condition, outcome.obstacle) == (Condition.PAUSED, Obstacle.UNSUPPORTED)
    assert states(machine) == [LOCKED, LOCKED]


async def test_no_room_on_the_gpu(machine: Machine, mover: Mover) -> None:
    await mover.sleep(SEAT)
    other = Machine.add(machine, 99, gib=70, gpu=A)
    machine.programs.pop(99)
    mine = dict(machine.programs)
    machine.programs[99] = replace(other, state=None)
    outcome = await mover.wake(SEAT, A)
    assert (outcome.condition, outcome.obstacle) == (Condition.ASLEEP, Obstacle.GPU_MEMORY)
    assert [each.state for each in mine.values()] == [CHECKPOINTED, CHECKPOINTED]
    assert RESTORE not in {operation for operation, _ in machine.calls}


async def test_a_restore_that_fails_puts_the_others_back_to_sleep(machine: Machine, mover: Mover) -> None:
    await mover.sleep(SEAT)
    machine.failures[RESTORE, 12] = [OUT_OF_MEMORY]
    outcome = await mover.wake(SEAT, B)
    assert (outcome.condition, outcome.obstacle) == (Condition.ASLEEP, Obstacle.GPU_MEMORY)
    assert (await mover.wake(SEAT, A)).condition is Condition.AWAKE
    # The first one slept again on B and so was moved from there.
    assert machine.on_gpus(UUIDS) == {11: {A: 8 * GIB}, 12: {A: 4 * GIB}}


async def test_a_program_that_never_comes_back_is_said(machine: Machine, mover: Mover) -> None:
    """As a member of a group of NCCL, with driver 580."""
    await mover.sleep(SEAT)
    machine.failures[RESTORE, 12] = [OPERATING_SYSTEM]
    outcome = await mover.wake(SEAT, A)
    assert (outcome.condition, outcome.obstacle) == (Condition.ASLEEP, Obstacle.FAILED)
    assert "restart the kernel" in outcome.sentence


async def test_a_failed_process_is_said(machine: Machine, mover: Mover) -> None:
    machine.programs[12].state = ProcessState.FAILED
    outcome = await mover.wake(SEAT, A)
    assert (outcome.condition, outcome.obstacle) == (Condition.UNKNOWN, Obstacle.FAILED)


async def test_a_process_that_does_not_answer_is_said(machine: Machine, mover: Mover) -> None:
    machine.failures[Operation.STATE, 12] = [SILENT, SILENT]
    outcome = await mover.pause(SEAT)
    assert outcome.obstacle is Obstacle.SILENT
    assert states(machine) == [RUNNING, RUNNING]


async def test_a_container_that_ends_meanwhile_is_no_obstacle(machine: Machine, mover: Mover) -> None:
    machine.failures[CHECKPOINT, 12] = ["GPUSPAWNER_GONE"]
    machine.failures[LOCK, 12] = ["GPUSPAWNER_GONE"]
    machine.programs[12].gone = True
    assert (await mover.sleep(SEAT)).condition is Condition.ASLEEP


async def test_memory_on_several_gpus_cannot_be_woken_on_one(machine: Machine, mover: Mover) -> None:
    machine.programs[12].gpus = {A: GIB, B: GIB}
    assert (await mover.wake(SEAT, A)).obstacle is Obstacle.SEVERAL_GPUS
    assert (await mover.sleep(SEAT)).condition is Condition.ASLEEP
    assert (await mover.wake(SEAT, A)).obstacle is Obstacle.SEVERAL_GPUS


# ---- memory of the host


async def test_the_limit_is_raised_before_and_put_back_only_after_waking(
    machine: Machine, mover: Mover
) -> None:
    cgroup = machine.cgroup(limit_bytes=8 * GIB, used_bytes=GIB)
    assert (await mover.sleep(SEAT)).done
    assert cgroup.limit().memory_bytes == (8 + 12 + 2) * GIB
    assert not await mover.settle(SEAT)
    assert cgroup.limit().memory_bytes == 22 * GIB
    (cgroup.folder / "memory.current").write_text(str(13 * GIB))
    await mover.wake(SEAT, A)
    assert cgroup.limit().memory_bytes == 22 * GIB  # more is in use than its own limit: that would kill it
    (cgroup.folder / "memory.current").write_text(str(GIB))
    assert await mover.settle(SEAT)
    assert cgroup.limit().memory_bytes == 8 * GIB


async def test_a_second_sleep_does_not_raise_it_further(machine: Machine, mover: Mover) -> None:
    cgroup = machine.cgroup(limit_bytes=8 * GIB, used_bytes=9 * GIB)
    for _ in range(5):
        await mover.sleep(SEAT)
        await mover.wake(SEAT, A)
    assert cgroup.limit().memory_bytes == (9 + 12 + 2) * GIB


async def test_no_room_in_the_host_undoes_the_lock(
    machine: Machine, mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.cgroup(limit_bytes=8 * GIB)
    monkeypatch.setattr(MemoryCgroup, "room_bytes", lambda self: 15 * GIB)
    outcome = await mover.sleep(SEAT)
    assert (outcome.condition, outcome.obstacle) == (Condition.AWAKE, Obstacle.HOST_MEMORY)
    assert {operation for operation, _ in machine.calls} == {LOCK, UNLOCK}


async def test_a_refused_checkpoint_puts_the_limit_back(machine: Machine, mover: Mover) -> None:
    cgroup = machine.cgroup(limit_bytes=8 * GIB)
    machine.programs[12].managed = True
    await mover.sleep(SEAT)
    assert cgroup.limit().memory_bytes == 8 * GIB


# ---- helper and broker killed


@pytest.mark.parametrize("lost", [HELPER_LOST, HELPER_LOST + " and goes on", ILLEGAL_STATE])
@pytest.mark.parametrize("operation", [LOCK, CHECKPOINT, RESTORE, UNLOCK])
async def test_the_helper_is_lost_in_a_step(
    machine: Machine, mover: Mover, operation: Operation, lost: str
) -> None:
    machine.failures[operation, 12] = [lost]
    slept = await mover.sleep(SEAT)
    woke = await mover.wake(SEAT, B)
    assert (slept.condition, slept.obstacle) == (Condition.ASLEEP, None)
    assert (woke.condition, woke.obstacle) == (Condition.AWAKE, None)
    assert set(machine.on_gpus(UUIDS)) == {11, 12}


async def test_the_helper_does_not_come_back(machine: Machine, mover: Mover) -> None:
    machine.failures[LOCK, 12] = [HELPER_LOST] * 1000
    outcome = await mover.pause(SEAT)
    assert (outcome.condition, outcome.obstacle) == (Condition.AWAKE, Obstacle.HELPER)


STARTS = st.sampled_from([RUNNING, LOCKED, CHECKPOINTED, None])


@given(
    starts=st.lists(STARTS, min_size=1, max_size=4),
    noted=st.booleans(),
    target=st.sampled_from(["pause", "sleep", "wake"]),
)
async def test_from_any_mixture_that_a_killed_broker_left(
    starts: list[ProcessState | None], noted: bool, target: str, fast_folder: Path
) -> None:
    """The next broker brings it where it should be, by the driver's own states."""
    machine = Machine(fast_folder / "cgroup")
    path = fast_folder / "asleep.json"
    path.unlink(missing_ok=True)
    for number, state in enumerate(starts):
        program = machine.add(10 + number, gib=2)
        program.state = state
        if state is CHECKPOINTED:
            program.saved, program.gpus = program.gpus, {}
        elif state is None:
            program.gpus = {}
    book = SleepBook(path)
    if noted:
        keys = {(10 + n, 100 + 10 * n): mover_module.Slept(A, 2 * GIB) for n in range(len(starts))}
        book.note("c", None, keys)
    mover = Mover(machine, machine, SleepBook(path), RULES)
    outcome: Any = await (mover.wake(SEAT, B) if target == "wake" else getattr(mover, target)(SEAT))
    mover.close()
    has_cuda = any(state is not None for state in starts)
    wanted = {"pause": Condition.PAUSED, "sleep": Condition.ASLEEP, "wake": Condition.AWAKE}[target]
    if target == "pause" and set(starts) - {None} == {CHECKPOINTED}:
        wanted = Condition.ASLEEP  # less than that is not to be had
    assert outcome.obstacle is None
    assert outcome.condition is (wanted if has_cuda else Condition.NONE)
    if target == "wake":
        assert all(set(gpus) == {B} for gpus in machine.on_gpus(UUIDS).values())


async def test_forgetting_containers_that_have_ended(machine: Machine, mover: Mover, tmp_path: Path) -> None:
    machine.cgroup(limit_bytes=8 * GIB)
    await mover.sleep(SEAT)
    await mover.forget([SEAT])
    assert SleepBook(tmp_path / "asleep.json").slept((11, 110)) is not None
    await mover.forget([])
    assert SleepBook(tmp_path / "asleep.json").slept((11, 110)) is None
    assert SleepBook(tmp_path / "asleep.json").limit("c") is None


@pytest.mark.parametrize(
    ("found", "condition"),
    [
        ([], Condition.NONE),
        ([RUNNING], Condition.AWAKE),
        ([LOCKED, CHECKPOINTED], Condition.PAUSED),
        ([CHECKPOINTED, CHECKPOINTED], Condition.ASLEEP),
        ([RUNNING, LOCKED], Condition.MIXED),
        ([RUNNING, CHECKPOINTED], Condition.MIXED),
    ],
)
def test_the_condition_of_a_container(found: list[ProcessState], condition: Condition) -> None:
    assert condition_of(found) is condition
