"""A home is moved whole or not at all, and whatever ends a move, it is on one machine and can be used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from gpuspawner.broker.leases import home_moves
from gpuspawner.broker.leases.home_moves import HomeMove, HomeMoves, MoveOrder, MoveParts, MoveState
from gpuspawner.core.errors import BadOption, EngineFault, GpuSpawnerError, LeaseConflict, RequestConflict
from gpuspawner.core.model import Lease
from gpuspawner.node.homes import HomeFacts

from tests.soon import until
from tests.unit.lease_examples import WAITING, A, lease
from tests.unit.moved_homes import FakeBook, FakeFiles, Killed, Trouble

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
VOLUME = "gpuspawner-home-ada"
ORDER = MoveOrder(VOLUME, "ada", "c")
FACTS = HomeFacts("local", {"o": "size=9g"}, {"gpuspawner.home-size-bytes": "9"})
DATA = b"all of ada's files"
DONE = (
    f"The home {VOLUME} is on c now. The old copy stays on b until you remove it there: "
    f"`docker volume rm {VOLUME}`."
)


@dataclass
class Room:
    """Machines b, which has ada's home, and c; the manager, and a broker."""

    trouble: Trouble = field(default_factory=Trouble)
    leases: list[Lease] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.b, self.c = FakeFiles("b", self.trouble), FakeFiles("c", self.trouble)
        self.b.volumes[VOLUME] = (FACTS, DATA)
        self.book = FakeBook(self.trouble, {VOLUME: "b"})
        self.start()

    def start(self) -> None:
        """A broker, or the next one."""
        self.trouble.what = None if self.trouble.dead else self.trouble.what
        self.trouble.dead = False
        machines, log = {"b": self.b, "c": self.c}, logging.getLogger("moves")
        parts = MoveParts(self.book, lambda: machines, lambda: self.leases, log, lambda: AT)
        self.moves = HomeMoves(parts)

    async def move(self, order: MoveOrder = ORDER) -> HomeMove:
        """Begins a move and returns it when it is over."""
        begun = await self.moves.begin(order)
        await until(lambda: self.moves.all()[-1].state.is_over)
        found = self.moves.all()[-1]
        assert found.id == begun.id
        return found

    def check(self) -> str:
        """What holds after each move and the look that follows; returns the home's machine."""
        machine = self.book.places[VOLUME]
        has = {"b": self.b, "c": self.c}[machine]
        assert has.volumes[VOLUME] == (FACTS, DATA)
        assert (self.book.holds, self.b.marks, self.c.marks) == ({}, set(), set())
        assert self.b.volumes[VOLUME] == (FACTS, DATA)  # the old copy stays
        assert (VOLUME in self.c.volumes) == (machine == "c")
        return machine


async def test_a_home_is_copied_compared_and_only_then_written_down() -> None:
    room = Room()
    assert await room.move() == replace(
        room.moves.all()[0], order=ORDER, source="b", began_at=AT, state=MoveState.DONE,
        size_bytes=len(DATA), message=DONE,
    )  # fmt: skip
    assert room.check() == "c"
    calls = room.trouble.calls
    assert calls.index("book.hold") < calls.index("book.used") < calls.index("b.describe")
    assert calls.index("c.skim") < calls.index("book.place") < calls.index("c.keep")
    assert calls[-1] == "book.release"
    assert (room.b.copies, room.c.copies) == ({}, {})


async def test_an_empty_home_moves_too() -> None:
    room = Room()
    room.b.volumes[VOLUME] = (FACTS, b"")
    assert (await room.move()).message == DONE
    assert room.c.volumes[VOLUME] == (FACTS, b"")


def in_use(room: Room) -> None:
    room.book.used_volumes = {VOLUME}


def in_a_container(room: Room) -> None:
    room.b.volumes[VOLUME] = (replace(FACTS, containers=("a-box",)), DATA)


def waits(room: Room) -> None:
    room.leases = [replace(lease(A, WAITING), user="Ada", server="train")]


