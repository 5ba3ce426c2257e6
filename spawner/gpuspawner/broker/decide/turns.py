"""Who computes on which GPU of a pool of turns, who is paused, moved to host memory or woken. Pure.

`plan` is asked again and again. It sees every seat (a lease of the pool), what it does and what is under way,
and says what to begin now. It keeps no state: after a restart it continues from what it sees.

Its actions keep these rules, whatever happened before:
1. On each GPU one seat at most is awake or about to be.
2. On each GPU the memory of who stays and what is promised to who is awake fit beside the reserve.
3. No sleeping seat that wants a GPU waits while one that it sees is free: it is woken, or room is made for
it. A GPU is not free while it is kept for a seat whose memory is on its way there, or while it is out of
service or drained: then nobody is woken there, and memory of those who don't compute leaves it.
4. No seat is paused before `min_turn`; a seat that computes is paused only after `max_turn` with others
waiting.
5. Every seat that wants a GPU gets one: by `Rank` (priority, then groups that compute on fewer GPUs than they
are guaranteed, then decayed use for the weight), then by how long it has wanted one. But no seat passes one
that has wanted a GPU for `patience_seconds`, and none passes one for its use alone that has wanted it for
`use_patience_seconds`.
6. Memory is moved to another GPU only if the seat computes there sooner than where its memory is, as far as
is known, and that GPU is kept for it meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf

SLEEP_BYTES_A_SECOND = 2.0 * (1 << 30)
WAKE_BYTES_A_SECOND = 5.5 * (1 << 30)
"""Measured on H100 and H200 with driver 580; only used to compare waiting with moving."""
CONTEXT_SECONDS = 0.3
"""What a sleep or a wake takes without any memory."""
TURN_SECONDS = 15.0
"""How long a turn lasts, before any was seen."""
_NEW_WEIGHT = 0.2
"""What the newest observation counts in an average."""
_LEARN_FROM_BYTES = 1 << 30
"""Smaller moves say nothing about the speed."""


class Turn(StrEnum):
    """Where a seat is. A container without a CUDA program is asleep, with no memory."""

    AWAKE = "awake"
    PAUSED = "paused"
    ASLEEP = "asleep"


class Step(StrEnum):
    """What is done with a seat."""

    PAUSE = "pause"
    SLEEP = "sleep"
    WAKE = "wake"
    END = "end"
    """Its programs on the GPU end, since their memory can't leave it and others can't compute."""


@dataclass(frozen=True, slots=True)
class Action:
    """One step for one lease. `gpu_uuid` is where a wake goes; of a sleep, the GPU that is kept for the seat
    meanwhile, because it is woken there next."""

    step: Step
    lease_id: str
    gpu_uuid: str | None = None


@dataclass(frozen=True, slots=True)
class Rank:
    """A seat's place by the policy: the higher `priority`, then who is owed a GPU, then the smaller `used`.

    `used` is decayed use in steps (of the group for its weight, then of the user): those who have used about
    as much are equals and take turns. `guaranteed`: on so many GPUs of the pool members of `group` may
    compute before others, whoever of them it is.
    """

    priority: int = 0
    used: tuple[int, ...] = ()
    group: str = ""
    guaranteed: float = 0.0


NO_RANK = Rank()


@dataclass(frozen=True, slots=True)
class Seat:
    """A lease of the pool as it is now. Times are monotonic seconds.

    `gpu_uuid` is where it is awake, or where its memory lies while it is paused. `memory_bytes` is what it
    has on the GPU or in host memory. `promise_bytes` is what it may have while it is awake. `wants_since`: it
    waits for a GPU since then. `idle_since`: it is awake and has not computed since then; None while it
    computes. `rests_since`: besides, its programs wait for input since then, as a notebook between two cells;
    None while one of them runs, or where that isn't known.
    """

    lease_id: str
    turn: Turn
    since: float
    promise_bytes: int
    gpu_uuid: str | None = None
    memory_bytes: int = 0
    wants_since: float | None = None
    idle_since: float | None = None
    rests_since: float | None = None
    rank: Rank = NO_RANK
    under_way: Action | None = None
    """What has begun and has not ended."""
    unmovable_since: float | None = None
    """Its memory can't leave the GPU (managed memory, NCCL): known since then."""
    can_pause: bool = True
    """False: the driver does not answer for it (NCCL), so it is unmovable and can not even be paused."""
    outruns_since: float | None = None
    """Its turn was to end then, but what the GPU computes for it has not ended: nobody knows when it will."""
    retry_at: float = 0.0
    """Something failed: nothing is tried with it before."""
    target_uuid: str | None = None
    """The GPU for which its memory was moved: kept for it until it is awake."""
    sees: frozenset[str] | None = None
    """The GPUs of which its container has the device node; None: all. It can be woken on no other."""

    def lies_on(self, gpu_uuid: str) -> bool:
        """Whether it has memory there, or is being woken there."""
        if self.turn is not Turn.ASLEEP and self.gpu_uuid == gpu_uuid:
            return True
        return self._wakes_on(gpu_uuid)

    def occupies(self, gpu_uuid: str) -> bool:
        """Whether it computes there, or is about to."""
        return (self.turn is Turn.AWAKE and self.gpu_uuid == gpu_uuid) or self._wakes_on(gpu_uuid)

    def _wakes_on(self, gpu_uuid: str) -> bool:
        action = self.under_way
        return action is not None and action.step is Step.WAKE and action.gpu_uuid == gpu_uuid

    def needs_bytes(self) -> int:
        """What must be there for it while it is awake."""
        return max(self.promise_bytes, self.memory_bytes)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of the pool. `memory_bytes` is what seats may have of it: all but the reserve."""

    uuid: str
    memory_bytes: int
    usable: bool = True
    """Whether it is healthy, so that somebody may be woken there."""
    drained: bool = False
    """An admin wants it empty: only memory that can't leave it computes there."""

    def serves(self, seat: Seat) -> bool:
        """Whether the seat may be woken there. Memory that can't leave its GPU is woken on no other."""
        if not self.usable or (seat.sees is not None and self.uuid not in seat.sees):
            return False
        if seat.unmovable_since is not None and seat.turn is not Turn.ASLEEP:
            return seat.lies_on(self.uuid)
        return not self.drained


