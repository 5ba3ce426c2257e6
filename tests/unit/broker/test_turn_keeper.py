"""The turns of a pool, kept by the real plan and the real mover on a machine with a scripted driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from gpuspawner.broker.decide.turn_waits import HeldUp
from gpuspawner.broker.decide.turns import Gpu, Step, Turn, TurnRules
from gpuspawner.broker.decide.turns import Seat as PlanSeat
from gpuspawner.broker.enforce import turns as keeper_module
from gpuspawner.broker.enforce.turns import IN_THE_WAY, OUT_OF_TURN, Told, TurnKeeper
from gpuspawner.node.checkpoint import hands as hands_module
from gpuspawner.node.checkpoint.book import SleepBook
from gpuspawner.node.checkpoint.cgroup import MemoryCgroup
from gpuspawner.node.checkpoint.hands import LocalHands
from gpuspawner.node.checkpoint.host import Seat
from gpuspawner.node.checkpoint.mover import Mover, MoverRules
from gpuspawner.node.checkpoint.order import OPERATING_SYSTEM, Operation, ProcessState
from gpuspawner.node.processes import Outcome, Process

from tests.unit.scripted_checkpoint import GIB, SIZE, UUIDS, A, B, C, Machine

RULES = TurnRules(
    pause_after_seconds=1.0, sleep_after_seconds=1000.0, min_turn_seconds=1.0, max_turn_seconds=10.0,
    warn_seconds=5.0,
)  # fmt: skip
DRIVER = 0x2000


class Class:
    """Students with a container and a program each; time passes only when told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machine = Machine(folder / "cgroup")
        self.now = 1000.0
        self.rules = RULES
        self.turns: list[tuple[str, bool]] = []
        self.notices: list[tuple[str, str]] = []
        self.steps: list[Step] = []
        self.restart((A,))

    def restart(self, gpus: tuple[str, ...]) -> None:
        """A new broker: it knows what is on disk, and what the driver says."""
        book = SleepBook(self.folder / "asleep.json")
        mover = Mover(self.machine, self.machine, book, MoverRules(settle_seconds=0.2, lock_seconds=0.1))
        self.hands = LocalHands(mover, self.machine, cast(Any, self.machine), book, self.machine.wait_of)
        told = Told(
            lambda *turn: self.turns.append(turn), self.notice, lambda step, _: self.steps.append(step)
        )
        pool = tuple(Gpu(uuid, SIZE) for uuid in gpus)
        self.keeper = TurnKeeper(
            self.hands, pool, self.rules, lambda: self.now, logging.getLogger("turns"), told
        )

    async def notice(self, lease_id: str, sentence: str) -> None:
        self.notices.append((lease_id, sentence))

    def admit(self, *names: str, promise_gib: int = 24) -> None:
        for name in names:
            self.keeper.admit(name, Seat(name, 1, UUIDS), promise_gib * GIB)

    async def look(self, times: int = 3, seconds: float = 0.1) -> None:
        """Some ticks, and what they begin."""
        for _ in range(times):
            self.now += seconds
            await self.keeper.tick()
            await self.keeper.settled()

    def seats(self) -> dict[str, tuple[Turn, str | None]]:
        return {each.lease_id: (each.turn, each.gpu_uuid) for each in self.keeper.status()}

    def runs(self, pid: int) -> bool:
        return self.machine.programs[pid].state is ProcessState.RUNNING

    async def seen_seats(self) -> list[PlanSeat]:
        """What the plan is asked with at the next tick."""
        asked: list[PlanSeat] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keeper_module, "plan", lambda seats, *_: asked.extend(seats) or ())
            await self.keeper.tick()
        return asked

    async def calls_cuda(self, pid: int) -> None:
        """Its main thread comes to wait in the driver, and that is seen."""
        self.machine.programs[pid].waits_on = DRIVER
        await self.look(1)
        await asyncio.sleep(0.12)  # the watch takes the real time
        await self.look(1)
        self.machine.programs[pid].waits_on = None


@pytest.fixture
async def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Class]:
    monkeypatch.setattr(MemoryCgroup, "room_bytes", lambda self: 500 * GIB)
    room = Class(tmp_path)
    yield room
    await room.keeper.settled()
    room.hands.close()


