"""A pool of turns in the broker: seats, who computes, what is charged, restarts, and what users may ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.decide.turns import Rank
from gpuspawner.core.decision import Drain
from gpuspawner.core.model import ContainerPatch, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.node.api import Quota
from gpuspawner.node.checkpoint.cgroup import MemoryCgroup
from gpuspawner.node.checkpoint.order import ProcessState

from tests.unit.scripted_checkpoint import GIB, A, B, C
from tests.unit.turn_room import DEVICES, NOON, Room, room_in


@pytest.fixture
async def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(MemoryCgroup, "room_bytes", lambda self: 500 * GIB)
    async with room_in(tmp_path) as room:
        yield room


async def test_seats_are_admitted_and_nobody_is_charged_before_the_first_turn(room: Room) -> None:
    await room.broker(DEVICES)
    leases = [await room.lease() for _ in range(3)]
    fourth = await room.lease(running=False)
    # Each reaches all GPUs; they begin on different ones.
    assert [lease.device_uuids for lease in leases] == [(A, B, C), (B, A, C), (C, A, B)]
    assert [lease.memory_bytes for lease in leases] == [24 * GIB] * 3
    assert fourth.state is LeaseState.WAITING
    await room.look(0.2)
    assert room.states() == {"user-1": "asleep", "user-2": "asleep", "user-3": "asleep", "user-4": "waiting"}
    assert room.turns() == {f"user-{n}": ("asleep", None) for n in (1, 2, 3)}
    assert not any(room.ledger.spans.values())
    await room.close(leases[0])
    assert room.states()["user-4"] == "reserved"
    assert room.running is not None
    lease = room.allocator.lease(fourth.id)
    assert lease is not None
    assert lease.device_uuids == (A, B, C)
    patch = room.running.patch(lease, ContainerPatch(env={"A": "b"}))
    assert patch == ContainerPatch(env={"A": "b", "CUDA_VISIBLE_DEVICES": A})


async def test_two_alternate_and_only_who_is_awake_is_charged(room: Room) -> None:
    await room.broker()
    ann, ben = await room.lease(), await room.lease()
    first = room.compute(ann)
    room.machine.computing = {A}
    await room.look(0.2)
    assert (room.states(), room.turns()["user-1"]) == (
        {"user-1": "running", "user-2": "asleep"},
        ("awake", A),
    )
    second = room.compute(ben)
    await room.look(0.2)
    assert [room.machine.programs[pid].state for pid in (first, second)] == [
        ProcessState.RUNNING, ProcessState.LOCKED,
    ]  # fmt: skip
    assert room.holders.said == [
        (ben.id, "Waiting for a GPU: 1st in line, about 10 s. Your variables are safe."),
    ]
    await room.look(11.0)
    assert {each[0] for each in room.holders.said} == {ann.id, ben.id}
    assert room.states() == {"user-1": "asleep", "user-2": "running"}
    assert room.turns() == {"user-1": ("paused", A), "user-2": ("awake", A)}
    await room.look(11.0)
    assert room.states() == {"user-1": "running", "user-2": "asleep"}
    spans = room.ledger.spans
    whole = sorted((begin, end) for each in spans.values() for begin, end in each if end is not None)
    assert len(whole) == 2
    assert [end - begin for begin, end in whole] == pytest.approx([10.0, 10.0], abs=0.5)
    now = sorted(begin for each in spans.values() for begin, end in each if end is None)
    assert whole[0][1] <= whole[1][0] <= whole[1][1] <= now[0]
    switches = room.metrics.registry.get_sample_value
    assert switches("gpuspawner_turn_switches_total", {"step": "pause", "done": "yes"}) >= 3


async def test_a_new_broker_takes_the_seats_as_they_are_and_corrects_the_ledger(room: Room) -> None:
    await room.broker()
    ann, ben = await room.lease(), await room.lease()
    pids = room.compute(ann), room.compute(ben)
    room.machine.computing = {A}
    await room.look(0.3)
    assert sorted(room.states().values()) == ["asleep", "running"]
    awake, still = pids if room.machine.programs[pids[0]].state is ProcessState.RUNNING else pids[::-1]
    await room.end()
    # While no broker ran, the driver has finished what the old one had begun: they changed places.
    room.machine.programs[awake].state = ProcessState.LOCKED
    room.machine.programs[still].state = ProcessState.RUNNING
    room.now += 5.0
    before = room.states()
    await room.broker()
    await room.look(0.3)
    swapped = {"running": "asleep", "asleep": "running"}
    assert room.states() == {user: swapped[state] for user, state in before.items()}


async def test_what_the_ledger_can_not_take_is_recorded_later_with_its_time(room: Room) -> None:
    await room.broker()
    ann = await room.lease()
    room.compute(ann)
    room.machine.computing = {A}
    room.ledger.fault = True
    await room.look(0.2)
    assert (room.states(), room.turns()) == ({"user-1": "asleep"}, {"user-1": ("awake", A)})
    await room.look(3.0)
    room.ledger.fault = False
    await room.look(0.2)
    assert room.states() == {"user-1": "running"}
    ((begin, end),) = room.ledger.spans[ann.id]
    assert (begin, end) == (pytest.approx(0.0, abs=0.3), None)


async def test_a_closed_pool_says_why_and_opens_when_the_check_passes(room: Room) -> None:
    room.refusal = "The GPU memory of a program that slept was not the same afterwards"
    await room.broker()
    view = room.allocator.snapshot().devices[0]
    assert (view.health.healthy, view.health.reason) == (False, room.refusal)
    lease = await room.lease(running=False)
    assert lease.state is LeaseState.WAITING
    room.node.refusal = ""
    await room.look(0.3)
    assert room.states() == {"user-1": "reserved"}
    assert room.node.checks[0] == (A,)


async def test_the_policy_says_who_is_next_as_it_is_now(room: Room) -> None:
    await room.broker()
    leases = [await room.lease() for _ in range(3)]
    room.machine.computing = {A}
    room.compute(leases[0])
    await room.look(0.3)
    for lease in leases[1:]:
        room.compute(lease)
        await room.look(0.3)
    assert _positions(room) == {"user-1": None, "user-2": 1, "user-3": 2}
    room.ranks["user-2"] = Rank(0, (3, 0))  # it has used more by now
    await room.look(0.1)
    assert _positions(room) == {"user-1": None, "user-2": 2, "user-3": 1}
    room.ranks["user-2"] = Rank(1, (3, 0))
    await room.look(0.1)
    assert _positions(room) == {"user-1": None, "user-2": 1, "user-3": 2}


def _positions(room: Room) -> dict[str, int | None]:
    assert room.running is not None
    views, users = room.running.turns.views(), {each.id: each.user for each in room.allocator.leases()}
    return {users[lease_id]: view.position for lease_id, view in views.items()}


async def test_wake_now_and_give_up(room: Room) -> None:
    enforcement = await room.broker()
    ann, ben = await room.lease(), await room.lease()
    room.compute(ann)
    await room.look(0.2)
    room.compute(ben)
    await room.look(3.0)  # ann's program is idle: ben has the GPU
    assert room.states() == {"user-1": "asleep", "user-2": "running"}
    assert enforcement.turns.want(ann.id)
    await room.look(2.5)
    assert room.states() == {"user-1": "running", "user-2": "asleep"}
    assert enforcement.turns.give_up(ann.id)
    await room.look(0.2)
    assert room.states()["user-1"] == "asleep"
    assert not enforcement.turns.want("f" * 32)
    await room.close(ann)
    await room.look(0.2)
    assert room.turns().keys() == {"user-2"}
    assert not enforcement.turns.give_up(ann.id)


async def test_a_server_without_a_program_keeps_no_turn_that_it_gives_up(room: Room) -> None:
    enforcement = await room.broker()
    ann = await room.lease()
    await room.look(0.2)
    room.machine.computing = {A}  # by a program of nobody's lease
    for waited in (0.05, 2.0):  # before the first sample with its turn, and after some
        assert enforcement.turns.want(ann.id)
        await room.look(waited)
        assert room.turns() == {"user-1": ("awake", A)}
        assert enforcement.turns.give_up(ann.id)
        await room.look(3.0)
        assert room.turns() == {"user-1": ("asleep", None)}


async def test_leases_keep_their_turns_when_their_pool_leaves_the_settings(room: Room) -> None:
    await room.broker()
    ann, ben = await room.lease(), await room.lease()
    for lease in (ann, ben):
        room.compute(lease)
    room.machine.computing = {A}
    await room.look(1.0)
    assert room.turns() == {"user-1": ("awake", A), "user-2": ("paused", A)}
    await room.broker(terms=SharingRules("whole"))
    waiting = await room.lease(Want(1), running=False)
    assert waiting.state is LeaseState.WAITING
    await room.look(70.0, step=0.5)
    assert room.turns() == {"user-1": ("paused", A), "user-2": ("awake", A)}
    for lease in (ann, ben):
        await room.close(lease)
    assert room.states() == {"user-3": "reserved"}


async def test_an_idle_server_sleeps_until_it_wants_a_gpu(room: Room) -> None:
    enforcement = await room.broker()
    ann, ben = await room.lease(), await room.lease()
    pid = room.compute(ann)
    await room.look(0.2)
    assert enforcement.turns.rest(ann.id)
    await room.look(0.3)
    assert room.machine.programs[pid].state is ProcessState.CHECKPOINTED
    assert (room.states()["user-1"], room.turns()["user-1"]) == ("asleep", ("asleep", None))
    assert enforcement.turns.rest(ann.id)  # it sleeps already
    room.machine.programs[pid].waits_on = 0x2000
    await room.look(1.0)
    await asyncio.sleep(0.15)  # the watch takes the real time
    await room.look(1.0)
    assert room.turns()["user-1"] == ("awake", A)
    managed = room.compute(ben)
    room.machine.programs[managed].managed = True
    await room.look(3.0)
    assert enforcement.turns.rest(ben.id)
    await room.look(0.3)
    assert not enforcement.turns.rest(ben.id)  # its memory can't move: it has to be stopped
    assert not enforcement.turns.rest("f" * 32)


async def test_who_is_kept_asleep_gets_no_turn_until_it_may_wake(room: Room) -> None:
    await room.broker()
    ann, ben = await room.lease(), await room.lease()
    pid = room.compute(ann)
    room.machine.computing = {A}
    await room.look(0.2)
    assert room.turns()["user-1"] == ("awake", A)
    await room.allocator.keep_asleep(ann.id, "This server sleeps.")
    await room.look(1.0)
    program = room.machine.programs[pid]
    assert (program.state, room.turns()["user-1"]) == (ProcessState.CHECKPOINTED, ("asleep", None))
    assert room.states()["user-1"] == "asleep"  # and isn't charged
    assert room.holders.said[-1] == (ann.id, "This server sleeps.")
    program.waits_on = 0x2000  # a cell calls CUDA, and a new program begins: neither gets a turn
    other = room.compute(ann)
    await room.look(1.0)
    await asyncio.sleep(0.15)  # the watch takes the real time
    await room.look(2.0)
    assert {room.machine.programs[each].state for each in (pid, other)} == {ProcessState.CHECKPOINTED}
    assert room.turns()["user-1"] == ("asleep", None)
    room.compute(ben)  # the GPU is free for others
    await room.look(0.3)
    assert room.turns()["user-2"] == ("awake", A)
    await room.allocator.keep_asleep(ann.id, "")
    room.machine.computing = set()
    await room.look(3.0)
    assert room.turns()["user-1"][0] == "awake"


async def test_the_next_broker_gives_who_is_kept_asleep_no_turn(room: Room) -> None:
    """Killed between the ledger's commit and the move: the program still computes."""
    await room.broker()
    ann = await room.lease()
    pid = room.compute(ann)
    await room.look(0.2)
    await room.end()
    await room.allocator.keep_asleep(ann.id, "This server sleeps.")
    await room.broker()
    await room.look(1.0)
    assert room.machine.programs[pid].state is ProcessState.CHECKPOINTED
    assert room.turns()["user-1"] == ("asleep", None)
    assert room.states()["user-1"] == "asleep"