@dataclass(frozen=True, slots=True)
class TurnRules:
    """Times in seconds. `prompt_after`: a turn that others wait for ends when the seat has computed nothing
    and its programs have waited for input for this long. `pause_after`: it ends when it has computed nothing
    for this long, even if a program runs: it may be loading a library or data. `sleep_after`: the memory of a
    seat idle for this long goes to host memory even if nobody wants the GPU. `warn`: the time between the
    notice that a program blocks others and its end; None: it is never ended. `patience`: who has wanted a GPU
    for this long is passed by nobody. `use_patience`: nor by somebody of the same priority who has used less.
    """

    pause_after_seconds: float = 10.0
    sleep_after_seconds: float = 900.0
    min_turn_seconds: float = 1.0
    max_turn_seconds: float = 60.0
    patience_seconds: float = 600.0
    use_patience_seconds: float = 120.0
    warn_seconds: float | None = 120.0
    prompt_after_seconds: float = 0.2


@dataclass(frozen=True, slots=True)
class Experience:
    """What is known of this machine and its users: how fast memory moves, how long a turn lasts on average.

    Only used to compare ways: it never ends a turn.
    """

    sleep_bytes_a_second: float = SLEEP_BYTES_A_SECOND
    wake_bytes_a_second: float = WAKE_BYTES_A_SECOND
    turn_seconds: float = TURN_SECONDS

    def sleep_seconds(self, memory_bytes: int) -> float:
        """About how long it takes to move so much to host memory."""
        return CONTEXT_SECONDS + memory_bytes / self.sleep_bytes_a_second

    def wake_seconds(self, memory_bytes: int) -> float:
        """About how long it takes to move so much back."""
        return CONTEXT_SECONDS + memory_bytes / self.wake_bytes_a_second

    def with_move(self, step: Step, moved_bytes: int, seconds: float) -> Experience:
        """After a sleep or a wake that moved so much in so many seconds."""
        if moved_bytes < _LEARN_FROM_BYTES:
            return self
        speed = moved_bytes / max(seconds - CONTEXT_SECONDS, 0.01)
        if step is Step.SLEEP:
            return replace(self, sleep_bytes_a_second=_average(self.sleep_bytes_a_second, speed))
        if step is Step.WAKE:
            return replace(self, wake_bytes_a_second=_average(self.wake_bytes_a_second, speed))
        return self

    def with_turn(self, seconds: float) -> Experience:
        """After a turn of this length that others waited for."""
        return replace(self, turn_seconds=_average(self.turn_seconds, seconds))


