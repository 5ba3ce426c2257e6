"""Who computes on which GPU of a pool of turns, who is paused, moved to host memory or woken. Pure.

`plan` is asked again and again. It sees every seat (a lease of the pool), what it does and what is under way,
and says what to begin now. It keeps no state: after a restart it continues from what it sees.

Its actions keep these rules, whatever happened before:
1. On each GPU one seat at most is awake or about to be.
2. On each GPU the memory of who stays and what is promised to who is awake fit beside the reserve.
3. No sleeping seat that wants a GPU waits while one is free: it is woken, or room is made for it.
4. No seat is paused before `min_turn`; a seat that computes is paused only after `max_turn` with others
waiting. 5. Every seat that wants a GPU gets one: by the policy's order, then by how long it has wanted one,
but no seat passes one that has wanted a GPU for `patience_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

SLEEP_BYTES_A_SECOND = 2.0 * (1 << 30)
WAKE_BYTES_A_SECOND = 5.5 * (1 << 30)
"""Measured on H100 and H200 with driver 580; only used to compare waiting with moving."""
CONTEXT_SECONDS = 0.3
"""What a sleep or a wake takes without any memory."""


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
    """One step for one lease; `gpu_uuid` is where a wake goes."""

    step: Step
    lease_id: str
    gpu_uuid: str | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """A lease of the pool as it is now. Times are monotonic seconds.

    `gpu_uuid` is where it is awake, or where its memory lies while it is paused. `memory_bytes` is what it
    has on the GPU or in host memory. `promise_bytes` is what it may have while it is awake. `wants_since`: it
    waits for a GPU since then. `idle_since`: it is awake and has not computed since then; None while it
    computes. `rank` is the policy's order, the smallest first.
    """

    lease_id: str
    turn: Turn
    since: float
    promise_bytes: int
    gpu_uuid: str | None = None
    memory_bytes: int = 0
    wants_since: float | None = None
    idle_since: float | None = None
    rank: tuple[float, ...] = ()
    under_way: Action | None = None
    """What has begun and has not ended."""
    unmovable_since: float | None = None
    """Its memory can't leave the GPU (managed memory, NCCL): known since then."""
    retry_at: float = 0.0
    """Something failed: nothing is tried with it before."""

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


@dataclass(frozen=True, slots=True)
class TurnRules:
    """Times in seconds. `pause_after`: a turn idle for this long ends when somebody wants the GPU.
    `sleep_after`: the memory of a seat idle for this long goes to host memory even if nobody wants the GPU.
    `warn`: the time between the notice that a program blocks others and its end; None: it is never ended.
    """

    pause_after_seconds: float = 2.0
    sleep_after_seconds: float = 900.0
    min_turn_seconds: float = 2.0
    max_turn_seconds: float = 60.0
    patience_seconds: float = 600.0
    warn_seconds: float | None = 120.0


def plan(seats: Sequence[Seat], gpus: Sequence[Gpu], now: float, rules: TurnRules) -> tuple[Action, ...]:
    """What to begin now. For each seat one action at most, and none for a seat with one under way."""
    planning = _Planning(seats, gpus, now, rules)
    for seat in waiting_order(seats, now, rules):
        planning.serve(seat)
    for gpu in gpus:
        planning.keep_promise(gpu)
    planning.put_idle_to_sleep()
    return tuple(planning.actions.values())


def waiting_order(seats: Iterable[Seat], now: float, rules: TurnRules) -> list[Seat]:
    """Those that want a GPU and have none, in the order in which they get one."""

    def key(seat: Seat) -> tuple[bool, tuple[float, ...], float, str]:
        since = seat.wants_since or 0.0
        patient = now - since < rules.patience_seconds
        return patient, seat.rank if patient else (), since, seat.lease_id

    waiting = [seat for seat in seats if seat.wants_since is not None and seat.turn is not Turn.AWAKE]
    return sorted((seat for seat in waiting if not _is_waking(seat)), key=key)