def older_copy(room: Room) -> None:
    room.c.volumes[VOLUME] = (FACTS, b"old")


def unknown_machine(room: Room) -> None:
    room.book.places[VOLUME] = "z"


def is_there(room: Room) -> None:
    room.book.places[VOLUME] = "c"


def nowhere(room: Room) -> None:
    room.book.places = {}


def gone(room: Room) -> None:
    room.b.volumes = {}


@pytest.mark.parametrize(
    ("so", "kind", "said"),
    [
        (in_use, LeaseConflict, f"A server has the home {VOLUME}: stop the user's servers first."),
        (in_a_container, LeaseConflict, f"The home {VOLUME} is in use on b, by a-box: stop that first."),
        (waits, LeaseConflict, "A server 'train' of Ada is waiting: stop it first, then move the home."),
        (older_copy, BadOption, f"c has an older volume {VOLUME}, as of an earlier move. If nobody needs it, "
         f"remove it with `docker volume rm {VOLUME}` on c, and try again."),
        (unknown_machine, BadOption, "The home is on z, which isn't one of this broker's machines: see "
         "`gpuspawner node list`."),
        (is_there, BadOption, f"The home {VOLUME} is on c already."),
        (nowhere, BadOption, f"No machine has a home '{VOLUME}': `gpuspawner homes` lists them."),
        (gone, BadOption, f"b has no volume {VOLUME}: nobody has started a server with it yet."),
    ],
)  # fmt: skip
async def test_what_is_refused_changes_nothing(
    so: Callable[[Room], None], kind: type[GpuSpawnerError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home_moves, "GONE_SECONDS", 0.3)
    room = Room()
    so(room)
    places, volumes = dict(room.book.places), (dict(room.b.volumes), dict(room.c.volumes))
    with pytest.raises(kind) as refused:
        await room.moves.begin(ORDER)
    assert str(refused.value) == said
    assert (room.book.places, room.book.holds) == (places, {})
    assert (room.b.volumes, room.c.volumes) == volumes
    assert room.moves.all() == ()


async def test_the_container_of_a_server_that_was_just_stopped_is_waited_for() -> None:
    room = Room()
    in_a_container(room)
    moving = asyncio.create_task(room.move())
    await until(lambda: room.trouble.calls.count("b.describe") > 1)
    assert room.moves.all() == ()
    room.b.volumes[VOLUME] = (FACTS, DATA)
    assert (await moving).message == DONE
    assert room.check() == "c"


async def test_a_machine_that_there_is_not_and_a_second_move() -> None:
    room = Room()
    with pytest.raises(BadOption, match=r"^There is no machine 'z': there are b, c\.$"):
        await room.moves.begin(replace(ORDER, machine="z"))
    await room.moves.begin(ORDER)
    with pytest.raises(RequestConflict, match="is being moved"):
        await room.moves.begin(ORDER)
    await until(lambda: room.moves.all()[-1].state.is_over)
    assert room.check() == "c"


async def test_another_user_with_a_longer_name_is_no_obstacle() -> None:
    room = Room(leases=[replace(lease(A, WAITING), user="ada2")])
    assert (await room.move()).state is MoveState.DONE


async def test_files_that_an_admin_has_brought() -> None:
    room = Room()
    copied = replace(ORDER, copied=True)
    with pytest.raises(BadOption, match=rf"^c has no volume {VOLUME}: copy the files there first\.$"):
        await room.moves.begin(copied)
    room.c.volumes[VOLUME] = (FACTS, DATA)
    room.b.away = True  # it may be lost
    assert (await room.move(copied)).message == DONE
    assert room.book.places == {VOLUME: "c"}
    assert (room.book.holds, room.c.volumes) == ({}, {VOLUME: (FACTS, DATA)})


async def test_a_full_disk_and_a_copy_that_differs() -> None:
    room = Room()
    room.c.room_bytes = 10
    assert (await room.move()).message == (
        f"The home {VOLUME} was not moved, and is still on b: the disk of Docker on c is full: free space "
        "there, and move it again."
    )
    assert room.check() == "b"
    room.c.room_bytes, room.c.spoil = 1 << 20, True
    found = await room.move()
    assert found.state is MoveState.FAILED
    assert "still on b: the copy on c isn't the same as the home" in found.message
    assert room.check() == "b"


STEPS = 33
"""At least as many calls as a move makes, and the look after it."""


def step_count() -> int:
    room = Room()
    asyncio.run(room.move())
    return len(room.trouble.calls)


def test_all_steps_of_a_move_are_tried_below() -> None:
    assert step_count() <= STEPS


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, STEPS + 1))
async def test_a_call_that_fails_leaves_the_home_on_one_machine(at: int, after: bool) -> None:
    """`after`: it was done, but nobody knows."""
    room = Room(Trouble(lambda: EngineFault("Docker did not answer"), at, after))
    with suppress(EngineFault):
        await room.move()
    room.trouble.what = None
    await room.moves.look()
    room.check()
    if room.book.places[VOLUME] == "b":
        assert (await room.move()).message == DONE
        assert room.check() == "c"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, STEPS + 1))
