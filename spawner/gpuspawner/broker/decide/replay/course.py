"""Parses a class ("30 students, Mon 10-12, 6 GB") and splits of GPUs; computes what the class gets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ....core.errors import BadOption
from ....core.model import Device, Tier
from ....core.units import format_bytes
from ....core.want import Mode, Want
from ..book import QueueRules
from ..line.fairshare import FairShare
from ..line.queue import NO_CLAIM
from ..place.sharing_rules import DRIVER_BYTES, TURN_RESERVE_BYTES, WHOLE, SharingRules
from .cells import CellForecast, TurnTerms, forecast
from .replay_turns import BurstyClass, SharedGpus
from .simulate import (
    MachineSummary,
    Outcome,
    SimulatedSite,
    Simulation,
    Summary,
    Visit,
    summarize,
    summarize_machines,
)

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ARRIVE_SECONDS = 600.0
"""The students of a class arrive within this time."""
_DAY, _WEEK = 86400.0, 7 * 86400.0
_TOO_MUCH = 1 << 60
"""Memory that no GPU has: asked for by who needs more than any tier promises."""
_EXAMPLE = "write it like '30 students, Mon 10-12, busy 30%, 6 GB'"
_STUDENTS = re.compile(r"(\d+) students?")
_TIMES = re.compile(
    r"((?:[a-z]{3}[a-z]*)(?:\s*\+\s*[a-z]+)*) (\d{1,2})(?::(\d\d))?\s*[-–]\s*(\d{1,2})(?::(\d\d))?"
)
_BUSY = re.compile(r"(?:each )?busy (\d+(?:\.\d+)?) ?%(?: of the time)?")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?(?:gb|gib|g)")
_PARTS = (_STUDENTS, _TIMES, _BUSY, _MEMORY)
_SPLIT = re.compile(r"(\d+) slices?|slices? of (\d+(?:\.\d+)?) ?(?:gb|gib|g)")


@dataclass(frozen=True, slots=True)
class Course:
    """A class: how many people come to each session of the week, and what each needs.

    `days` count from Monday, 0; times are seconds after midnight. `memory_bytes` None: a whole GPU each.
    """

    students: int
    days: tuple[int, ...]
    begins_seconds: float
    ends_seconds: float
    busy_fraction: float = 1.0
    memory_bytes: int | None = None

    @property
    def when(self) -> str:
        """Its times: "Mon 10:00"."""
        hours, minutes = divmod(int(self.begins_seconds) // 60, 60)
        return f"{'+'.join(DAYS[day] for day in self.days)} {hours}:{minutes:02d}"


@dataclass(frozen=True, slots=True)
class Split:
    """A way to share the devices: its name for people, and the rules of every device; `turns` if in turns.

    `terms` are the rules by device, where they differ: of pools, or of machines with labels; devices that it
    doesn't name are in no pool. `tiers` are the site's, for pools: who comes asks for one of them.
    """

    name: str
    rules: SharingRules
    turns: TurnTerms | None = None
    terms: Mapping[str, SharingRules] = field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()

    def shared(self, devices: Iterable[Device]) -> dict[str, SharingRules]:
        """The rules of each of these devices that it shares."""
        if self.terms:
            return {each.uuid: self.terms[each.uuid] for each in devices if each.uuid in self.terms}
        return {each.uuid: self.rules for each in devices if not each.is_mig}

    def tier(self, memory_bytes: int | None) -> Tier:
        """The want of somebody who needs this much memory: the smallest slice that is large enough.

        Of the site's own tiers, the first that promises as much.
        """
        if self.tiers:
            enough = (each for each in self.tiers if _promises(each, memory_bytes))
            return next(
                enough, replace(self.tiers[0], want=replace(self.tiers[0].want, memory_bytes=_TOO_MUCH))
            )
        if self.turns is not None:
            promise = self.turns.promise(memory_bytes)
            if self.turns.promises_bytes and promise not in self.turns.promises_bytes:
                promise = _TOO_MUCH
            return Tier("turns", "A GPU in turns", want=Want(1, mode=Mode.TURNS, memory_bytes=promise))
        if not self.rules.sliced:
            return Tier("gpu", "One GPU", want=Want(1))
        sizes = sorted(
            size for size in self.rules.sizes_bytes if memory_bytes is None or size >= memory_bytes
        )
        size = sizes[0] if sizes else memory_bytes
        return Tier("slice", "A slice", want=Want(1, mode=Mode.SLICE, memory_bytes=size))


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of a split: the numbers, every visit for the picture, and in turns how long cells wait."""

    split: Split
    summary: Summary
    outcomes: tuple[Outcome, ...]
    cells: CellForecast | None = None
    machines: tuple[MachineSummary, ...] = ()
    """Where there are several."""


