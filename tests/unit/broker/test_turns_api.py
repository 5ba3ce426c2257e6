"""Wake now and give up my turn, by the API, and what the hub asks before it ends a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gpuspawner.broker.api.public.actions import NOT_THERE, NOT_YOURS, Actions
from gpuspawner.broker.api.turns import NO_SEAT, NO_TURNS, TurnService
from gpuspawner.broker.api.visible import is_free
from gpuspawner.broker.decide.replay.replay_turns import BurstyClass, SharedGpus, in_turns
from gpuspawner.broker.decide.snapshot import TurnView
from gpuspawner.broker.decide.turn_waits import HeldUp, expected_waits, held_up
from gpuspawner.broker.decide.turn_words import staying_sentence, waiting_sentence
from gpuspawner.broker.decide.turns import Experience, Gpu, Seat, Turn, TurnRules
from gpuspawner.broker.leases.audit import Answer, Asked
from gpuspawner.broker.observe.sampler import Sampler
from gpuspawner.broker.pages.own.desk import BrokerDesk
from gpuspawner.core.model import Lease, LeaseState, Mode
from gpuspawner.core.want import Want

from tests.unit.broker.test_pages_handlers import Pages, serving

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
ANNA, CLOSED, WHOLE = "a" * 32, "c" * 32, "e" * 32
GIB = 1 << 30


@dataclass
class Log:
    """The audit log."""

    written: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)

    async def write(self, asked: Asked, do: Callable[[], Awaitable[Answer]]) -> Answer:
        self.written.append((asked.author, asked.action, asked.subject, asked.request_id))
        return await do()

    async def repeated(self, asked: Asked) -> Answer | None:
        return None

    async def refuse(self, asked: Asked, message: str) -> None:
        self.refused.append((asked.author, asked.action, message))


@dataclass
class Turns:
    """Seats that note what is asked of them."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    seats: set[str] = field(default_factory=lambda: {ANNA})
    audit: Log = field(default_factory=lambda: Log())

    def want(self, lease_id: str) -> bool:
        self.asked.append((lease_id, "want"))
        return lease_id in self.seats

    def give_up(self, lease_id: str) -> bool:
        self.asked.append((lease_id, "give up"))
        return lease_id in self.seats

    async def before_end(self, lease_id: str) -> bool:
        self.asked.append((lease_id, "end"))
        return lease_id not in self.seats

    def views(self) -> dict[str, TurnView]:
        return {ANNA: TurnView(Turn.PAUSED, NOON, "GPU-1", 5, position=2, wait_seconds=20.0)}


class Leases:
    """Anna's lease in turns, and a whole one of hers."""

    def lease(self, lease_id: str) -> Lease | None:
        modes = {ANNA: Mode.TURNS, WHOLE: Mode.WHOLE}
        if lease_id not in modes:
            return None
        want = Want(1, mode=modes[lease_id])
        return Lease(
            lease_id, "hub", "anna", "", "turns", LeaseState.ASLEEP, want, NOON, NOON, groups=("cs231n",)
        )


@pytest.fixture
async def site() -> AsyncIterator[tuple[Pages, Turns]]:
    turns = Turns()
    nothing: Any = None
    rules: Any = SimpleNamespace(audit=turns.audit)
    service = TurnService(cast(Any, Leases()), cast(Any, turns))
    actions = Actions(rules, nothing, Leases().lease, (), service.act)
    desk = BrokerDesk(rules, nothing, Sampler(dict), actions)
    async with serving(make_desk=lambda api_url: desk) as pages:
        yield pages, turns