def _average(before: float, newest: float) -> float:
    return (1 - _NEW_WEIGHT) * before + _NEW_WEIGHT * newest


def plan(
    seats: Sequence[Seat],
    gpus: Sequence[Gpu],
    now: float,
    rules: TurnRules,
    seen: Experience = Experience(),
) -> tuple[Action, ...]:
    """What to begin now. For each seat one action at most, and none for a seat with one under way."""
    planning = _Planning(seats, gpus, now, rules, seen)
    for seat in waiting_order(seats, now, rules):
        planning.serve(seat)
    for gpu in gpus:
        planning.keep_promise(gpu)
    planning.put_idle_to_sleep()
    return tuple(planning.actions.values())


def waiting_order(seats: Iterable[Seat], now: float, rules: TurnRules) -> list[Seat]:
    """Those that want a GPU and have none, in the order in which they get one."""

    def key(seat: Seat) -> tuple[float, bool, tuple[int, ...], float, str]:
        since = seat.wants_since or 0.0
        patient = now - since < rules.patience_seconds
        priority = -seat.rank.priority if patient else -inf
        used = seat.rank.used if now - since < _use_patience(rules) else ()
        return priority, patient and seat.lease_id not in owed, used, since, seat.lease_id

    everybody, owed = list(seats), set[str]()
    waiting = [seat for seat in everybody if seat.wants_since is not None and seat.turn is not Turn.AWAKE]
    order = sorted((seat for seat in waiting if not _is_waking(seat)), key=key)
    if all(seat.rank.guaranteed <= 0 for seat in order):
        return order
    owed |= _owed(everybody, order, now, rules)
    return sorted(order, key=key)


def _owed(seats: Iterable[Seat], order: Iterable[Seat], now: float, rules: TurnRules) -> set[str]:
    """Who of those that wait has a GPU to come from the guarantee of its group, the first in the order first.

    A member whose turn is over takes nothing from another one.
    """
    taken = Counter(
        seat.rank.group
        for seat in seats
        if _is_waking(seat) or (seat.turn is Turn.AWAKE and wait_seconds(seat, now, rules) > 0)
    )
    owed = set()
    for seat in order:
        if taken[seat.rank.group] + 1 <= seat.rank.guaranteed:
            taken[seat.rank.group] += 1
            owed.add(seat.lease_id)
    return owed


def unmovable(seats: Iterable[Seat]) -> tuple[Seat, ...]:
    """Those whose memory can't leave its GPU; usually nobody."""
    return tuple(seat for seat in seats if seat.unmovable_since is not None)


def may_come(seat: Seat, gpu: Gpu, staying: Iterable[Seat]) -> bool:
    """Whether its turn on that GPU can come without the end of one of those `unmovable` programs.

    It can't while one of them computes there that can't even be paused, or if their memory takes the room of
    what the seat is promised.
    """
    others = [each for each in staying if each.lease_id != seat.lease_id and each.lies_on(gpu.uuid)]
    held = any(each.occupies(gpu.uuid) and not each.can_pause for each in others)
    return not held and sum(each.memory_bytes for each in others) + seat.needs_bytes() <= gpu.memory_bytes