def most_seats(sleep_memory_bytes: int, promise_bytes: int) -> int:
    """How many leases with this promise can all be asleep at once: more are not admitted."""
    return sleep_memory_bytes // promise_bytes


def wait_seconds(seat: Seat, now: float, rules: TurnRules) -> float:
    """How long until the turn of an awake seat can be ended, if it continues as now."""
    turn = now - seat.since
    left = rules.max_turn_seconds - turn
    if seat.idle_since is not None:
        left = min(left, rules.pause_after_seconds - (now - seat.idle_since))
    return max(0.0, left, rules.min_turn_seconds - turn, seat.retry_at - now)


def sleep_seconds(memory_bytes: int) -> float:
    """About how long it takes to move so much to host memory."""
    return CONTEXT_SECONDS + memory_bytes / SLEEP_BYTES_A_SECOND


def wake_seconds(memory_bytes: int) -> float:
    """About how long it takes to move so much back."""
    return CONTEXT_SECONDS + memory_bytes / WAKE_BYTES_A_SECOND


@dataclass(frozen=True, slots=True)
class _Room:
    """What it takes until a seat's memory fits: who must leave, and whether somebody is leaving for it."""

    evicted: tuple[Seat, ...] = ()
    is_awaited: bool = False


@dataclass(frozen=True, slots=True)
class _Way:
    """How a waiting seat could come to compute on one GPU, the best first in this order."""

    seconds: float
    is_elsewhere: bool
    eviction_count: int
    gpu_uuid: str
    wait_seconds: float = field(compare=False)
    occupant: Seat | None = field(compare=False)
    room: _Room = field(compare=False)

    def sort_key(self) -> tuple[float, bool, int, str]:
        """Soonest first; then where its memory is; then where fewest others must go."""
        return self.seconds, self.is_elsewhere, self.eviction_count, self.gpu_uuid


