"""A class on a virtual clock: its GPUs in turns, as whole GPUs with a queue, or time-sliced. Pure and seeded.

`in_turns` drives the broker's own `plan`. It says whether a change of its rules helps before a GPU is used:

    course = BurstyClass(students=30, lasts_seconds=3600.0).with_busy(0.1)
    machine = SharedGpus(count=4)
    in_turns(course, machine).wait_seconds(0.5)       # the median wait, in seconds
    whole_gpus(course, machine).used_fraction         # how much of the GPUs' time somebody's work takes

A student presses Run, waits for the first result, trains, thinks, and presses Run again. What each one does
is drawn from the seed and is the same in every way. Times and speeds of the machine are as measured.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from ..turn_waits import expected_waits
from ..turns import Action, Experience, Gpu, Seat, Step, Turn, TurnRules, plan, wait_seconds, waiting_order

GIB = 1 << 30
_RULES = TurnRules()
_PLAN_SECONDS = 5.0
"""The plan is asked this often while somebody waits, besides at every event."""


@dataclass(frozen=True, slots=True)
class BurstyClass:
    """What a class does. Ranges are drawn from evenly; train times are of a GPU to oneself.

    `load_seconds`: the first cell loads libraries, while the GPU idles. `promise_bytes` None: a GiB more than
    the memory. `hold_seconds`: how long somebody keeps a whole GPU; None: to the end.
    """

    students: int
    lasts_seconds: float
    train_seconds: tuple[float, float] = (5.0, 30.0)
    think_seconds: tuple[float, float] = (10.0, 60.0)
    arrive_seconds: float = 10.0
    load_seconds: float = 4.0
    memory_bytes: int = 9 * GIB
    promise_bytes: int | None = None
    hold_seconds: float | None = None
    seed: int = 0

    def with_busy(self, busy_fraction: float) -> BurstyClass:
        """Thinking times such that somebody with a GPU of their own trains for this part of the time."""
        low, high = self.train_seconds
        mean = (low + high) / 2 * (1 - busy_fraction) / busy_fraction
        return replace(self, think_seconds=(mean / 2, mean * 1.5))

    def needs_bytes(self) -> int:
        """What is promised to each while it computes."""
        return self.memory_bytes + GIB if self.promise_bytes is None else self.promise_bytes

    def lives(self) -> Iterator[tuple[float, Iterator[tuple[float, float]]]]:
        """Of each student: when it comes, and its cells as seconds of training and of thinking after it."""
        for number in range(self.students):
            draw = Random(f"{self.seed}-{number}")
            yield draw.uniform(0, self.arrive_seconds), self._cells(draw)

    def _cells(self, draw: Random) -> Iterator[tuple[float, float]]:
        while True:
            yield draw.uniform(*self.train_seconds), draw.uniform(*self.think_seconds)


@dataclass(frozen=True, slots=True)
class SharedGpus:
    """The GPUs of a pool. `memory_bytes` is what seats may have of one: all but the reserve.

    `switch_seconds`: a pause, or a wake without memory. `notice_seconds`: until it is seen that somebody
    waits. `lag_seconds`: until it is seen that a GPU idles. `sees_prompts`: whether the broker knows when
    programs wait for input (without it, who is paused within the lag counts as wanting).
    """

    count: int
    memory_bytes: int = 76 * GIB
    speed: Experience = field(default_factory=Experience)
    switch_seconds: float = 0.01
    notice_seconds: float = 0.15
    lag_seconds: float = 0.3
    sees_prompts: bool = True

    def gpus(self) -> tuple[Gpu, ...]:
        """As the plan takes them."""
        return tuple(Gpu(f"GPU-{number}", self.memory_bytes) for number in range(self.count))


@dataclass(frozen=True, slots=True)
class ClassOutcome:
    """What a class came to. `waits`: by student, of each cell the seconds from pressing Run to its first
    result; one that had none waited to the end at least. `stretches`: of each finished cell, the time from
    pressing Run to its end, divided by what it takes alone. `moves`: how often memory left a GPU.
    """

    waits: tuple[tuple[float, ...], ...]
    stretches: tuple[float, ...]
    worked_gpu_seconds: float
    available_gpu_seconds: float
    moves: int = 0
    told: tuple[tuple[float, float], ...] = ()
    """In turns, of each wait for a GPU: the seconds that were told at its begin, and how long it took."""

    @property
    def used_fraction(self) -> float:
        """The part of the GPUs' time in which somebody's work was done."""
        return self.worked_gpu_seconds / self.available_gpu_seconds

    def wait_seconds(self, quantile: float) -> float:
        """The wait that this part of the cells did not exceed. Each student counts the same: one who waited
        to the end with a single cell as much as one who ran a hundred."""
        waits = [(wait, 1 / len(mine)) for mine in self.waits for wait in mine]
        return _quantile(waits, quantile)

    def stretch(self, quantile: float) -> float:
        """How many times longer than alone this part of the cells took at most."""
        return _quantile([(stretch, 1.0) for stretch in self.stretches], quantile)


def whole_gpus(course: BurstyClass, machine: SharedGpus) -> ClassOutcome:
    """Each student has a GPU of their own, held even while they think; the others wait in a queue."""
    tally = _Tally(course, machine)
    hold = course.lasts_seconds if course.hold_seconds is None else course.hold_seconds
    free = [0.0] * machine.count
    for number, (comes, cells) in enumerate(sorted(course.lives(), key=lambda life: life[0])):
        begins = max(comes, heapq.heappop(free))
        leaves = min(begins + hold, course.lasts_seconds)
        heapq.heappush(free, max(leaves, begins))
        pressed, now, load = comes, begins, course.load_seconds
        while now < leaves or now == begins:
            train, think = next(cells)
            tally.begins(number, pressed, now + load)
            tally.works(now + load, min(now + load + train, leaves))
            if now + load + train <= leaves:
                tally.ends(pressed, now + load + train, load + train)
            pressed = now = now + load + train + think
            load = 0.0
    return tally.outcome()


def time_sliced(course: BurstyClass, machine: SharedGpus) -> ClassOutcome:
    """As many students on each GPU as its memory holds; those that compute get equal parts of its time."""
    tally = _Tally(course, machine)
    places = machine.memory_bytes // course.needs_bytes() * machine.count
    lives = sorted(course.lives(), key=lambda life: life[0])
    numbered = [(number, *life) for number, life in enumerate(lives)]
    for gpu in range(machine.count):
        _share_one(course, tally, numbered[:places][gpu :: machine.count])
    for number, comes, _ in numbered[places:]:
        tally.begins(number, comes, course.lasts_seconds)  # there is no room for it
    return tally.outcome()


def in_turns(
    course: BurstyClass,
    machine: SharedGpus,
    rules: TurnRules = _RULES,
) -> ClassOutcome:
    """The broker's plan of turns decides who computes, who is paused and whose memory is moved."""
    return _InTurns(course, machine, rules).run()