def most_seats(sleep_memory_bytes: int, promise_bytes: int) -> int:
    """How many leases with this promise can all be asleep at once: more are not admitted."""
    return sleep_memory_bytes // promise_bytes


def wait_seconds(seat: Seat, now: float, rules: TurnRules) -> float:
    """How long until the turn of an awake seat can be ended, if it continues as now."""
    turn = now - seat.since
    left = rules.max_turn_seconds - turn
    if seat.idle_since is not None:
        left = min(left, rules.pause_after_seconds - (now - seat.idle_since))
        if seat.rests_since is not None:
            left = min(left, rules.prompt_after_seconds - (now - seat.rests_since))
    return max(0.0, left, rules.min_turn_seconds - turn, seat.retry_at - now)


def sleep_seconds(memory_bytes: int) -> float:
    """About how long it takes to move so much to host memory."""
    return Experience().sleep_seconds(memory_bytes)


def wake_seconds(memory_bytes: int) -> float:
    """About how long it takes to move so much back."""
    return Experience().wake_seconds(memory_bytes)


@dataclass(frozen=True, slots=True)
class _Room:
    """What it takes until a seat's memory fits: who must leave, and whether somebody is leaving for it."""

    evicted: tuple[Seat, ...] = ()
    is_awaited: bool = False


@dataclass(frozen=True, slots=True)
class _Way:
    """How a waiting seat could come to compute on one GPU.

    `seconds`: about how long until it computes there. `wait_seconds`: until the occupant's turn may end.
    `is_blocked`: the GPU is taken or kept for another for now.
    """

    gpu_uuid: str
    seconds: float
    is_elsewhere: bool = False
    is_blocked: bool = False
    resident_count: int = 0
    wait_seconds: float = 0.0
    occupant: Seat | None = None
    room: _Room = field(default_factory=_Room)

    def sort_key(self) -> tuple[float, bool, int, int, str]:
        """Soonest first; then where its memory is; then where fewest others must go, and fewest are."""
        return self.seconds, self.is_elsewhere, len(self.room.evicted), self.resident_count, self.gpu_uuid