async def test_the_guard_knows_who_may_use_the_pool_s_gpus(room: Room) -> None:
    await room.broker(DEVICES[:2])
    lease = await room.lease()
    await room.look()
    assert room.node.desired.quotas.quotas == tuple(
        Quota(lease.id, str(lease.container_id), uuid, None) for uuid in (A, B)
    )


async def test_a_gpu_out_of_service_leaves_the_others_in_use(room: Room) -> None:
    await room.broker(DEVICES)
    ann = await room.lease()
    room.compute(ann, gpu=A)
    room.machine.computing = {A, B}
    await room.look(0.3)
    assert room.turns() == {"user-1": ("awake", A)}
    await room.health(A, "XID 79")
    await room.look(0.3)
    found = room.allocator.lease(ann.id)
    assert found is not None
    assert "XID 79" in found.notice  # its memory is there
    ben = await room.lease()
    assert ben.device_uuids == (B, C)
    cem = await room.lease()
    assert cem.device_uuids == (C, B)
    fourth = await room.lease(running=False)
    assert fourth.state is LeaseState.WAITING  # the pool's seats are taken, though B and C have two leases
    await room.health(A)
    assert room.states()["user-4"] == "waiting"
    # A serves those who see it; ben's and cem's containers don't have it.
    first, second = room.compute(ben, gpu=B), room.compute(cem, gpu=C)
    await room.look(0.3)
    assert room.turns() == {"user-1": ("awake", A), "user-2": ("awake", B), "user-3": ("awake", C)}
    await room.health(B, "XID 79")
    await room.look(0.3)
    found = room.allocator.lease(ben.id)
    assert found is not None
    assert "XID 79" in found.notice
    assert [lease_id for lease_id, _ in room.holders.told] == [ann.id, ben.id]
    assert found.notice.endswith("stop this server and start a new one.")
    await room.health(B)
    found = room.allocator.lease(ben.id)
    assert found is not None
    assert found.notice == ""
    assert all(room.machine.programs[pid].state is ProcessState.RUNNING for pid in (first, second))