class _Planning:
    """One call of `plan`: gathers actions, and counts with them as if they were under way."""

    def __init__(self, seats: Sequence[Seat], gpus: Sequence[Gpu], now: float, rules: TurnRules) -> None:
        self._seats, self._gpus, self._now, self._rules = tuple(seats), tuple(gpus), now, rules
        self._taken: set[str] = set()
        """GPUs on which an action is under way, or that an earlier seat gets."""
        self._rank = {each.lease_id: n for n, each in enumerate(waiting_order(seats, now, rules))}
        self.actions: dict[str, Action] = {}
        for seat in seats:
            self._taken |= _touched(seat, self._gpus)

    def serve(self, seat: Seat) -> None:
        """The next waiting seat: it is woken, or the seat in its way is moved, or it waits."""
        if not self._may_begin(seat):
            return
        ways = [way for gpu in self._gpus if (way := self._way(seat, gpu)) is not None]
        free = [way for way in ways if way.occupant is None]
        if seat.turn is Turn.ASLEEP and free:
            ways = free
        if not ways:
            self._end_obstacle(seat)
            return
        way = min(ways, key=_Way.sort_key)
        if way.wait_seconds > 0:
            return  # moving it elsewhere is not worth it
        self._taken.add(way.gpu_uuid)
        if way.occupant is not None:
            self._begin(Action(Step.PAUSE, way.occupant.lease_id))
        elif way.room.evicted or way.room.is_awaited:
            for each in way.room.evicted:
                self._begin(Action(Step.SLEEP, each.lease_id))
        elif seat.turn is Turn.PAUSED and seat.gpu_uuid != way.gpu_uuid:
            self._begin(Action(Step.SLEEP, seat.lease_id))  # and woken there once it sleeps
        else:
            self._begin(Action(Step.WAKE, seat.lease_id, way.gpu_uuid))

    def keep_promise(self, gpu: Gpu) -> None:
        """Makes room for the awake seat, if others there have too much memory by now."""
        if gpu.uuid in self._taken:
            return
        awake = next((seat for seat in self._seats if seat.occupies(gpu.uuid)), None)
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
            long_enough = self._now - idle_since >= self._rules.sleep_after_seconds
            turn_over = self._now - seat.since >= self._rules.min_turn_seconds
            if long_enough and turn_over and self._may_sleep(seat) and seat.gpu_uuid not in self._taken:
                self._begin(Action(Step.SLEEP, seat.lease_id))

    def _begin(self, action: Action) -> None:
        self.actions[action.lease_id] = action

    def _may_begin(self, seat: Seat) -> bool:
        return seat.under_way is None and seat.lease_id not in self.actions and seat.retry_at <= self._now

    def _may_sleep(self, seat: Seat) -> bool:
        return self._may_begin(seat) and seat.unmovable_since is None

    def _way(self, seat: Seat, gpu: Gpu) -> _Way | None:
        """How it could come to compute there; None if it can't as things are."""
        if gpu.uuid in self._taken or not gpu.usable:
            return None
        is_elsewhere = seat.turn is Turn.PAUSED and seat.gpu_uuid != gpu.uuid
        if is_elsewhere and not self._may_sleep(seat):
            return None
        occupant = next((each for each in self._seats if each.occupies(gpu.uuid)), None)
        wait = 0.0
        if occupant is not None:
            if occupant.lease_id in self.actions:
                return None
            wait = self._wait_for(seat, occupant)
        room = self._room_for(seat, gpu)
        if room is None:
            return None
        seconds = wait + sum(sleep_seconds(each.memory_bytes) for each in room.evicted)
        if is_elsewhere:
            seconds += sleep_seconds(seat.memory_bytes)
        if is_elsewhere or seat.turn is Turn.ASLEEP:
            seconds += wake_seconds(seat.memory_bytes)
        return _Way(seconds, is_elsewhere, len(room.evicted), gpu.uuid, wait, occupant, room)

    def _wait_for(self, seat: Seat, occupant: Seat) -> float:
        """How long until the occupant's turn ends for this seat: who computes gives way to no lower rank."""
        wait = wait_seconds(occupant, self._now, self._rules)
        if occupant.idle_since is None and occupant.rank < seat.rank and seat.wants_since is not None:
            wait = max(wait, seat.wants_since + self._rules.patience_seconds - self._now)
        return wait

    def _room_for(self, seat: Seat, gpu: Gpu) -> _Room | None:
        """Who must leave the GPU so that it can be awake there; None if that doesn't make enough room.

        First who doesn't want a GPU, the longest idle first; then the last in line.
        """
        others = [each for each in self._seats if each is not seat and each.lies_on(gpu.uuid)]
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

    def _eviction_key(self, seat: Seat) -> tuple[bool, int, float, str]:
        return seat.wants_since is not None, -self._rank.get(seat.lease_id, 0), seat.since, seat.lease_id

    def _end_obstacle(self, seat: Seat) -> None:
        """No GPU has room for it because of memory that can't be moved: ends the seat that was warned."""
        if self._rules.warn_seconds is None or any(gpu.uuid in self._taken for gpu in self._gpus):
            return
        known = [each for each in self._seats if each.unmovable_since is not None and each is not seat]
        for each in sorted(known, key=lambda each: each.since):
            since = each.unmovable_since or 0.0
            turn_over = each.turn is Turn.PAUSED or wait_seconds(each, self._now, self._rules) == 0
            if self._may_begin(each) and turn_over and self._now - since >= self._rules.warn_seconds:
                self._begin(Action(Step.END, each.lease_id))
                return


def _is_waking(seat: Seat) -> bool:
    return seat.under_way is not None and seat.under_way.step is Step.WAKE


def _touched(seat: Seat, gpus: Sequence[Gpu]) -> set[str]:
    """The GPUs that nobody else can begin to use, because of what is under way with this seat."""
    if seat.under_way is None or (seat.under_way.step is Step.SLEEP and seat.turn is Turn.PAUSED):
        return set()
    return {gpu.uuid for gpu in gpus if seat.lies_on(gpu.uuid)}