async def test_a_broker_that_is_killed_leaves_it_to_the_next(at: int, after: bool) -> None:
    room = Room(Trouble(Killed, at, after))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        await room.moves.begin(ORDER)
        (task,) = [each for each in asyncio.all_tasks() if each.get_name() == f"move {VOLUME}"] or [None]
        if task is not None:
            await asyncio.wait({task})
            task.exception()
    except Killed:
        pass
    room.trouble.what, room.trouble.dead = None, False
    room.start()
    await room.moves.look()
    room.check()


@pytest.mark.parametrize("at", range(1, STEPS + 1))
@pytest.mark.parametrize("name", ["b", "c"])
async def test_a_machine_that_is_lost_and_comes_back(at: int, name: str) -> None:
    room = Room()
    machine = {"b": room.b, "c": room.c}[name]

    def lose() -> Exception:
        machine.away = True
        machine.copies.clear()
        return EngineFault(f"the machine {name} can't be reached: the connection was closed")

    room.trouble.what, room.trouble.at = lose, at
    with suppress(EngineFault):
        await room.move()
    assert VOLUME in room.book.places
    room.trouble.what = None
    await room.moves.look()
    assert room.book.holds == {}  # its user may start, as soon as the home's own machine is there
    machine.away = False
    await room.moves.look()
    room.check()


async def test_while_the_manager_is_silent_the_home_stays_held() -> None:
    """It was written down as moved, perhaps: nobody may start until that is known."""
    room = Room()

    def silence() -> Exception:
        room.book.silent = True
        return EngineFault("Docker did not answer")

    at = 1 + next(n for n, name in enumerate(await _calls()) if name == "book.place")
    room.trouble.what, room.trouble.at, room.trouble.after = silence, at, True
    found = await room.move()
    assert found.state is MoveState.FAILED
    assert "it isn't known where the home is" in found.message
    assert room.book.holds == {VOLUME: "c"}
    assert room.c.volumes[VOLUME] == (FACTS, DATA)
    room.book.silent = False
    await room.moves.look()
    assert room.check() == "c"


async def _calls() -> list[str]:
    room = Room()
    await room.move()
    return room.trouble.calls


async def test_a_broker_that_ends_leaves_the_move_to_the_next_one() -> None:
    room = Room()
    await room.moves.begin(ORDER)
    await asyncio.sleep(0)
    await room.moves.close()
    assert room.book.holds == {VOLUME: "c"}
    room.start()
    await room.moves.look()
    assert room.check() == "b"


async def test_only_the_last_moves_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuspawner.broker.leases.home_moves.KEPT", 2)
    room = Room()
    for _ in range(4):
        assert (await room.move()).state is MoveState.DONE
        room.c.volumes.clear()
        room.book.places[VOLUME] = "b"
    assert len(room.moves.all()) == 2