class _Tally:
    """What is counted, cut at the end of the class."""

    def __init__(self, course: BurstyClass, machine: SharedGpus) -> None:
        self._end = course.lasts_seconds
        self._available = machine.count * course.lasts_seconds
        self._waits: dict[int, list[float]] = {}
        self._stretches: list[float] = []
        self._worked = 0.0
        self.moves = 0
        self.told: list[tuple[float, float]] = []

    def begins(self, student: int, pressed: float, first_result: float) -> None:
        """A cell's first result, or the end of the class before it."""
        if pressed < self._end:
            self._waits.setdefault(student, []).append(min(first_result, self._end) - pressed)

    def works(self, begins: float, ends: float) -> None:
        """A GPU does somebody's work for so long."""
        self._worked += max(0.0, min(ends, self._end) - begins)

    def ends(self, pressed: float, ended: float, alone_seconds: float) -> None:
        """A cell is done."""
        if ended <= self._end:
            self._stretches.append((ended - pressed) / alone_seconds)

    def outcome(self) -> ClassOutcome:
        """All together."""
        waits = tuple(tuple(self._waits[student]) for student in sorted(self._waits))
        return ClassOutcome(
            waits, tuple(self._stretches), self._worked, self._available, self.moves, tuple(self.told)
        )


def _share_one(
    course: BurstyClass, tally: _Tally, lives: Sequence[tuple[int, float, Iterator[tuple[float, float]]]]
) -> None:
    """One GPU of which everybody who computes gets an equal part."""
    cells = {number: cells for number, _, cells in lives}
    coming = [(comes + course.load_seconds, comes, number) for number, comes, _ in lives]
    heapq.heapify(coming)
    computing: dict[int, _SlicedCell] = {}
    now, end = 0.0, course.lasts_seconds
    while now < end and (coming or computing):
        ends = now + len(computing) * min((each.left for each in computing.values()), default=0.0)
        at = min(end, *[coming[0][0] for _ in coming[:1]], *[ends for _ in computing])
        if computing:
            tally.works(now, at)
        share = (at - now) / max(len(computing), 1)
        for number, cell in list(computing.items()):
            cell.left = _less(cell.left, share)
            if cell.left == 0:
                del computing[number]
                tally.ends(cell.pressed, at, cell.alone)
                heapq.heappush(coming, (at + cell.think, at + cell.think, number))
        now = at
        while coming and coming[0][0] <= now < end:
            _, pressed, number = heapq.heappop(coming)
            train, think = next(cells[number])
            tally.begins(number, pressed, now)
            computing[number] = _SlicedCell(train, pressed, now - pressed + train, think)
    for _, pressed, number in coming:
        tally.begins(number, pressed, end)  # if it pressed Run at all, its libraries were loading