async def ask(pages: Pages, token: str, path: str) -> tuple[int, Any]:
    headers = {"Authorization": f"token {token}"}
    async with pages.client.post(f"{pages.url}api/leases/{path}", headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_user_wakes_and_gives_up_their_own(site: tuple[Pages, Turns]) -> None:
    pages, turns = site
    document = {
        "turn": "paused", "since": "2026-01-01T12:00:00Z", "gpu_uuid": "GPU-1", "memory_bytes": 5,
        "moves": False, "position": 2, "wait_seconds": 20.0, "can_move": True, "held_up": None,
    }  # fmt: skip
    woken = "Your server gets a GPU when it is its turn."
    assert await ask(pages, "anna-token", f"{ANNA}/wake") == (200, {"message": woken, "turn": document})
    given_up = {"message": "Your turn ends.", "turn": document}
    assert await ask(pages, "anna-token", f"{ANNA}/yield") == (200, given_up)
    assert turns.asked == [(ANNA, "want"), (ANNA, "give up")]
    assert turns.audit.written == [
        ("anna", "turn: wake", "user:anna", None), ("anna", "turn: yield", "user:anna", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("token", "path", "status", "said"),
    [
        ("monitor-token", f"{ANNA}/wake", 403, NOT_YOURS),
        ("anna-token", f"{WHOLE}/wake", 409, NO_TURNS),
        ("anna-token", f"{CLOSED}/yield", 409, NOT_THERE),
    ],
)
async def test_what_is_refused(
    site: tuple[Pages, Turns], token: str, path: str, status: int, said: str
) -> None:
    pages, turns = site
    found, answer = await ask(pages, token, path)
    assert (found, answer["message"]) == (status, said)
    tried = [("service monitor", "turn: wake", said)] if status == 403 else []
    assert turns.audit.refused == tried
    assert turns.asked == []


async def test_a_server_that_has_no_seat_yet(site: tuple[Pages, Turns]) -> None:
    pages, turns = site
    turns.seats.clear()
    assert (await ask(pages, "anna-token", f"{ANNA}/wake"))[1]["message"] == NO_SEAT


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({}, ""),
        ({"position": 2, "wait_seconds": 19.0}, "Waiting for a GPU: 2nd in line, about 20 s."),
        ({"position": 1, "wait_seconds": 0.4}, "Waiting for a GPU: 1st in line, about 5 s."),
        ({"position": 11, "wait_seconds": 200.0}, "Waiting for a GPU: 11th in line, about 3 min."),
        ({"position": 1}, "Waiting for a GPU: 1st in line."),
        (
            {"position": 1, "held_up": HeldUp.NO_GPU},
            "Waiting for a GPU: 1st in line. No GPU can serve it now: an admin has drained them, or they are "
            "out of service.",
        ),
        (
            {"position": 2, "held_up": HeldUp.PROGRAM},
            "Waiting for a GPU: 2nd in line. Somebody's program can't be paused or moved, so it keeps the "
            "GPU until it ends.",
        ),
        (
            {"position": 1, "held_up": HeldUp.KERNEL},
            "Waiting for a GPU: 1st in line. Somebody's turn is over, but a step of theirs still runs on the "
            "GPU and can't be interrupted: your turn comes when it ends.",
        ),
        (
            {"wait_seconds": 4.0, "moves": True, "turn": Turn.ASLEEP, "memory_bytes": 9 * GIB},
            "Your GPU memory (9.0 GiB) is coming back to a GPU, about 5 s.",
        ),
        (
            {"position": 1, "moves": True, "turn": Turn.ASLEEP, "memory_bytes": 9 * GIB},
            "Your GPU memory (9.0 GiB) is coming back to a GPU.",
        ),
    ],
)
def test_the_line_below_a_waiting_cell(view: dict[str, Any], said: str) -> None:
    sentence = waiting_sentence(TurnView(**{"turn": Turn.PAUSED, "since": NOON, **view}))
    assert sentence == (f"{said} Your variables are safe." if said else "")


def test_the_notice_of_who_holds_a_gpu_says_what_becomes_of_the_program() -> None:
    assert staying_sentence("Why.", True, None) == (
        "Why. Between your turns it is paused, and its memory stays on the GPU."
    )
    assert staying_sentence("Why.", False, None) == (
        "Why. It can't be paused either, so nobody else can use this GPU until it ends."
    )
    for can_pause in (True, False):
        assert staying_sentence("Why.", can_pause, 120.0) == (
            "Why. If others can't compute because of it, it ends in 2 minutes: save your work."
        )