async def test_who_comes_first_to_a_free_gpu_just_computes(room: Class) -> None:
    room.admit("ann")
    await room.look()
    assert room.seats() == {"ann": (Turn.ASLEEP, None)}
    room.machine.add(11, container="ann")
    await room.look()
    assert (room.seats(), room.steps) == ({"ann": (Turn.AWAKE, A)}, [])
    assert room.turns == [("ann", True)]


async def test_a_second_one_is_paused_at_once_and_gets_its_turn(room: Class) -> None:
    room.admit("ann", "bob")
    room.machine.add(11, container="ann")
    room.machine.computing = {A}
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(1)
    assert (room.runs(11), room.runs(12)) == (True, False)
    assert room.seats()["bob"] == (Turn.PAUSED, A)
    await room.look(110)  # ann computes on, until max_turn
    assert (room.runs(11), room.runs(12)) == (False, True)
    await room.look(110)
    assert (room.runs(11), room.runs(12)) == (True, False)
    assert set(room.steps) == {Step.PAUSE, Step.WAKE}
    assert room.turns[:5] == [("ann", True), ("ann", False), ("bob", True), ("bob", False), ("ann", True)]


async def test_an_idle_one_gives_way_and_comes_back_when_it_calls_cuda(room: Class) -> None:
    room.admit("ann", "bob")
    room.machine.add(11, container="ann")
    await room.look(15)
    room.machine.add(12, container="bob")
    await room.look(5)
    assert (room.runs(11), room.runs(12)) == (False, True)
    await room.look(30)
    assert room.runs(12)  # ann wants nothing
    await room.calls_cuda(11)
    await room.look(5)
    assert (room.runs(11), room.runs(12)) == (True, False)


async def test_a_promise_of_the_whole_gpu_moves_the_other_to_host_memory(room: Class) -> None:
    room.admit("ann", "bob", promise_gib=80)
    room.machine.add(11, gib=30, container="ann")
    await room.look(15)
    room.machine.add(12, gib=30, container="bob")
    await room.look(15)
    assert room.seats() == {"ann": (Turn.ASLEEP, None), "bob": (Turn.AWAKE, A)}
    status = {each.lease_id: each.memory_bytes for each in room.keeper.status()}
    assert status == {"ann": 30 * GIB, "bob": 30 * GIB}
    await room.calls_cuda(11)
    await room.look(15)
    assert room.seats() == {"ann": (Turn.AWAKE, A), "bob": (Turn.ASLEEP, None)}