@dataclass(slots=True)
class _SlicedCell:
    """A cell that shares a GPU: what is left, since when, what it takes alone, the thinking after it."""

    left: float
    pressed: float
    alone: float
    think: float


@dataclass(slots=True)
class _Student:
    """One seat, and what the broker doesn't see of it."""

    seat: Seat
    cells: Iterator[tuple[float, float]]
    presses_at: float
    """When it presses Run; infinite while a cell of it is under way."""
    pressed: float = 0.0
    load_left: float = 0.0
    train_left: float = 0.0
    alone: float = 0.0
    think: float = 0.0
    has_begun: bool = False
    """Whether its cell has had its first result."""
    wants_at: float = float("inf")
    """When it is seen that it waits for a GPU."""
    idle_at: float = float("inf")
    """When it is seen that it has ended."""
    step_ends_at: float = float("inf")

    @property
    def has_cell(self) -> bool:
        """Whether a cell of it is under way."""
        return self.presses_at == float("inf")

    @property
    def advances(self) -> bool:
        """Whether its cell goes on now."""
        return self.has_cell and self.seat.turn is Turn.AWAKE and self.seat.under_way is None

    def next_at(self, now: float) -> float:
        """When something happens with it."""
        cell = now + (self.load_left or self.train_left) if self.advances else float("inf")
        return min(cell, self.presses_at, self.wants_at, self.idle_at, self.step_ends_at)