async def test_a_drained_gpu_is_left_by_those_who_do_not_compute(room: Room) -> None:
    await room.broker(DEVICES[:2])
    ann, ben = await room.lease(), await room.lease()
    room.machine.computing = {A, B}
    computes, rests = room.compute(ann, gpu=A), room.compute(ben, gpu=B)
    await room.look(0.3)
    assert room.turns() == {"user-1": ("awake", A), "user-2": ("awake", B)}
    drain = Drain(NOON, "root", "new fans")
    await room.allocator.set_drained({A: drain, B: drain})
    await room.look(15.0, step=0.5)
    assert room.turns() == {"user-1": ("awake", A), "user-2": ("awake", B)}
    room.machine.computing = {A}
    await room.look(3.0)
    assert room.turns() == {"user-1": ("awake", A), "user-2": ("asleep", None)}
    assert room.running is not None
    assert room.running.turns.want(ben.id)
    await room.look(1.0)
    assert room.machine.programs[rests].state is ProcessState.CHECKPOINTED  # no GPU serves
    await room.allocator.set_drained({A: drain})
    await room.look(0.3)
    assert room.turns() == {"user-1": ("awake", A), "user-2": ("awake", B)}
    assert room.machine.programs[computes].state is ProcessState.RUNNING
    assert [lease.notice for lease in room.allocator.leases()] == ["", ""]


async def test_simulated_gpus_have_seats_and_nothing_to_keep(room: Room) -> None:
    room.simulated = True
    enforcement = await room.broker()
    lease = await room.lease()
    await room.look()
    assert (room.states(), dict(enforcement.turns.views())) == ({"user-1": "asleep"}, {})
    assert enforcement.patch(lease, ContainerPatch()) == ContainerPatch()
    assert room.node.checks == []