async def test_who_is_woken_with_memory_is_told_how_long_that_takes(
    room: Class, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.admit("ann", "bob", promise_gib=80)
    room.machine.add(11, gib=30, container="ann")
    await room.look(15)
    room.machine.add(12, gib=30, container="bob")
    await room.look(15)
    wake, back = room.hands.wake, asyncio.Event()

    async def slow(seat: Seat, gpu_uuid: str) -> Any:
        await back.wait()
        return await wake(seat, gpu_uuid)

    monkeypatch.setattr(room.hands, "wake", slow)
    room.keeper.want("ann")
    await room.keeper.tick()
    while room.seats()["bob"] != (Turn.ASLEEP, None):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    told = []
    for seconds in (0.0, 3.0, 30.0):
        room.now += seconds
        ann = next(each for each in room.keeper.status() if each.lease_id == "ann")
        told.append((ann.turn, ann.moves, ann.position, ann.wait_seconds))
    back.set()
    await room.keeper.settled()
    known = Turn.ASLEEP, True, None
    assert told == [
        (*known, pytest.approx(5.8, abs=0.1)),
        (*known, pytest.approx(2.8, abs=0.1)),
        (*known, 0.0),
    ]
    assert room.seats()["ann"] == (Turn.AWAKE, A)


async def test_two_gpus_are_both_used_and_a_new_program_moves_to_its_lease_s_gpu(room: Class) -> None:
    room.restart((A, B))
    room.admit("ann", "bob")
    room.machine.computing = {A, B}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.add(12, container="bob")  # it begins on the first GPU, too
    await room.look(6)
    assert room.seats() == {"ann": (Turn.AWAKE, A), "bob": (Turn.AWAKE, B)}
    room.machine.add(13, gib=1, container="bob")
    await room.look(2)
    assert room.machine.on_gpus(UUIDS)[13] == {B: GIB}
    assert room.runs(13)


async def test_the_next_broker_takes_over_what_is_there(room: Class) -> None:
    room.admit("ann", "bob")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(2)
    room.hands.close()
    room.restart((A,))
    room.admit("bob", "ann")
    await room.look(2)
    assert room.seats() == {"bob": (Turn.PAUSED, A), "ann": (Turn.AWAKE, A)}
    assert room.runs(11)
    await room.look(110)  # bob waited, as far as anybody knows
    assert room.runs(12)


async def test_memory_that_cannot_move_is_told_and_ends_only_if_nobody_else_can_compute(
    room: Class, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def end(self: object, process: Process) -> Outcome:
        ended.append(process.pid)
        room.machine.programs[process.pid].gone = True
        room.machine.programs[process.pid].gpus = {}
        return Outcome.ENDED

    monkeypatch.setattr(hands_module.ProcessTable, "end", end)
    room.admit("ann", "bob", promise_gib=80)
    room.machine.add(11, gib=30, container="ann").managed = True
    await room.look(15)
    room.machine.add(12, gib=2, container="bob")
    await room.look(30)
    assert [lease for lease, _ in room.notices] == ["ann"]
    assert "managed memory" in room.notices[0][1]
    assert not room.runs(12)
    await room.look(60)
    assert (ended, room.runs(12)) == ([11], True)
    assert room.notices[1:] == [("ann", IN_THE_WAY)]


async def test_a_program_for_which_the_driver_does_not_answer_keeps_its_gpu_and_others_use_the_rest(
    room: Class,
) -> None:
    """Members of a group of NCCL do that. The policy here says: never end."""
    room.rules = replace(RULES, warn_seconds=None)
    room.restart((A, B))
    room.admit("ann", "bob", "cyd")
    room.machine.computing = {A, B}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.programs[11].silent = True
    room.machine.add(12, gpu=B, container="bob")
    await room.look()
    room.machine.add(13, gpu=B, container="cyd")
    await room.look(2)
    assert room.seats() == {"ann": (Turn.AWAKE, A), "bob": (Turn.AWAKE, B), "cyd": (Turn.PAUSED, B)}
    for _ in range(3):
        await room.look(110)
        assert room.seats()["ann"] == (Turn.AWAKE, A)
        assert (room.runs(12), room.runs(13)) in ((True, False), (False, True))
    assert room.turns.count(("bob", True)) > 1
    assert room.turns.count(("cyd", True)) > 1
    assert room.turns.count(("ann", False)) == 0
    # After a restart, unknown is not free: nobody is woken where ann may compute.
    room.hands.close()
    room.restart((A, B))
    room.admit("cyd", "bob", "ann")
    await room.look(30)
    assert room.seats()["ann"] == (Turn.AWAKE, A)
    assert room.machine.on_gpus((A,)).keys() == {11, 12, 13}
    assert [each for each in (12, 13) if room.machine.programs[each].gpus.get(A)] == []
    room.machine.programs[11].silent = False  # its group has ended
    await room.look(130)
    assert {each.can_move for each in room.keeper.status()} == {True}


async def test_who_does_not_come_back_is_told_and_costs_the_others_no_turns(room: Class) -> None:
    """Measured: a member of a group of NCCL can be moved to main memory, and never back."""
    room.admit("ann", "bob")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look(2)
    room.machine.failures[Operation.RESTORE, 11] = [OPERATING_SYSTEM] * 1000
    room.keeper.rest("ann")  # its cell goes on, so that it wants a GPU again at once
    await room.look(2)
    room.machine.add(12, container="bob")
    await room.look(500, seconds=0.5)
    ((told, sentence),) = room.notices
    assert (told, "restart the kernel" in sentence) == ("ann", True)
    tries = room.machine.calls.count((Operation.RESTORE, 11))
    assert 1 <= tries <= 1 + 250 / keeper_module.LOST_RETRY_SECONDS
    assert room.runs(12)
    room.machine.programs[11].gone = True  # its kernel is restarted
    room.machine.add(13, container="ann")
    await room.look(130)
    assert room.turns.count(("ann", True)) >= 2


async def test_who_holds_a_gpu_for_good_and_who_waits_for_it_both_read_why(room: Class) -> None:
    """One GPU, and a policy that ends nobody's program."""
    room.rules = replace(RULES, warn_seconds=None)
    room.restart((A,))
    room.admit("ann", "bob")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.programs[11].silent = True
    room.machine.add(12, container="bob")
    await room.look(240)
    (sentence,) = [said for lease, said in room.notices if lease == "ann"]
    assert sentence.endswith("It can't be paused either, so nobody else can use this GPU until it ends.")
    waits = {each.lease_id: (each.position, each.wait_seconds, each.held_up) for each in room.keeper.status()}
    assert waits == {"ann": (None, None, None), "bob": (1, None, HeldUp.PROGRAM)}
    room.machine.programs[11].gone = True
    await room.look(20)
    assert room.runs(12)
    assert [each.held_up for each in room.keeper.status()] == [None, None]


@pytest.mark.parametrize("computing", [{A}, set[str]()], ids=["busy", "idle by NVML"])
async def test_who_waits_for_a_step_that_does_not_end_is_told_no_time_but_why(
    room: Class, computing: set[str]
) -> None:
    """Measured: beside a kernel of a minute, "about 1 s" was told for 50 s."""
    room.restart((A,))
    room.admit("ann", "bob")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.programs[11].busy, room.machine.computing = True, computing
    room.machine.add(12, container="bob")
    await room.look(240)

    def told() -> tuple[Any, ...]:
        (bob,) = (each for each in room.keeper.status() if each.lease_id == "bob")
        return bob.position, bob.wait_seconds, bob.held_up

    assert told() == (1, None, HeldUp.KERNEL)
    assert room.notices == []
    room.machine.programs[11].busy, room.machine.computing = False, {A}
    await room.look(30)
    assert room.runs(12)
    await room.look(130)  # and whoever waits next has a time again
    status = {each.lease_id: each for each in room.keeper.status()}
    assert [each.held_up for each in status.values()] == [None, None]
    assert any(each.wait_seconds is not None for each in status.values())


async def test_a_program_for_which_the_driver_does_not_answer_ends_after_a_warning_if_the_policy_says_so(
    room: Class, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[float, int]] = []

    def end(self: object, process: Process) -> Outcome:
        ended.append((room.now, process.pid))
        room.machine.programs[process.pid].gone = True
        return Outcome.ENDED

    monkeypatch.setattr(hands_module.ProcessTable, "end", end)
    room.admit("ann", "bob")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.programs[11].silent = True
    began = room.now
    room.machine.add(12, container="bob")
    await room.look(80)
    assert (room.notices, room.seats()["ann"]) == ([], (Turn.AWAKE, A))  # until max_turn nothing is done
    await room.look(40)
    assert [lease for lease, _ in room.notices] == ["ann"]
    assert "NCCL" in room.notices[0][1]
    assert ended == []
    await room.look(60)
    ((at, pid),) = ended
    assert (pid, room.runs(12)) == (11, True)
    assert at - began == pytest.approx(10 + 5, abs=2.5)  # max_turn, then the warning
    assert room.notices[1:] == [("ann", IN_THE_WAY)]
    room.machine.add(14, container="ann")  # a new program of it can be paused
    await room.look(2)
    assert not room.runs(14)


async def test_a_driver_that_hangs_for_one_program_does_not_stop_the_others(
    room: Class, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands_module, "LOOK_SECONDS", 0.05)
    room.machine.silence_seconds = 600.0
    room.restart((A, B))
    room.admit("ann", "bob", "cyd")
    room.machine.computing = {A, B}
    room.machine.add(11, container="ann").silent = True
    room.machine.add(12, gpu=B, container="bob")
    await room.look(2)
    room.machine.add(13, gpu=B, container="cyd")
    async with asyncio.timeout(300):
        await room.look(40, seconds=0.5)
    assert room.seats()["ann"] == (Turn.AWAKE, A)
    assert room.turns.count(("cyd", True)) >= 1


async def test_memory_that_can_not_move_is_paused_while_its_lease_is_kept_asleep(room: Class) -> None:
    room.admit("ann", "bob")
    room.machine.add(11, container="ann").managed = True
    await room.look()
    assert room.seats()["ann"] == (Turn.AWAKE, A)
    room.keeper.keep_asleep("ann", True)
    await room.look(5, 1.0)
    assert (room.seats()["ann"], room.runs(11)) == ((Turn.PAUSED, A), False)
    assert [each.can_move for each in room.keeper.status() if each.lease_id == "ann"] == [False]
    await room.calls_cuda(11)
    assert room.seats()["ann"] == (Turn.PAUSED, A)
    room.keeper.keep_asleep("ann", False)
    await room.calls_cuda(11)
    assert room.seats()["ann"] == (Turn.AWAKE, A)


async def test_who_was_put_to_sleep_while_it_waited_for_its_turn_gets_it_when_it_may_wake(
    room: Class,
) -> None:
    """Its program was paused in a computation: it wants to go on, also if its user asks for nothing."""
    room.admit("ann", "bob")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(5, 1.0)
    assert room.seats()["bob"] == (Turn.PAUSED, A)
    assert room.keeper.rest("bob")
    room.keeper.keep_asleep("bob", True)
    await room.look(70, 1.0)
    assert (room.seats()["ann"], room.seats()["bob"]) == ((Turn.AWAKE, A), (Turn.ASLEEP, None))
    room.keeper.keep_asleep("bob", False)
    await room.look(70, 1.0)
    assert ("bob", True) in room.turns


async def test_who_computes_on_in_spite_of_it_ends(room: Class, monkeypatch: pytest.MonkeyPatch) -> None:
    room.admit("ann", "bob")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look()

    def end(self: object, process: Process) -> Outcome:
        room.machine.programs[process.pid].gone = True
        return Outcome.ENDED

    monkeypatch.setattr(hands_module.ProcessTable, "end", end)
    room.machine.add(12, container="bob").busy = True  # can't be locked
    await room.look(80)
    assert room.notices == []
    await room.look(60)
    assert room.notices == [("bob", OUT_OF_TURN)]
    assert room.machine.programs[12].gone
    assert not room.machine.programs[11].gone


async def test_who_was_woken_sleeps_before_its_container_is_stopped_where_the_driver_needs_that(
    room: Class,
) -> None:
    """Driver 595: killing a process that was restored hangs the machine."""
    room.hands.sleeps_before_end = True
    room.admit("ann", "bob", promise_gib=80)
    room.machine.add(11, gib=30, container="ann")
    await room.look(15)
    assert await room.keeper.before_end("ann")  # it never slept
    room.machine.add(12, gib=30, container="bob")
    await room.look(15)
    await room.calls_cuda(11)
    await room.look(15)
    assert room.seats() == {"ann": (Turn.AWAKE, A), "bob": (Turn.ASLEEP, None)}
    assert await room.keeper.before_end("bob")  # it sleeps
    assert not await room.keeper.before_end("ann")
    await room.look(2)
    assert room.machine.programs[11].state is ProcessState.CHECKPOINTED
    await room.calls_cuda(11)  # its cell goes on: it gets no turn now
    await room.look(20)
    assert room.machine.programs[11].state is ProcessState.CHECKPOINTED
    assert await room.keeper.before_end("ann")
    assert await room.keeper.before_end("nobody")
    await room.look(100)  # its container was not stopped after all
    await room.calls_cuda(11)
    await room.look(5)
    assert room.seats()["ann"] == (Turn.AWAKE, A)
    room.hands.sleeps_before_end = False
    assert await room.keeper.before_end("ann")  # other drivers don't mind


async def test_a_woken_program_that_has_to_end_sleeps_first_where_the_driver_needs_that(
    room: Class, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[ProcessState | None] = []

    def end(self: object, process: Process) -> Outcome:
        ended.append(room.machine.programs[process.pid].state)
        room.machine.programs[process.pid].gone = True
        return Outcome.ENDED

    monkeypatch.setattr(hands_module.ProcessTable, "end", end)
    room.hands.sleeps_before_end = True
    room.admit("ann", "bob", promise_gib=80)
    room.machine.add(11, gib=30, container="ann")
    await room.look(15)
    room.machine.add(12, gib=30, container="bob")
    await room.look(15)
    room.machine.computing = {A}
    await room.calls_cuda(11)
    await room.look(110)
    assert room.seats()["ann"] == (Turn.AWAKE, A)
    # Its memory can't leave the GPU any more: it would end after the warning, but can't sleep before.
    program = room.machine.programs[11]
    program.managed = True
    room.machine.programs[12].waits_on = DRIVER
    await asyncio.sleep(0.12)
    await room.look(200)
    assert [lease for lease, _ in room.notices] == ["ann"]
    assert (ended, program.gone) == ([], False)
    program.managed = False
    await room.look(60)
    assert ended == [ProcessState.CHECKPOINTED]
    assert room.runs(12)


async def test_a_step_that_fails_is_tried_again_later(room: Class) -> None:
    room.admit("ann", "bob")
    room.machine.add(11, container="ann")
    await room.look(15)
    room.machine.failures[Operation.LOCK, 11] = ["CUDA_ERROR_UNKNOWN"]
    room.machine.add(12, container="bob")
    await room.look(8)
    assert room.runs(11)
    await room.look(25)
    assert (room.runs(11), room.runs(12)) == (False, True)


async def test_a_lease_that_ends_in_any_state_leaves_its_place(room: Class) -> None:
    room.admit("ann", "bob")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(2)
    room.machine.programs.pop(11)
    room.keeper.leave("ann")
    await room.look(2)
    assert room.seats() == {"bob": (Turn.AWAKE, A)}
    assert room.turns == [("ann", True), ("ann", False), ("bob", True)]


async def test_what_is_on_disk_of_a_lease_goes_with_it(room: Class) -> None:
    room.admit("ann", "bob", promise_gib=80)
    room.machine.add(11, gib=30, container="ann")
    await room.look(15)
    room.machine.add(12, gib=30, container="bob")
    await room.look(15)
    assert SleepBook(room.folder / "asleep.json").slept((11, 110)) is not None
    room.machine.programs.pop(11)
    room.keeper.leave("ann")
    await room.look(1)
    assert SleepBook(room.folder / "asleep.json").slept((11, 110)) is None


async def test_a_memory_limit_that_could_not_be_put_back_is_later(room: Class) -> None:
    cgroup = room.machine.cgroup(limit_bytes=8 * GIB, used_bytes=GIB)
    (cgroup.folder.parent / "memory.max").write_text("max")
    (cgroup.folder.parent / "memory.current").write_text("0")
    place = Seat("ann", 1, UUIDS)
    room.admit("ann")
    room.machine.add(11, gib=1, container="ann")
    await room.look()
    await room.hands.sleep(place)
    (cgroup.folder / "memory.current").write_text(str(9 * GIB))
    await room.hands.wake(place, A)
    assert cgroup.limit().memory_bytes == 10 * GIB
    (cgroup.folder / "memory.current").write_text(str(GIB))
    await room.look(1)
    assert cgroup.limit().memory_bytes == 8 * GIB


async def test_places_in_line_are_shown(room: Class) -> None:
    room.admit("ann", "bob", "cyd")
    room.machine.computing = {A}
    room.machine.add(11, container="ann")
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(1)
    room.machine.add(13, container="cyd")
    await room.look(1)
    assert {each.lease_id: each.position for each in room.keeper.status()} == {
        "ann": None,
        "bob": 1,
        "cyd": 2,
    }
    assert C not in {each.gpu_uuid for each in room.keeper.status()}


async def test_a_turn_ends_as_soon_as_its_notebook_is_back_at_its_prompt(room: Class) -> None:
    """And a program that loads something keeps its turn for longer, though the GPU idles as well."""
    room.rules = TurnRules(min_turn_seconds=0.5)
    room.restart((A,))
    room.admit("ann", "bob")
    room.machine.add(11, container="ann")
    room.machine.computing = {A}
    await room.look(6)
    room.machine.add(12, container="bob")
    await room.look(2)
    room.machine.computing = set()
    await room.look(90)  # ann loads a library
    assert room.runs(11)
    room.machine.programs[11].rests = True
    await room.look(2)
    assert room.runs(11)
    await room.look(1)
    assert (room.runs(11), room.runs(12)) == (False, True)
    assert [each.wants_since for each in await room.seen_seats() if each.lease_id == "ann"] == [None]


async def test_the_next_one_is_woken_without_waiting_for_the_next_sample(room: Class) -> None:
    room.admit("ann", "bob")
    room.machine.add(11, container="ann")
    room.machine.computing = {A}
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(1)
    room.now += 10.0
    await room.keeper.tick()
    await room.keeper.settled()  # one tick, two steps
    assert (room.runs(11), room.runs(12)) == (False, True)
    assert room.steps[-2:] == [Step.PAUSE, Step.WAKE]


async def test_a_sample_from_before_a_step_does_not_count(
    room: Class, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause and a wake take less time than a sample: what was read before them isn't true any more."""
    room.admit("ann", "bob")
    room.machine.add(11, container="ann")
    room.machine.computing = {A}
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(1)
    read = room.hands.read

    async def slow_read(seats: Any) -> Any:
        readings = await read(seats)
        monkeypatch.undo()
        await room.look(1, seconds=10.0)  # meanwhile ann is paused and bob is woken
        return readings

    monkeypatch.setattr(room.hands, "read", slow_read)
    await room.keeper.tick()
    assert room.seats() == {"ann": (Turn.PAUSED, A), "bob": (Turn.AWAKE, A)}
    assert (room.runs(11), room.runs(12)) == (False, True)


async def test_who_is_paused_just_after_its_cell_wants_nothing(room: Class) -> None:
    """NVML calls the GPU busy for a moment longer. Who computes in another thread for long wants to go on."""
    room.admit("ann", "bob")
    room.machine.add(11, container="ann")
    room.machine.computing = {A}
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(95)
    room.machine.programs[11].rests = True
    await room.look(8)
    assert (room.runs(11), room.runs(12)) == (False, True)
    wants = {each.lease_id: each.wants_since for each in await room.seen_seats()}
    assert wants == {"ann": None, "bob": None}
    room.machine.programs[11].rests = False
    room.machine.programs[12].rests = True  # its prompt is there, and it computes on
    await room.calls_cuda(11)
    await room.look(105)
    assert (room.runs(11), room.runs(12)) == (True, False)
    assert {each.lease_id: each.wants_since for each in await room.seen_seats()}["bob"] is not None


async def test_who_waited_for_something_else_is_taken_out_of_the_line(room: Class) -> None:
    room.admit("ann", "bob")
    room.machine.add(11, container="ann")
    await room.look(15)
    room.machine.add(12, container="bob")
    await room.look(5)
    assert room.runs(12)
    room.machine.computing = {A}
    await room.calls_cuda(11)
    assert {each.lease_id: each.position for each in room.keeper.status()} == {"ann": 1, "bob": None}
    room.machine.programs[11].rests = True
    await room.look(1)
    assert {each.lease_id: each.position for each in room.keeper.status()} == {"ann": None, "bob": None}
    room.keeper.want("ann")  # its user asks: it stays in line
    await room.look(3)
    assert {each.lease_id: each.position for each in room.keeper.status()} == {"ann": 1, "bob": None}


async def test_it_looks_more_often_while_somebody_waits(room: Class) -> None:
    room.admit("ann", "bob")
    assert room.keeper.look_seconds == 0.1  # they are asleep
    room.machine.add(11, container="ann")
    room.machine.computing = {A}
    await room.look()
    room.machine.add(12, container="bob")
    await room.look(1)
    assert room.keeper.look_seconds == 0.05
    room.keeper.leave("bob")
    assert room.keeper.look_seconds == 0.5