class _InTurns:
    """A class in turns: events, and between them the plan."""

    def __init__(self, course: BurstyClass, machine: SharedGpus, rules: TurnRules) -> None:
        self._course, self._machine, self._rules = course, machine, rules
        self._gpus = machine.gpus()
        self._tally = _Tally(course, machine)
        self._now = 0.0
        self._seen = machine.speed
        self._told: dict[str, tuple[float, float]] = {}
        """Of those who wait for a GPU: since when, and how long they were told it takes."""
        promise = course.needs_bytes()
        self._students = [
            _Student(Seat(f"{n:03}", Turn.ASLEEP, 0.0, promise), cells, comes)
            for n, (comes, cells) in enumerate(course.lives())
        ]

    def run(self) -> ClassOutcome:
        """From the beginning to the end of the class."""
        end = self._course.lasts_seconds
        while self._now < end:
            self._pass_to(min(self._next_at(), end))
            for student in self._students:
                self._happen(student)
            seats = [each.seat for each in self._students]
            for action in plan(seats, self._gpus, self._now, self._rules, self._seen):
                self._begin(action)
            self._tell()
        for student in self._students:
            if student.has_cell and not student.has_begun:
                self._tally.begins(int(student.seat.lease_id), student.pressed, end)
        return self._tally.outcome()

    def _tell(self) -> None:
        """Who begins to wait for a GPU is told how long it will take; who has one has waited."""
        seats = [each.seat for each in self._students]
        for seat in seats:
            if seat.turn is Turn.AWAKE and seat.lease_id in self._told:
                at, expected = self._told.pop(seat.lease_id)
                self._tally.told.append((expected, self._now - at))
        waiting = waiting_order(seats, self._now, self._rules)
        if any(seat.lease_id not in self._told for seat in waiting):
            waits = expected_waits(seats, self._gpus, self._now, self._rules, self._seen)
            for lease_id, expected in waits.items():
                self._told.setdefault(lease_id, (self._now, expected))

    def _next_at(self) -> float:
        at = min(student.next_at(self._now) for student in self._students)
        if any(each.seat.wants_since is not None for each in self._students):
            awake = [each.seat for each in self._students if each.seat.turn is Turn.AWAKE]
            waits = [wait_seconds(seat, self._now, self._rules) for seat in awake]
            soon = min([wait for wait in waits if wait > 0] + [_PLAN_SECONDS])
            at = min(at, self._now + soon + 1e-6)  # so that nothing is left of the wait
        return max(at, self._now)

    def _pass_to(self, at: float) -> None:
        """Cells go on until then."""
        passed = at - self._now
        for student in self._students:
            if student.advances and student.load_left > 0:
                student.load_left = _less(student.load_left, passed)
            elif student.advances:
                self._tally.works(self._now, at)
                student.train_left = _less(student.train_left, passed)
        self._now = at

    def _happen(self, student: _Student) -> None:
        """What is due with one student."""
        now = self._now
        if student.step_ends_at <= now:
            self._step_ends(student)
        if student.presses_at <= now:
            self._press(student)
        if student.wants_at <= now:
            student.wants_at = float("inf")
            if student.seat.turn is not Turn.AWAKE:
                student.seat = replace(student.seat, wants_since=student.seat.wants_since or now)
        if student.idle_at <= now:
            self._mark_idle(student)
        if student.advances and student.load_left == 0:
            self._compute(student)

    def _press(self, student: _Student) -> None:
        student.train_left, student.think = next(student.cells)
        student.load_left = 0.0 if student.alone else self._course.load_seconds
        student.alone = student.load_left + student.train_left
        student.pressed, student.presses_at, student.has_begun = self._now, float("inf"), False
        student.idle_at = float("inf")
        student.seat = replace(student.seat, rests_since=None)
        if student.seat.turn is not Turn.AWAKE or student.seat.under_way is not None:
            student.wants_at = self._now + self._machine.notice_seconds

    def _compute(self, student: _Student) -> None:
        """Its cell computes, begins to, or ends."""
        seat = student.seat
        if not student.has_begun:
            student.has_begun = True
            self._tally.begins(int(seat.lease_id), student.pressed, self._now)
        if student.train_left > 0:
            student.seat = replace(
                seat, idle_since=None, rests_since=None, memory_bytes=self._course.memory_bytes
            )
            return
        self._tally.ends(student.pressed, self._now, student.alone)
        student.presses_at = self._now + student.think
        student.idle_at = self._now + self._machine.lag_seconds

    def _mark_idle(self, student: _Student) -> None:
        """A cell of it ended a moment ago, or it was woken for nothing."""
        student.idle_at = float("inf")
        if student.seat.turn is Turn.AWAKE:
            rests = self._now if self._machine.sees_prompts and not student.has_cell else None
            student.seat = replace(student.seat, idle_since=self._now, rests_since=rests)

    def _begin(self, action: Action) -> None:
        student = next(each for each in self._students if each.seat.lease_id == action.lease_id)
        seat, speed = student.seat, self._machine.speed
        seconds = self._machine.switch_seconds
        if action.step is Step.SLEEP:
            self._tally.moves += 1
            seconds = speed.sleep_seconds(seat.memory_bytes)
        elif action.step is Step.WAKE and seat.turn is Turn.ASLEEP and seat.memory_bytes:
            seconds = speed.wake_seconds(seat.memory_bytes)
        target = action.gpu_uuid if action.step is Step.SLEEP else seat.target_uuid
        student.seat = replace(seat, under_way=action, target_uuid=target)
        student.step_ends_at = self._now + seconds

    def _step_ends(self, student: _Student) -> None:
        """It is awake, paused or asleep now; who was in a cell wants to go on."""
        student.step_ends_at = float("inf")
        seat, now = student.seat, self._now
        action = seat.under_way
        assert action is not None
        seat = replace(seat, under_way=None, since=now, idle_since=None, rests_since=None)
        if action.step is Step.WAKE:
            student.seat = replace(
                seat, turn=Turn.AWAKE, gpu_uuid=action.gpu_uuid, wants_since=None, target_uuid=None
            )
            student.wants_at = float("inf")
            if student.load_left > 0 or not student.has_cell:
                student.idle_at = now + self._machine.lag_seconds
            return
        if seat.turn is Turn.AWAKE:
            self._learn_turn(now - student.seat.since)
            lags = student.idle_at < float("inf") and not self._machine.sees_prompts
            if student.has_cell or lags:
                student.wants_at = now if student.train_left or lags else now + self._machine.notice_seconds
            student.idle_at = float("inf")
        asleep = action.step is Step.SLEEP
        student.seat = replace(
            seat,
            turn=Turn.ASLEEP if asleep else Turn.PAUSED,
            gpu_uuid=None if asleep else seat.gpu_uuid,
        )

    def _learn_turn(self, seconds: float) -> None:
        """As the broker does it."""
        waits = [
            self._now - each.seat.wants_since for each in self._students if each.seat.wants_since is not None
        ]
        if waits:
            self._seen = self._seen.with_turn(min(seconds, max(waits)))


def _less(left: float, passed: float) -> float:
    """What is left; tiny rests of arithmetic count as nothing."""
    rest = left - passed
    return rest if rest > 1e-9 else 0.0


def _quantile(weighted: list[tuple[float, float]], quantile: float) -> float:
    """The smallest value that this part of the weight does not exceed; 0 without values."""
    left = quantile * sum(weight for _, weight in weighted)
    for value, weight in sorted(weighted):
        left -= weight
        if left <= 1e-9:
            return value
    return 0.0
