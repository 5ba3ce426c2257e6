"""One card of "My GPU": what a lease uses, when it ends, whose turn it is, and what can be done. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ....core.units import format_bytes, ordinal
from ...api.visible import Document
from ...decide.turn_waits import HeldUp
from ...decide.turn_words import HELD_UP
from ...observe.sampler import Point
from ..meters import Curve, Meter, compute_curve, compute_meter, memory_curve, memory_meter
from ..rows import Holding
from ..words import length, span

HOUR_SECONDS = 3600.0
_BECAUSE = {
    "session_limit": "the longest session that your quota allows is over then",
    "gpu_hours": "your GPU-hours are used up then",
    "lab_session": "a lab session needs the GPU then",
    "quota_changed": "your quota was changed",
}


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day: `at` for the machine (ISO 8601), `clock` to read."""

    at: str
    clock: str


@dataclass(frozen=True, slots=True)
class End:
    """When a server ends, how long that is from now in words, and why."""

    time: Clock
    left: str
    because: str
    soon: bool


@dataclass(frozen=True, slots=True)
class TurnRow:
    """A lease's turn: `word` is awake, paused or asleep; `sentence` explains it."""

    word: str
    sentence: str
    others: str
    can_wake: bool
    can_yield: bool
    if_given_up: str = ""
    """What the button "Give up my turn" does now."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to the server."""

    time: Clock
    title: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Card:
    """A lease of the viewer's own. The buttons that are shown: `can_stop` (stop or leave the queue),
    `can_use_cpu`, and `extend_seconds` more than 0."""

    holding: Holding
    title: str
    wait: tuple[Clock, ...]
    memory: Meter | None
    memory_curve: Curve | None
    compute: Meter | None
    compute_curve: Curve | None
    compute_help: str
    whole_device: str
    end: End | None
    turn: TurnRow | None
    happenings: tuple[Happening, ...]
    can_stop: bool
    can_use_cpu: bool
    extend_seconds: float = 0.0
    why_not_extended: str = ""
    """Why there is no button to extend the session that ends; "" if there is one, or if it wouldn't help."""

    @property
    def extend_words(self) -> str:
        """By how much the button extends: "1 hour", "20 minutes"."""
        return span(self.extend_seconds)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card needs besides its lease. The functions are by lease id."""

    status: Document
    now: datetime
    stops: bool
    has_cpu_tier: bool
    curve: Callable[[str], Sequence[Point]]
    extend_seconds: Callable[[str], float]
    why_not_extended: Callable[[str], str] = lambda lease_id: ""


def lease_card(lease: Mapping[str, Any], holding: Holding, facts: Facts) -> Card:
    """The card of a lease that holds devices."""
    sliced, simulated = lease.get("mode") == "slice", bool(facts.status["simulated"])
    runs = lease["state"] in ("running", "asleep")
    points = facts.curve(lease["id"])
    quota_bytes = lease["memory_bytes"]
    held = _held(lease, facts.status)
    extend_seconds = _extend_seconds(lease, facts) if runs else 0.0
    limited = runs and lease.get("ends_because") == "session_limit"
    return Card(
        holding=holding,
        title=f"{'A slice of ' if sliced else ''}{', '.join(holding.devices)}",
        wait=(),
        memory=memory_meter(lease.get("used_bytes"), quota_bytes, simulated) if runs else None,
        memory_curve=memory_curve(points, quota_bytes),
        compute=compute_meter(lease.get("busy_percent")) if runs and not simulated else None,
        compute_curve=compute_curve(points),
        compute_help=_compute_help(lease) if sliced else "",
        whole_device=format_bytes(held[0]["memory_bytes"]) if sliced and held and not simulated else "",
        end=_end(lease, facts.now),
        turn=_turn(lease, facts),
        happenings=tuple(_happenings(lease, facts.status["ended"])),
        can_stop=facts.stops and lease["state"] != "releasing",
        can_use_cpu=facts.stops and facts.has_cpu_tier and runs,
        extend_seconds=extend_seconds,
        why_not_extended=facts.why_not_extended(lease["id"]) if limited and not extend_seconds else "",
    )


def _extend_seconds(lease: Mapping[str, Any], facts: Facts) -> float:
    """By how much the session can be made longer with one click, in whole minutes; 0: no button."""
    return min(HOUR_SECONDS, facts.extend_seconds(lease["id"])) // 60 * 60


def place_card(entry: Mapping[str, Any], holding: Holding, facts: Facts) -> Card:
    """The card of a place in the queue."""
    return Card(
        holding=holding,
        title=f"You are {holding.place} for a GPU",
        wait=_wait(entry),
        memory=None,
        memory_curve=None,
        compute=None,
        compute_curve=None,
        compute_help="",
        whole_device="",
        end=None,
        turn=None,
        happenings=(),
        can_stop=facts.stops,
        can_use_cpu=False,
    )


def _held(lease: Mapping[str, Any], status: Document) -> list[Document]:
    return [device for device in status["devices"] if device["uuid"] in lease["device_uuids"]]


def _compute_help(lease: Mapping[str, Any]) -> str:
    percent = lease["compute_percent"]
    limit = f" Yours is limited to {percent:g} % of its compute." if percent < 100 else ""
    return f"The whole GPU, with everybody who shares it.{limit}"


def clock_of(iso: str) -> str:
    """ "14:30 UTC"; the page's script shows the viewer's own time zone."""
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%H:%M} UTC"


def _end(lease: Mapping[str, Any], now: datetime) -> End | None:
    at = lease.get("ends_at")
    if at is None:
        return None
    seconds = max(0.0, (datetime.fromisoformat(at) - now).total_seconds())
    because = _BECAUSE.get(lease.get("ends_because", ""), "")
    return End(Clock(at, clock_of(at)), length(seconds), because, soon=seconds <= 900)


def _turn(lease: Mapping[str, Any], facts: Facts) -> TurnRow | None:
    turn = lease.get("turn")
    if turn is None:
        return None
    word, position = str(turn["turn"]), turn.get("position")
    others = sum(
        1
        for other in facts.status["leases"]
        if other["id"] != lease["id"]
        and (other.get("turn") or {}).get("position") is not None
        and not set(other["device_uuids"]).isdisjoint(lease["device_uuids"])  # each begins with its home
    )
    return TurnRow(
        word=word,
        sentence=_turn_sentence(word, position, turn),
        others=_others(others),
        can_wake=word != "awake" and position is None,
        can_yield=word == "awake",
        if_given_up=_if_given_up(others) if word == "awake" else "",
    )


def _others(count: int) -> str:
    if not count:
        return "Nobody else waits for a turn."
    return "1 other waits for a turn." if count == 1 else f"{count} others wait for a turn."


def _if_given_up(others: int) -> str:
    if others:
        return "the next in line gets the GPU. Your programs are paused until your next turn; variables stay."
    return "nobody waits, so a program that computes has the GPU again at once. Your variables stay."


def _turn_sentence(word: str, position: int | None, turn: Mapping[str, Any]) -> str:
    if word == "awake":
        return "Your programs have the GPU now."
    where = "keeps its memory on the GPU" if word == "paused" else "is in the machine's memory"
    size = turn.get("memory_bytes")
    amount = f" ({format_bytes(size)})" if size else ""
    state = f"Your work{amount} {where} and goes on when you use it."
    if position is None:
        return state
    wait = turn.get("wait_seconds")
    likely = f", likely in {length(wait)}" if wait is not None else ""
    held_up = turn.get("held_up")
    because = "" if held_up is None else f" {HELD_UP[HeldUp(held_up)]}"
    return f"{state} You are {ordinal(position)} in line for the GPU{likely}.{because}"


def _happenings(lease: Mapping[str, Any], ended: Iterable[Document]) -> Iterable[Happening]:
    for each in ended:
        if each.get("lease_id") != lease["id"]:
            continue
        quota = each.get("quota_bytes")
        used = f": {format_bytes(each['used_bytes'])} of {format_bytes(quota)}" if quota else ""
        time = Clock(each["at"], clock_of(each["at"]))
        yield Happening(time, f"{each['name']} ended{used}", each["sentence"])


def _wait(entry: Mapping[str, Any]) -> tuple[Clock, ...]:
    """The likely begin, at the earliest and at the latest, to the minute; one time if both are the same."""
    times = (entry.get("earliest_at"), entry.get("latest_at"))
    minutes = [_nearest_minute(at) for at in times if at is not None]
    clocks = [Clock(at, clock_of(at)) for at in minutes]
    if len(clocks) == 2 and clocks[0].clock == clocks[1].clock:
        return (clocks[1],)
    return tuple(clocks)


def _nearest_minute(iso: str) -> str:
    """The time as the sentence of the waiting page has it, so that both say the same."""
    seconds = datetime.fromisoformat(iso).timestamp()
    return f"{datetime.fromtimestamp(round(seconds / 60) * 60, UTC):%Y-%m-%dT%H:%M:%SZ}"
