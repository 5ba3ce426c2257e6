"""A pool of turns with virtual time: students come, compute and leave; steps take time, fail, get lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpuspawner.broker.decide.turns import (
    NO_RANK,
    Action,
    Gpu,
    Rank,
    Seat,
    Step,
    Turn,
    TurnRules,
    plan,
    sleep_seconds,
    wake_seconds,
)
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

GIB = 1 << 30
SIZE = 80 * GIB
TICK_SECONDS = 0.25
RULES = TurnRules(
    pause_after_seconds=1.0,
    sleep_after_seconds=30.0,
    min_turn_seconds=2.0,
    max_turn_seconds=10.0,
    patience_seconds=60.0,
    use_patience_seconds=20.0,
    warn_seconds=5.0,
)


@dataclass
class Student:
    """What the machine knows of one seat beside what the broker sees."""

    seat: Seat
    burst_seconds: float = 0.0
    """How much computing is left of what was asked for."""
    runs_on: bool = False
    """Its program does other things when it has computed, instead of waiting for input."""
    pinned: bool = False
    ends_at: float = 0.0
    """When the step that is under way is done."""
    computed_seconds: float = 0.0


@dataclass
class Pool:
    """Time goes on in ticks: steps end, students compute, the plan is asked and its actions begin."""

    gpus: list[Gpu]
    rules: TurnRules = RULES
    now: float = 100.0
    students: dict[str, Student] = field(default_factory=dict)
    log: list[Action] = field(default_factory=list)
    before: list[Seat] = field(default_factory=list)
    """The seats that the plan was asked with last."""

    def seats(self) -> list[Seat]:
        return [each.seat for each in self.students.values()]

    def join(self, name: str, promise_bytes: int, rank: Rank = NO_RANK) -> Student:
        seat = Seat(name, Turn.ASLEEP, self.now, promise_bytes, rank=rank)
        self.students[name] = Student(seat)
        return self.students[name]

    def compute(self, name: str, seconds: float, memory_bytes: int) -> None:
        """Its user runs a cell. Memory comes at the first use, and only while awake."""
        student = self.students[name]
        student.burst_seconds += seconds
        seat = student.seat
        if seat.turn is Turn.AWAKE:
            student.seat = replace(seat, idle_since=None, rests_since=None)
        elif seat.wants_since is None:
            student.seat = replace(seat, wants_since=self.now)
        if seat.turn is Turn.AWAKE:
            self.grow(student, memory_bytes)

    def grow(self, student: Student, memory_bytes: int) -> None:
        """It allocates, up to what was promised."""
        seat = student.seat
        size = max(seat.memory_bytes, min(memory_bytes, seat.promise_bytes))
        student.seat = replace(seat, memory_bytes=size)

    def tick(self) -> None:
        self.now += TICK_SECONDS
        for student in self.students.values():
            if student.seat.under_way is not None and student.ends_at <= self.now:
                self.finish(student, done=True)
            self._compute(student)
        self.before = self.seats()
        for action in plan(self.before, self.gpus, self.now, self.rules):
            self.begin(action)

    def _compute(self, student: Student) -> None:
        seat = student.seat
        if seat.turn is not Turn.AWAKE or seat.under_way is not None:
            return
        if student.burst_seconds > 0:
            student.burst_seconds = max(0.0, student.burst_seconds - TICK_SECONDS)
            student.computed_seconds += TICK_SECONDS
        if student.burst_seconds == 0 and seat.idle_since is None:
            seat = replace(seat, idle_since=self.now)
        if student.runs_on:
            seat = replace(seat, rests_since=None)
        elif seat.idle_since is not None and seat.rests_since is None:
            seat = replace(seat, rests_since=self.now)
        student.seat = seat

    def begin(self, action: Action) -> None:
        student = self.students[action.lease_id]
        seat = student.seat
        assert seat.under_way is None
        self.check(action, seat)
        self.log.append(action)
        seconds = {
            Step.PAUSE: 0.01,
            Step.END: 0.01,
            Step.SLEEP: sleep_seconds(seat.memory_bytes),
            Step.WAKE: wake_seconds(seat.memory_bytes) if seat.turn is Turn.ASLEEP else 0.01,
        }[action.step]
        target = action.gpu_uuid if action.step is Step.SLEEP else seat.target_uuid
        student.seat = replace(seat, under_way=action, target_uuid=target)
        student.ends_at = self.now + seconds

    def check(self, action: Action, seat: Seat) -> None:
        """What must be true of every single action."""
        turn = self.now - seat.since
        if seat.turn is Turn.AWAKE:
            assert action.step in (Step.PAUSE, Step.SLEEP, Step.END)
            assert turn >= self.rules.min_turn_seconds
            if seat.idle_since is None:
                assert turn >= self.rules.max_turn_seconds
                assert any(each.wants_since is not None for each in self.seats() if each is not seat)
        if action.step is Step.WAKE:
            assert seat.wants_since is not None
            assert action.gpu_uuid is not None
            if seat.turn is Turn.PAUSED:
                assert action.gpu_uuid == seat.gpu_uuid
            assert next(gpu for gpu in self.gpus if gpu.uuid == action.gpu_uuid).serves(seat)
            assert action.gpu_uuid not in self.kept_for_others(seat)
        if action.step is Step.SLEEP and action.gpu_uuid is not None:  # a move
            assert seat.turn is Turn.PAUSED
            assert seat.wants_since is not None
            assert action.gpu_uuid != seat.gpu_uuid
            assert action.gpu_uuid not in self.kept_for_others(seat)
        if action.step is Step.SLEEP:
            assert seat.unmovable_since is None

    def kept_for_others(self, seat: Seat) -> set[str | None]:
        """The free GPUs to which the memory of others is under way."""
        moving = (each for each in self.seats() if each is not seat and each.under_way is not None)
        targets = {each.under_way.gpu_uuid for each in moving if each.under_way.step is Step.SLEEP}
        return targets - {each.gpu_uuid for each in self.seats() if each.turn is Turn.AWAKE} - {None}

    def finish(self, student: Student, done: bool) -> None:
        """The step ends: it was done, or it failed and everything is as before."""
        seat = student.seat
        action = seat.under_way
        assert action is not None
        seat = replace(seat, under_way=None)
        if not done:
            student.seat = replace(seat, retry_at=self.now + 1.0, target_uuid=None)
        elif action.step is Step.WAKE:
            student.seat = replace(
                seat,
                turn=Turn.AWAKE,
                gpu_uuid=action.gpu_uuid,
                since=self.now,
                wants_since=None,
                idle_since=None,
                rests_since=None,
                target_uuid=None,
            )
        elif action.step is Step.SLEEP and student.pinned:
            student.seat = replace(seat, unmovable_since=self.now, retry_at=self.now + 1.0)
        else:
            student.seat = self._stopped(seat, action.step, student)
        if action.step is Step.END and done:
            student.burst_seconds, student.pinned = 0.0, False

    def _stopped(self, seat: Seat, step: Step, student: Student) -> Seat:
        """Not awake any more; who was computing wants to go on."""
        turn = Turn.PAUSED if step is Step.PAUSE else Turn.ASLEEP
        wants_since = seat.wants_since
        if wants_since is None and student.burst_seconds > 0 and step is not Step.END:
            wants_since = self.now
        return replace(
            seat,
            turn=turn,
            since=self.now,
            idle_since=None,
            rests_since=None,
            wants_since=None if step is Step.END else wants_since,
            gpu_uuid=seat.gpu_uuid if turn is Turn.PAUSED else None,
            memory_bytes=0 if step is Step.END else seat.memory_bytes,
            unmovable_since=None if step is Step.END else seat.unmovable_since,
        )

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_SECONDS)):
            self.tick()


def assert_sound(pool: Pool) -> None:
    """One owner of each GPU; what lies there and what is promised to the owner fit."""
    for gpu in pool.gpus:
        owners = [each for each in pool.seats() if each.occupies(gpu.uuid)]
        assert len(owners) <= 1, owners
        there = [each for each in pool.seats() if each.lies_on(gpu.uuid)]
        others = sum(each.memory_bytes for each in there if each not in owners)
        assert others + sum(each.needs_bytes() for each in owners) <= gpu.memory_bytes


def assert_nobody_sleeps_beside_a_free_gpu(pool: Pool) -> None:
    """After a plan: nobody who could be woken on a GPU that nobody uses, leaves or is on the way to."""
    for gpu in pool.gpus:
        there = [each for each in pool.seats() if each.lies_on(gpu.uuid)]
        coming = [each for each in pool.seats() if each.target_uuid == gpu.uuid]
        stuck = [each for each in there if each.under_way is not None or each.retry_at > pool.now]
        if stuck or coming or any(each.occupies(gpu.uuid) for each in there):
            continue
        fixed = sum(each.memory_bytes for each in there if each.unmovable_since is not None)
        for seat in pool.seats():
            waits = seat.turn is Turn.ASLEEP and seat.wants_since is not None and seat.under_way is None
            if waits and seat.retry_at <= pool.now and gpu.serves(seat):
                assert fixed + seat.needs_bytes() > gpu.memory_bytes, (gpu, seat)


class TurnsMachine(RuleBasedStateMachine):
    """Everything that may happen to a pool of turns, in any order."""

    @initialize(
        count=st.integers(1, 3),
        cells=st.lists(st.tuples(st.sampled_from([8, 24, 80]), st.integers(0, 40)), max_size=5),
    )
    def open(self, count: int, cells: list[tuple[int, int]]) -> None:
        """A class that is there, some of them in a cell (its promise in GiB, its seconds)."""
        self.pool = Pool([Gpu(f"GPU-{number}", SIZE) for number in range(count)])
        self.numbers = len(cells)
        for number, (promise, seconds) in enumerate(cells):
            self.pool.join(f"lease-{number + 1}", promise * GIB)
            if seconds:
                self.pool.compute(f"lease-{number + 1}", float(seconds), promise * GIB)

    def some(self, which: int) -> Student:
        students = list(self.pool.students.values())
        return students[which % len(students)]

    @precondition(lambda self: len(self.pool.students) < 7)
    @rule(
        promise=st.sampled_from([8, 24, 40, 80]),
        rank=st.builds(Rank, st.integers(0, 1), st.tuples(st.just(0), st.integers(0, 2))),
        first_seen=st.sampled_from([0, 0, 1]),
    )
    def join(self, promise: int, rank: Rank, first_seen: int) -> None:
        """Some containers began while the first GPU was away: they don't see it."""
        self.numbers += 1
        student = self.pool.join(f"lease-{self.numbers}", promise * GIB, rank)
        if len(self.pool.gpus) > first_seen > 0:
            sees = frozenset(gpu.uuid for gpu in self.pool.gpus[first_seen:])
            student.seat = replace(student.seat, sees=sees)

    @precondition(lambda self: self.pool.students)
    @rule(which=st.integers(0, 6), used=st.integers(0, 2))
    def use(self, which: int, used: int) -> None:
        """What it has used grows or decays by a step."""
        student = self.some(which)
        student.seat = replace(student.seat, rank=replace(student.seat.rank, used=(0, used)))

    @precondition(lambda self: self.pool.students)
    @rule(which=st.integers(0, 6), seconds=st.integers(1, 40), memory=st.integers(0, 80))
    def compute(self, which: int, seconds: int, memory: int) -> None:
        self.pool.compute(self.some(which).seat.lease_id, float(seconds), memory * GIB)

    @precondition(lambda self: self.pool.students)
    @rule(which=st.integers(0, 6))
    def killed(self, which: int) -> None:
        del self.pool.students[self.some(which).seat.lease_id]

    @precondition(lambda self: self.pool.students)
    @rule(which=st.integers(0, 6))
    def managed_memory(self, which: int) -> None:
        self.some(which).pinned = True

    @precondition(lambda self: self.pool.students)
    @rule(which=st.integers(0, 6), runs_on=st.booleans())
    def program(self, which: int, runs_on: bool) -> None:
        """It does something else from now on when it has computed, or waits for input."""
        self.some(which).runs_on = runs_on

    @precondition(lambda self: self.pool.students)
    @rule(which=st.integers(0, 6))
    def step_fails(self, which: int) -> None:
        student = self.some(which)
        if student.seat.under_way is not None:
            self.pool.finish(student, done=False)

    @rule(went_on=st.booleans())
    def broker_restarts(self, went_on: bool) -> None:
        """What was under way is finished by the driver, or had not begun; the broker reads what is."""
        for student in self.pool.students.values():
            if student.seat.under_way is not None:
                self.pool.finish(student, done=went_on)
            student.seat = replace(student.seat, retry_at=0.0)

    @rule(which=st.integers(0, 2), usable=st.booleans(), drained=st.booleans())
    def health(self, which: int, usable: bool, drained: bool) -> None:
        number = which % len(self.pool.gpus)
        self.pool.gpus[number] = replace(self.pool.gpus[number], usable=usable, drained=drained)

    @rule(ticks=st.sampled_from([1, 2, 10, 50]))
    def time_passes(self, ticks: int) -> None:
        for _ in range(ticks):
            self.pool.tick()
            assert_sound(self.pool)
            assert_nobody_sleeps_beside_a_free_gpu(self.pool)

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "pool"):
            assert_sound(self.pool)

    def teardown(self) -> None:
        """Whoever wants a GPU now gets one in the end, if everybody goes on computing."""
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        pool.gpus = [replace(gpu, usable=True, drained=False) for gpu in pool.gpus]
        for student in pool.students.values():
            student.burst_seconds = max(student.burst_seconds, 1e6 if student.burst_seconds else 0.0)
        wanting = {each.lease_id for each in pool.seats() if each.wants_since is not None}
        bound = len(pool.students) * (pool.rules.max_turn_seconds + 120.0) + 2 * pool.rules.patience_seconds
        end = pool.now + bound
        while wanting and pool.now < end:
            pool.tick()
            assert_sound(pool)
            assert_nobody_sleeps_beside_a_free_gpu(pool)
            # One whose program was ended, as its memory could not be moved, wants nothing any more.
            wanting -= {
                each.lease_id for each in pool.seats() if each.turn is Turn.AWAKE or each.wants_since is None
            }
        assert not wanting, [each for each in pool.seats() if each.lease_id in wanting]