class _Planning:
    """One call of `plan`: gathers actions, and counts with them as if they were under way."""

    def __init__(
        self, seats: Sequence[Seat], gpus: Sequence[Gpu], now: float, rules: TurnRules, seen: Experience
    ) -> None:
        self._seats, self._gpus, self._now, self._rules = tuple(seats), tuple(gpus), now, rules
        self._seen = seen
        self._staying = unmovable(seats)
        self._taken: set[str] = set()
        """GPUs on which an action is under way, or that an earlier seat gets."""
        self._ahead: dict[str, float] = {}
        """By GPU: about how long the turns of the seats last that get it earlier."""
        order = waiting_order(seats, now, rules)
        self._rank = {each.lease_id: n for n, each in enumerate(order)}
        self._owed = _owed(seats, order, now, rules)
        self._computing = Counter(each.rank.group for each in seats if each.turn is Turn.AWAKE)
        """By group: on how many GPUs it computes."""
        self.actions: dict[str, Action] = {}
        self._lying = {gpu.uuid: [each for each in seats if each.lies_on(gpu.uuid)] for gpu in gpus}
        """By GPU: who has memory there, or is being woken there."""
        self._occupant = {
            uuid: next((each for each in lying if each.occupies(uuid)), None)
            for uuid, lying in self._lying.items()
        }
        for seat in seats:
            self._taken |= _touched(seat, self._gpus)
        self._kept = {
            seat.target_uuid: seat.lease_id for seat in seats if self._is_on_its_way_to_target(seat)
        }

    def serve(self, seat: Seat) -> None:
        """The next waiting seat: it is woken, or the seat in its way is moved, or it waits."""
        if not self._may_begin(seat):
            return
        if seat.turn is Turn.PAUSED and (self._must_leave(seat) or self._is_shut_out(seat)):
            if self._may_sleep(seat):
                self._begin(Action(Step.SLEEP, seat.lease_id))  # and woken on another GPU
            return
        ways = [way for gpu in self._gpus if (way := self._way(seat, gpu)) is not None]
        if seat.turn is Turn.ASLEEP:
            kept = [way for way in ways if way.gpu_uuid == seat.target_uuid and way.wait_seconds == 0]
            ways = kept or [way for way in ways if way.occupant is None] or ways
        if not ways:
            self._end_obstacle(seat)
            return
        way = min(ways, key=_Way.sort_key)
        is_next = way.gpu_uuid not in self._ahead and not way.is_blocked
        self._ahead[way.gpu_uuid] = self._ahead.get(way.gpu_uuid, 0.0) + self._seen.turn_seconds
        if way.is_elsewhere:
            self._taken.add(way.gpu_uuid)
            self._begin(Action(Step.SLEEP, seat.lease_id, way.gpu_uuid))  # and woken there once it sleeps
        elif is_next:
            self._go(seat, way)

    def _go(self, seat: Seat, way: _Way) -> None:
        """The next step on this way. Room is made while the occupant computes, as far as others make it."""
        others = [each for each in way.room.evicted if each is not way.occupant]
        if way.wait_seconds > 0:
            for each in others:
                soon = way.wait_seconds <= self._seen.sleep_seconds(each.memory_bytes)
                if soon or each.wants_since is None:
                    self._begin(Action(Step.SLEEP, each.lease_id))
            return
        self._taken.add(way.gpu_uuid)
        for each in others:
            self._begin(Action(Step.SLEEP, each.lease_id))
        if others or way.room.is_awaited:
            return
        if way.occupant is None:
            self._begin(Action(Step.WAKE, seat.lease_id, way.gpu_uuid))
        else:
            step = Step.SLEEP if way.room.evicted else Step.PAUSE
            self._begin(Action(step, way.occupant.lease_id))

    def keep_promise(self, gpu: Gpu) -> None:
        """Makes room for the awake seat, if others there have too much memory by now."""
        if gpu.uuid in self._taken:
            return
        awake = self._occupant[gpu.uuid]
        if awake is None:
            return
        room = self._room_for(awake, gpu)
        for each in room.evicted if room is not None else ():
            self._begin(Action(Step.SLEEP, each.lease_id))

    def put_idle_to_sleep(self) -> None:
        """Moves seats that have not computed for long and don't want a GPU."""
        for seat in self._seats:
            idle_since = seat.since if seat.turn is Turn.PAUSED else seat.idle_since
            if seat.turn is Turn.ASLEEP or seat.wants_since is not None or idle_since is None:
                continue
            leaves, rules = self._must_leave(seat), self._rules
            after = rules.pause_after_seconds if leaves else rules.sleep_after_seconds
            long_enough = self._now - idle_since >= after
            turn_over = self._now - seat.since >= self._rules.min_turn_seconds
            if long_enough and turn_over and self._may_sleep(seat) and seat.gpu_uuid not in self._taken:
                self._begin(Action(Step.SLEEP, seat.lease_id))

    def _must_leave(self, seat: Seat) -> bool:
        """Whether it can't compute any more where its memory is."""
        home = next((gpu for gpu in self._gpus if gpu.uuid == seat.gpu_uuid), None)
        return seat.turn is not Turn.ASLEEP and (home is None or not home.serves(seat))

    def _is_shut_out(self, seat: Seat) -> bool:
        """Whether somebody keeps it from ever computing where its memory is, but not on every GPU."""
        staying = self._staying
        if not staying:
            return False
        open_to_it = {gpu.uuid for gpu in self._gpus if gpu.serves(seat) and may_come(seat, gpu, staying)}
        return bool(open_to_it) and seat.gpu_uuid not in open_to_it

    def _begin(self, action: Action) -> None:
        self.actions[action.lease_id] = action

    def _may_begin(self, seat: Seat) -> bool:
        return seat.under_way is None and seat.lease_id not in self.actions and seat.retry_at <= self._now

    def _may_sleep(self, seat: Seat) -> bool:
        return self._may_begin(seat) and seat.unmovable_since is None

    def _way(self, seat: Seat, gpu: Gpu) -> _Way | None:
        """How it could come to compute there; None if it can't as things are."""
        is_home = seat.turn is Turn.PAUSED and seat.gpu_uuid == gpu.uuid
        ahead = self._ahead.get(gpu.uuid, 0.0)
        if gpu.uuid in self._taken or self._kept.get(gpu.uuid, seat.lease_id) != seat.lease_id:
            turn = ahead or self._seen.turn_seconds
            return _Way(gpu.uuid, turn, is_blocked=True) if is_home and gpu.serves(seat) else None
        occupant = self._occupant[gpu.uuid]
        if not gpu.serves(seat):
            return None
        if occupant is not None and (occupant.lease_id in self.actions or not occupant.can_pause):
            return None
        wait = 0.0 if occupant is None else self._wait_for(seat, occupant)
        is_elsewhere = seat.turn is Turn.PAUSED and not is_home
        if is_elsewhere and (wait > 0 or ahead > 0 or not self._is_worth_moving(seat, gpu)):
            return None
        room = self._room_for(seat, gpu)
        if room is None:
            return None
        leaving = [*room.evicted, *([seat] if is_elsewhere else [])]
        slept = {each.lease_id: self._seen.sleep_seconds(each.memory_bytes) for each in leaving}
        last = slept.pop(occupant.lease_id, 0.0) if occupant is not None else 0.0
        turns = ahead + min(
            wait, self._seen.turn_seconds
        )  # the others leave meanwhile, the occupant after it
        seconds = max(turns, *slept.values(), 0.0) + last
        if not is_home:
            seconds += self._seen.wake_seconds(seat.memory_bytes)
        return _Way(
            gpu.uuid,
            seconds,
            is_elsewhere=is_elsewhere,
            resident_count=self._residents(gpu.uuid),
            wait_seconds=wait,
            occupant=occupant,
            room=room,
        )

    def _is_worth_moving(self, seat: Seat, gpu: Gpu) -> bool:
        """Whether its memory can leave, and the GPUs are filled more evenly afterwards.

        Without that, memory follows every pause in somebody's work, and the GPUs wait for it: a class on a
        virtual clock (16 people, each busy 30 %, four GPUs) did a sixth less (`replay_turns`).
        """
        home = 0 if seat.gpu_uuid is None else self._residents(seat.gpu_uuid)
        return self._may_sleep(seat) and home - self._residents(gpu.uuid) >= 2

    def _residents(self, gpu_uuid: str) -> int:
        """How many have their memory there, or are about to."""
        lying = self._lying.get(gpu_uuid, [])
        coming = [each for each in self._seats if each.target_uuid == gpu_uuid and each not in lying]
        return len(lying) + len(coming)

    def _is_on_its_way_to_target(self, seat: Seat) -> bool:
        """Whether a GPU is kept for it: its memory leaves another one, or has left it, to go there."""
        gpu = next((each for each in self._gpus if each.uuid == seat.target_uuid and each.serves(seat)), None)
        if gpu is None or seat.wants_since is None or seat.retry_at > self._now:
            return False
        if seat.turn is not Turn.ASLEEP and not self._is_on_its_way(seat):
            return False
        occupant = self._occupant[gpu.uuid]
        is_waited_for = occupant is not None and (
            not occupant.can_pause or self._wait_for(seat, occupant) > 0
        )
        return not is_waited_for and self._room_for(seat, gpu) is not None

    def _wait_for(self, seat: Seat, occupant: Seat) -> float:
        """How long until the occupant's turn ends for this seat: who computes gives way to no lower rank."""
        wait = wait_seconds(occupant, self._now, self._rules)
        computes, wants_since = occupant.idle_since is None, seat.wants_since
        holds, claims = self._standing(occupant, seat), self._standing(seat, occupant)
        if computes and wants_since is not None and holds < claims:
            equal = holds[:2] == claims[:2]
            patience = _use_patience(self._rules) if equal else self._rules.patience_seconds
            wait = max(wait, wants_since + patience - self._now)
        return wait

    def _standing(self, seat: Seat, beside: Seat) -> tuple[int, bool, tuple[int, ...]]:
        """Its place by the policy against the other one, the smaller first.

        The guarantee of a group is no reason between its members.
        """
        rank = seat.rank
        within = self._computing[rank.group] <= rank.guaranteed if seat.turn is Turn.AWAKE else False
        owed = rank.group != beside.rank.group and (within or seat.lease_id in self._owed)
        return -rank.priority, not owed, rank.used

    def _room_for(self, seat: Seat, gpu: Gpu) -> _Room | None:
        """Who must leave the GPU so that it can be awake there; None if that doesn't make enough room.

        First who doesn't want a GPU, the longest idle first; then the last in line; last who computes.
        """
        others = [each for each in self._lying[gpu.uuid] if each is not seat]
        missing = sum(each.memory_bytes for each in others) + seat.needs_bytes() - gpu.memory_bytes
        if missing <= 0:
            return _Room()
        leaving = [each for each in others if self._is_on_its_way(each)]
        missing -= sum(each.memory_bytes for each in leaving)
        evicted: list[Seat] = []
        for each in sorted(others, key=self._eviction_key):
            # Who is awake there is paused first, and may then be moved like the others.
            if missing > 0 and each.memory_bytes and self._may_sleep(each):
                missing -= each.memory_bytes
                evicted.append(each)
        return None if missing > 0 else _Room(tuple(evicted), bool(leaving))

    def _is_on_its_way(self, seat: Seat) -> bool:
        """Whether its memory is leaving the GPU already."""
        action = seat.under_way or self.actions.get(seat.lease_id)
        return action is not None and action.step in (Step.SLEEP, Step.END)

    def _eviction_key(self, seat: Seat) -> tuple[int, int, float, str]:
        computes = seat.turn is Turn.AWAKE and seat.idle_since is None
        kind = 2 if computes else 1 if seat.wants_since is not None else 0
        return kind, -self._rank.get(seat.lease_id, 0), seat.since, seat.lease_id

    def _end_obstacle(self, seat: Seat) -> None:
        """No GPU has room for it because of memory that can't be moved: ends the seat that was warned."""
        if self._rules.warn_seconds is None or self._taken or self._kept:
            return
        served = [gpu.uuid for gpu in self._gpus if gpu.serves(seat)]
        known = [
            each
            for each in self._seats
            if each is not seat and each.unmovable_since is not None and each.gpu_uuid in served
        ]
        for each in sorted(known, key=lambda each: each.since):
            since = each.unmovable_since or 0.0
            turn_over = each.turn is Turn.PAUSED or wait_seconds(each, self._now, self._rules) == 0
            if self._may_begin(each) and turn_over and self._now - since >= self._rules.warn_seconds:
                self._begin(Action(Step.END, each.lease_id))
                return


def _use_patience(rules: TurnRules) -> float:
    return min(rules.patience_seconds, rules.use_patience_seconds)


def _is_waking(seat: Seat) -> bool:
    return seat.under_way is not None and seat.under_way.step is Step.WAKE


def _touched(seat: Seat, gpus: Sequence[Gpu]) -> set[str]:
    """The GPUs that nobody else can begin to use, because of what is under way with this seat."""
    if seat.under_way is None or (seat.under_way.step is Step.SLEEP and seat.turn is Turn.PAUSED):
        return set()
    return {gpu.uuid for gpu in gpus if seat.lies_on(gpu.uuid)}