class Layer(Protocol):
    """What holds in a replay beside the devices: quotas, lab sessions, homes."""

    def over(self, site: SimulatedSite) -> SimulatedSite:
        """The site with it."""
        ...


def _promises(tier: Tier, memory_bytes: int | None) -> bool:
    """Whether the tier gives a GPU, and at least this memory of it; a whole GPU always does."""
    want = tier.want
    if not want.device_count:
        return False
    if memory_bytes is None or want.mode is Mode.WHOLE:
        return True
    return want.memory_bytes is not None and want.memory_bytes >= memory_bytes


def parse_course(text: str) -> Course:
    """The class in words, its parts separated by commas. Raises BadOption, naming the part."""
    students: int | None = None
    times: tuple[tuple[int, ...], float, float] | None = None
    busy, memory, seen = 1.0, None, set[re.Pattern[str] | None]()
    for part in (each.strip().casefold() for each in text.split(",")):
        kind = next((each for each in _PARTS if each.fullmatch(part)), None)
        if kind in seen:
            raise BadOption(f"The class says twice what {part[:60]!r} says: {_EXAMPLE}.")
        seen.add(kind)
        if found := _STUDENTS.fullmatch(part):
            students = int(found[1])
        elif found := _TIMES.fullmatch(part):
            times = _times(found)
        elif found := _BUSY.fullmatch(part):
            busy = float(found[1]) / 100
        elif found := _MEMORY.fullmatch(part):
            memory = int(float(found[1]) * (1 << 30))
        else:
            raise BadOption(f"The class has a part {part[:60]!r} that can't be read: {_EXAMPLE}.")
    if not 0 < busy <= 1:
        raise BadOption(f"The class is busy {busy:.0%} of the time: give more than 0 and at most 100 %.")
    if students == 0 or memory == 0:
        raise BadOption(f"The class {text[:80]!r} has 0 students or 0 GB: {_EXAMPLE}.")
    if not students or times is None:
        raise BadOption(f"The class {text[:80]!r} lacks how many students come, or when: {_EXAMPLE}.")
    return Course(students, *times, busy, memory)


def _times(found: re.Match[str]) -> tuple[tuple[int, ...], float, float]:
    days = []
    for word in re.split(r"\s*\+\s*", found[1]):
        known = [n for n, day in enumerate(DAYS) if word.startswith(day.casefold())]
        if not known:
            raise BadOption(f"{word!r} is no day: take {', '.join(DAYS)}, with + between several.")
        days += known
    begins = int(found[2]) * 3600 + int(found[3] or 0) * 60
    ends = int(found[4]) * 3600 + int(found[5] or 0) * 60
    if not begins < ends <= _DAY:
        raise BadOption("The class must end after it begins, on the same day: Mon 10-12.")
    return tuple(sorted(set(days))), float(begins), float(ends)


def parse_split(text: str, devices: Sequence[Device]) -> Split:
    """ "whole", "8 slices" (of each GPU) or "slices of 10 GB". Raises BadOption, also if none would fit."""
    words = text.strip().casefold()
    if words in ("whole", "whole gpus"):
        return Split("whole GPUs", WHOLE)
    found = _SPLIT.fullmatch(words)
    if found is None:
        raise BadOption(
            f"The split {text[:60]!r} is unknown: take 'whole', 'turns', '8 slices' or 'slices of 10 GB'."
        )
    slices = int(found[1]) if found[1] else None
    sizes = () if found[1] else (int(float(found[2]) * (1 << 30)),)
    if slices == 0:
        raise BadOption("A GPU can't be split into 0 slices: take 'whole', or '8 slices'.")
    rules = SharingRules("plan", Mode.SLICE, slices, sizes, mps=True, reserve_bytes=DRIVER_BYTES)
    largest = min((rules.largest_bytes(each.memory_bytes) for each in devices), default=0)
    if not largest:
        raise BadOption(f"{text.strip()!r} doesn't fit these GPUs: take smaller slices.")
    size = format_bytes(largest)
    return Split(f"{slices} slices of {size}" if slices else f"slices of {size}", rules)