def test_who_waits_for_a_gpu_that_nobody_can_give_reads_why() -> None:
    """Nobody is told a time that can't hold."""
    gpus = [Gpu("A", 80 * GIB), Gpu("B", 80 * GIB, drained=True)]
    wants = Seat("w", Turn.PAUSED, 0.0, 24 * GIB, "A", GIB, wants_since=80.0)
    silent = Seat("s", Turn.AWAKE, 0.0, GIB, "A", GIB, unmovable_since=50.0, can_pause=False)
    large = Seat("l", Turn.PAUSED, 0.0, GIB, "A", 60 * GIB, unmovable_since=50.0)
    outruns = Seat("k", Turn.AWAKE, 0.0, GIB, "A", GIB, outruns_since=70.0)
    movable, rules = replace(large, unmovable_since=None), TurnRules()
    for others, why in (
        ([silent], HeldUp.PROGRAM), ([large], HeldUp.PROGRAM), ([movable], None),
        ([replace(silent, can_pause=True)], None), ([outruns], HeldUp.KERNEL), ([], None),
    ):  # fmt: skip
        seats = [wants, *others]
        assert held_up(wants, seats, gpus) is why
        told = expected_waits(seats, gpus, 100.0, rules, Experience())
        assert ("w" in told) == (why is None)
        assert held_up(replace(wants, wants_since=None), seats, gpus) is None
    assert held_up(wants, [], gpus[1:]) is HeldUp.NO_GPU
    both = [gpus[0], replace(gpus[1], drained=False)]
    assert held_up(wants, [wants, outruns], both) is None
    told = expected_waits([wants, outruns], both, 100.0, rules, Experience())
    assert told["w"] == Experience().wake_seconds(GIB)  # the other GPU is free
    assert held_up(silent, [silent], gpus) is None


def test_the_expected_waits() -> None:
    rules = TurnRules(max_turn_seconds=60.0, min_turn_seconds=2.0, pause_after_seconds=2.0)
    gpus = [Gpu("A", 80 * GIB), Gpu("B", 80 * GIB), Gpu("C", 80 * GIB, usable=False)]
    seats = [
        Seat("a", Turn.AWAKE, 70.0, GIB, "A"), Seat("b", Turn.AWAKE, 95.0, GIB, "B"),
        Seat("c", Turn.PAUSED, 0.0, GIB, "A", GIB, wants_since=80.0),
        Seat("d", Turn.ASLEEP, 0.0, GIB, None, 11 * GIB, wants_since=81.0),
        Seat("e", Turn.PAUSED, 0.0, GIB, "A", GIB, wants_since=82.0),
        Seat("f", Turn.PAUSED, 0.0, GIB, "A", GIB),
    ]  # fmt: skip
    seen = Experience(turn_seconds=20.0)
    found = expected_waits(seats, gpus, 100.0, rules, seen)
    # a has computed for longer than usual; d sleeps and takes B in 15 s; e waits for A, where its memory is.
    assert found == {"c": 10.0, "d": pytest.approx(17.3, abs=0.1), "e": 30.0}
    assert expected_waits(seats, gpus[2:], 100.0, rules, seen) == {}
    # No turn is longer than it may be, and one that is over is over.
    over = [replace(seats[0], since=30.0), *seats[1:]]
    assert expected_waits(over, gpus, 100.0, rules, Experience(turn_seconds=500.0)) == {
        "c": 0.0, "d": pytest.approx(57.3, abs=0.1), "e": 60.0,
    }  # fmt: skip
    elsewhere = [replace(each, sees=frozenset({"B"})) for each in seats if each.lease_id == "d"]
    assert expected_waits(elsewhere, gpus[:1], 100.0, rules, seen) == {}


@pytest.mark.parametrize("max_turn", [15.0, 60.0])
def test_what_a_waiting_person_is_told_is_near_the_wait(max_turn: float) -> None:
    """16 people on four GPUs. With the longest turns supposed it differed by 8 and 53 s on average."""
    course = BurstyClass(16, 1200.0, seed=7).with_busy(0.3)
    told = in_turns(course, SharedGpus(4), TurnRules(max_turn_seconds=max_turn)).told
    assert len(told) > 200
    error = sum(abs(expected - waited) for expected, waited in told) / len(told)
    assert error < 0.55 * sum(waited for _, waited in told) / len(told)


def test_a_seat_is_free_while_somebody_computes() -> None:
    device = {"healthy": True, "lease_id": ANNA, "free_slices": None, "free_seats": 1}
    assert is_free(device)
    assert not is_free({**device, "free_seats": 0, "lease_id": None})