def visits_of(course: Course, tier: Tier, weeks: int) -> list[Visit]:
    """The visits: students arrive evenly in the first ten minutes; those waiting at the end give up."""
    length = course.ends_seconds - course.begins_seconds
    found = []
    for day in (week * 7 + day for week in range(weeks) for day in course.days):
        begins = day * _DAY + course.begins_seconds
        for number in range(course.students):
            late = min(ARRIVE_SECONDS, length / 2) * number / course.students
            left = length - late
            end = begins + length
            found.append(
                Visit(begins + late, f"student-{number + 1}", tier, left, left, course.busy_fraction, end)
            )
    return found


def replay(
    devices: Sequence[Device],
    split: Split,
    visits: Iterable[Visit],
    span_seconds: float,
    layers: Iterable[Layer | None] = (),
) -> Plan:
    """What the visits get where the devices are split so; `span_seconds` is the time that is looked at.

    `layers` are what else holds: quotas first, then lab sessions, then homes.
    """
    rules = split.shared(devices)
    shared = [each for each in devices if each.uuid in rules]
    site = SimulatedSite(shared, rules, QueueRules(lambda lease: NO_CLAIM, FairShare()))
    for layer in layers:
        site = site if layer is None else layer.over(site)
    outcomes = tuple(Simulation(site).run(visits))
    summary = summarize(outcomes, span_seconds * len(shared))
    return Plan(split, summary, outcomes, machines=summarize_machines(outcomes, shared, span_seconds))


def cells_of(devices: Sequence[Device], split: Split, course: Course, seated: int) -> CellForecast | None:
    """How long cells of the class wait in turns, if so many students have a seat; None where nobody has."""
    if split.turns is None or not seated or not devices:
        return None
    usable = min(each.memory_bytes for each in devices) - TURN_RESERVE_BYTES
    promise = split.turns.promise(course.memory_bytes) or usable
    length = course.ends_seconds - course.begins_seconds
    bursty = BurstyClass(
        students=course.students,
        lasts_seconds=length,
        arrive_seconds=min(ARRIVE_SECONDS, length / 2),
        memory_bytes=course.memory_bytes or promise,
        promise_bytes=promise,
    )
    machine = SharedGpus(len(devices), memory_bytes=usable)
    return forecast(bursty.with_busy(course.busy_fraction), seated, machine, split.turns.rules)


def span_of(course: Course, weeks: int) -> float:
    """Seconds in which the class is held."""
    return weeks * len(course.days) * (course.ends_seconds - course.begins_seconds)


def with_tier(visits: Iterable[Visit], split: Split) -> list[Visit]:
    """Recorded visits with this split: each asks for what the split has, under the name of its own tier.

    With the site's own pools, each asks for its tier as it is in the settings now, if there is one. On which
    machine somebody's home is, and what a tier wants of a machine, stays.
    """
    found = []
    own = {each.name: each for each in split.tiers}
    for visit in visits:
        want = visit.tier.want
        if split.tiers:
            tier = own.get(visit.tier.name, visit.tier)
            tier = replace(tier, want=replace(tier.want, node=want.node))
            found.append(replace(visit, tier=tier))
            continue
        several = want.device_count > 1 and not split.rules.sliced
        memory = want.memory_bytes if want.mode is Mode.SLICE else None
        tier = replace(split.tier(memory), name=visit.tier.name)
        tier = replace(tier, want=replace(tier.want, node=want.node, node_label=want.node_label))
        found.append(visit if several else replace(visit, tier=tier))
    return found
