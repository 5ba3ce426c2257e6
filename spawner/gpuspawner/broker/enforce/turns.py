"""Keeps the turns of one pool: samples its seats, asks the plan what to begin, and has it carried out.

Each sample counts, not what was done before: a program that computes out of turn is paused within one
sample, whoever started it, and after a restart of the broker the seats are adopted as they are. When a step
is done, the next begins at once from what is known, so that a GPU does not wait for the next sample.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import GpuSpawnerError
from ...node.api import Condition, Obstacle, Outcome, SeatReading, TurnHands, TurnReadings
from ...node.api import Seat as Place
from ..decide.turn_waits import HeldUp, expected_waits, held_up
from ..decide.turn_words import staying_sentence
from ..decide.turns import (
    NO_RANK,
    Action,
    Experience,
    Gpu,
    Rank,
    Seat,
    Step,
    Turn,
    TurnRules,
    plan,
    waiting_order,
)

_Log = logging.Logger | logging.LoggerAdapter[Any]

RETRY_SECONDS = 2.0
LOST_RETRY_SECONDS = 60.0
"""So seldom a program is woken again that the driver could not bring back: each try costs others a switch."""
END_SECONDS = 10.0
"""So long after somebody has asked whether it may end, a seat gets no turn."""
SPITE_SECONDS = 10.0
"""A program that still computes out of turn this long after it should have stopped is ended."""
BUSY_LAG_SECONDS = 1.0
"""NVML calls a GPU busy for up to this long after its last work: its use is an average of 1/6 s to 1 s."""
LOOK_SECONDS = (0.05, 0.1, 0.5)
"""Between two samples: while somebody wants a GPU, while some seat is not awake, and otherwise."""
UNMOVABLE = (Obstacle.UNSUPPORTED, Obstacle.SEVERAL_GPUS, Obstacle.SILENT)
_STOPPED = (Condition.PAUSED, Condition.ASLEEP)
OUT_OF_TURN = "A program was ended because it kept computing on the GPU when it was not your turn."
IN_THE_WAY = "A program was ended because its memory could not leave the GPU and others could not compute."


@dataclass(frozen=True, slots=True)
class SeatStatus:
    """A seat for pages and API. `position`: its place among those that wait for a GPU, from 1.

    `since` is in monotonic seconds. `known` False: it was not looked at yet. `can_move` False: its memory
    can't leave the GPU.
    """

    lease_id: str
    turn: Turn
    since: float
    gpu_uuid: str | None
    memory_bytes: int
    moves: bool
    position: int | None
    wait_seconds: float | None = None
    """About how long until its turn, if it wants one, or until its memory is back on the GPU."""
    known: bool = True
    can_move: bool = True
    held_up: HeldUp | None = None
    """Why no GPU can be expected to be its for now."""


@dataclass
class _Entry:
    """One lease of the pool. `out_of_turn_since`: it computes without being awake, since then.

    `unknown_since`: the driver doesn't say where it is since then.
    `prompt_since`: its programs wait for input since then, whether or not its GPU is called busy.
    `wants_by_thread`: that it wants a GPU was read from its main thread, and nothing else says so.
    `begun`: how many steps were begun with it, so that a sample from before is known to be old; `began`: when
    the last one was.
    """

    place: Place
    promise_bytes: int
    since: float
    rank: Rank = NO_RANK
    turn: Turn = Turn.ASLEEP
    gpu_uuid: str | None = None
    memory_bytes: int = 0
    known: bool = False
    wants_since: float | None = None
    wants_by_thread: bool = False
    idle_since: float | None = None
    prompt_since: float | None = None
    unmovable_since: float | None = None
    can_pause: bool = True
    outruns_since: float | None = None
    unknown_since: float | None = None
    target_uuid: str | None = None
    begun: int = 0
    began: float = 0.0
    out_of_turn_since: float | None = None
    retry_at: float = 0.0
    under_way: Action | None = None
    kept_asleep: bool = False
    """It gets no turn, whatever it wants."""
    lost: bool = False
    """The driver can't bring its memory back; its user was told."""
    ends_until: float = 0.0
    """Its container is about to be stopped, so it gets no turn before this time."""

    def seat(self, lease_id: str) -> Seat:
        """As the plan sees it."""
        return Seat(
            lease_id=lease_id,
            turn=self.turn,
            since=self.since,
            promise_bytes=self.promise_bytes,
            gpu_uuid=self.gpu_uuid,
            memory_bytes=self.memory_bytes,
            wants_since=None if self.kept_asleep else self.wants_since,
            idle_since=self.idle_since,
            rests_since=self._rests_since(),
            rank=self.rank,
            under_way=self.under_way,
            unmovable_since=self.unmovable_since,
            can_pause=self.can_pause,
            outruns_since=self.outruns_since,
            retry_at=self.retry_at,
            target_uuid=self.target_uuid,
            sees=frozenset(self.place.gpu_uuids),
        )

    def _rests_since(self) -> float | None:
        if self.idle_since is None or self.prompt_since is None:
            return None
        return max(self.idle_since, self.prompt_since)

    def computes(self, now: float) -> bool:
        """Whether it is computing now, as far as is known: not if it has just returned to its prompt."""
        returned = self.prompt_since is not None and now - self.prompt_since < BUSY_LAG_SECONDS
        return self.idle_since is None and not returned

    def become(self, turn: Turn, gpu_uuid: str | None, now: float) -> None:
        """Set the place; does nothing if it has not changed."""
        if (turn, gpu_uuid) != (self.turn, self.gpu_uuid):
            self.turn, self.gpu_uuid, self.since = turn, gpu_uuid, now
            self.idle_since = self.outruns_since = None

    def want(self, now: float, *, by_thread: bool = False) -> None:
        """It waits for a GPU, since now at the latest."""
        if self.wants_since is None:
            self.wants_since, self.wants_by_thread = now, by_thread
        self.wants_by_thread &= by_thread


@dataclass(frozen=True, slots=True)
class Told:
    """The keeper's listeners: `turn(lease_id, awake)` for what is charged, `notice(lease_id, sentence)` for
    the lease's user, `step(step, outcome)` for the metrics."""

    turn: Callable[[str, bool], None] = lambda lease_id, awake: None
    notice: Callable[[str, str], Awaitable[None]] | None = None
    step: Callable[[Step, Outcome], None] = lambda step, outcome: None


@dataclass
class TurnKeeper:
    """One pool. All methods on one event loop; `tick` is called several times a second."""

    hands: TurnHands
    gpus: tuple[Gpu, ...]
    rules: TurnRules
    clock: Callable[[], float]
    log: _Log
    told: Told = field(default_factory=Told)
    seen: Experience = field(default_factory=Experience)
    """What was learned since the broker began."""
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def admit(self, lease_id: str, place: Place, promise_bytes: int) -> None:
        """A lease has a container now, or is adopted with it."""
        if lease_id not in self._entries:
            self._entries[lease_id] = _Entry(place, promise_bytes, self.clock())

    def set_rank(self, lease_id: str, rank: Rank) -> None:
        """Its place by the policy has changed; does nothing without a seat."""
        if lease_id in self._entries:
            self._entries[lease_id].rank = rank

    def leave(self, lease_id: str) -> None:
        """Its container has ended."""
        entry = self._entries.pop(lease_id, None)
        if entry is not None and entry.turn is Turn.AWAKE:
            self.told.turn(lease_id, False)
        self._spawn(self._forget(), "forget")

    def want(self, lease_id: str) -> None:
        """Its user asks for a GPU, as with "wake now"."""
        entry = self._entries.get(lease_id)
        if entry is not None and entry.turn is not Turn.AWAKE:
            entry.want(self.clock())

    def give_up(self, lease_id: str) -> None:
        """Its user gives up the turn: others come first. A program that still computes wants a new one."""
        entry = self._entries.get(lease_id)
        if entry is None:
            return
        entry.wants_since = None
        if entry.turn is Turn.AWAKE:
            self._begin(Action(Step.PAUSE, lease_id))

    def rest(self, lease_id: str) -> bool:
        """Its memory moves to main memory, until it wants a GPU. False if it can't, or has no seat.

        Who already waits for its turn, in the middle of a computation, goes on waiting.
        """
        entry = self._entries.get(lease_id)
        if entry is None or entry.unmovable_since is not None:
            return False
        if entry.turn is not Turn.ASLEEP:
            self._begin(Action(Step.SLEEP, lease_id))
        return True

    def keep_asleep(self, lease_id: str, kept: bool) -> None:
        """From now on it gets no turn, and its memory moves to main memory; or it gets its turns again."""
        entry = self._entries.get(lease_id)
        if entry is not None and entry.kept_asleep is not kept:
            entry.kept_asleep = kept
            if entry.wants_since is not None:
                entry.wants_since = self.clock()  # it did not wait for its turn until now

    async def before_end(self, lease_id: str) -> bool:
        """Its container is about to be stopped: whether its programs may be killed now.

        If not, they are being put to sleep: ask again. If nobody does for a while, it gets its turns again.
        """
        entry = self._entries.get(lease_id)
        if entry is None or (entry.under_way is None and await self.hands.may_end(entry.place)):
            return True
        entry.ends_until = self.clock() + END_SECONDS
        if entry.turn is not Turn.ASLEEP:
            entry.wants_since = None
            self._begin(Action(Step.SLEEP, lease_id))
        return False

    def status(self) -> tuple[SeatStatus, ...]:
        """Every seat, as it is known now."""
        seats = [entry.seat(lease_id) for lease_id, entry in self._entries.items()]
        now = self.clock()
        order = [seat.lease_id for seat in waiting_order(seats, now, self.rules)]
        waits = expected_waits(seats, self.gpus, now, self.rules, self.seen)
        return tuple(
            SeatStatus(
                lease_id=seat.lease_id,
                turn=seat.turn,
                since=seat.since,
                gpu_uuid=seat.gpu_uuid,
                memory_bytes=seat.memory_bytes,
                moves=seat.under_way is not None,
                position=order.index(seat.lease_id) + 1 if seat.lease_id in order else None,
                wait_seconds=waits.get(seat.lease_id, self._coming_back(seat, now)),
                known=self._entries[seat.lease_id].known,
                can_move=seat.unmovable_since is None,
                held_up=held_up(seat, seats, self.gpus),
            )
            for seat in seats
        )

    def _coming_back(self, seat: Seat, now: float) -> float | None:
        """About how long until a seat that is being woken has its memory on the GPU; None for any other."""
        action = seat.under_way
        if action is None or action.step is not Step.WAKE or seat.turn is not Turn.ASLEEP:
            return None
        return max(0.0, self._entries[seat.lease_id].began + self.seen.wake_seconds(seat.memory_bytes) - now)

    @property
    def look_seconds(self) -> float:
        """How long the caller of `tick` should wait until the next one."""
        entries = self._entries.values()
        if any(entry.wants_since is not None and not entry.kept_asleep for entry in entries):
            return LOOK_SECONDS[0]
        return LOOK_SECONDS[1 if any(entry.turn is not Turn.AWAKE for entry in entries) else 2]

    async def tick(self) -> None:
        """Samples, plans and begins actions. Returns without waiting for them."""
        still = [(*each, each[1].begun) for each in self._entries.items() if each[1].under_way is None]
        readings = await self.hands.read([entry.place for _, entry, _ in still])
        now = self.clock()
        # Those whose state isn't known come last: they are taken to compute where nobody else does.
        unknown = [each for each in still if _is_unknown(readings, each[1].place)]
        for lease_id, entry, begun in [*(each for each in still if each not in unknown), *unknown]:
            if self._entries.get(lease_id) is entry and entry.begun == begun:
                self._take(lease_id, entry, readings, now)
        self._plan(now)

    def _plan(self, now: float) -> None:
        """Begins what is to be done, from what is known."""
        for lease_id, entry in self._entries.items():
            if entry.kept_asleep and entry.known and entry.turn is not Turn.ASLEEP:
                step = Step.SLEEP if entry.unmovable_since is None else Step.PAUSE
                if step is Step.SLEEP or entry.turn is Turn.AWAKE:
                    self._begin(Action(step, lease_id))
        seats = [
            entry.seat(lease_id)
            for lease_id, entry in self._entries.items()
            if entry.known and (entry.ends_until <= now or entry.turn is not Turn.ASLEEP)
        ]
        for action in plan(seats, self.gpus, now, self.rules, self.seen):
            self._begin(action)

    async def settled(self) -> None:
        """Returns when no action is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- the effects of a sample

    def _take(self, lease_id: str, entry: _Entry, readings: TurnReadings, now: float) -> None:
        reading = readings.seats.get(entry.place.container_id)
        if reading is None or reading.condition is Condition.UNKNOWN:
            self._take_unknown(lease_id, entry, reading, now)
            return
        entry.unknown_since = None
        if not entry.can_pause:
            entry.can_pause, entry.unmovable_since = True, None  # the driver answers again
        first, entry.known = not entry.known, True
        entry.memory_bytes = sum(reading.on_gpus.values()) + reading.asleep_bytes
        if entry.lost and reading.condition not in _STOPPED:
            entry.lost, entry.retry_at = False, 0.0  # the program ended, or came back
        if reading.condition in (Condition.AWAKE, Condition.MIXED):
            self._computes(lease_id, entry, reading, now, first=first)
        else:
            entry.out_of_turn_since = None
            self._is_still(lease_id, entry, reading, now)
            # It isn't known whether it already waited before this broker's first sample: it gets a turn.
            if reading.waits or (first and reading.condition in _STOPPED):
                entry.want(now, by_thread=True)
            elif reading.rests and entry.wants_by_thread:
                entry.wants_since, entry.wants_by_thread = None, False  # it waited for something else
        self._mark_idle(entry, reading, readings.busy, now)

    def _take_unknown(self, lease_id: str, entry: _Entry, reading: SeatReading | None, now: float) -> None:
        """The driver doesn't say where it is. Nothing is begun with it for a moment.

        If it was never looked at and has memory on a GPU, it may compute there: unknown is not free.
        """
        if entry.unknown_since is None:
            entry.unknown_since = now
        entry.retry_at = max(entry.retry_at, entry.unknown_since + RETRY_SECONDS)
        if entry.known or reading is None or not reading.on_gpus:
            return
        entry.known, gpu_uuid = True, next(iter(sorted(reading.on_gpus)))
        entry.memory_bytes = sum(reading.on_gpus.values())
        if self._is_free(gpu_uuid, though_wanted=True):
            self._is_awake(lease_id, entry, gpu_uuid, now)
        else:
            entry.become(Turn.PAUSED, gpu_uuid, now)

    def _computes(
        self, lease_id: str, entry: _Entry, reading: SeatReading, now: float, *, first: bool
    ) -> None:
        """Some of its programs may compute: on the GPU where it is awake, or out of turn.

        At this broker's first sample it has its turn from an earlier broker, unless another is awake there.
        """
        where = set(reading.on_gpus)
        if entry.turn is Turn.AWAKE and entry.gpu_uuid is not None:
            if where - {entry.gpu_uuid} or reading.condition is Condition.MIXED:
                self._begin(Action(Step.WAKE, lease_id, entry.gpu_uuid))  # a new program began elsewhere
            return
        if not where:
            return  # its context isn't complete yet
        gpu_uuid = next(iter(sorted(where)))
        may = not entry.kept_asleep and self._is_free(gpu_uuid, though_wanted=first)
        if len(where) == 1 and reading.condition is Condition.AWAKE and may:
            self._is_awake(lease_id, entry, gpu_uuid, now)
            return
        entry.want(now, by_thread=True)
        entry.become(Turn.PAUSED, gpu_uuid, now)
        entry.out_of_turn_since = now if entry.out_of_turn_since is None else entry.out_of_turn_since
        spiteful = now - entry.out_of_turn_since >= SPITE_SECONDS
        self._begin(Action(Step.END if spiteful else Step.PAUSE, lease_id))

    def _is_still(self, lease_id: str, entry: _Entry, reading: SeatReading, now: float) -> None:
        """None of its programs computes."""
        if reading.condition is Condition.NONE:
            entry.unmovable_since = None
            if entry.turn is Turn.PAUSED:
                entry.become(Turn.ASLEEP, None, now)
            return
        was_awake = entry.turn is Turn.AWAKE
        if reading.condition is Condition.ASLEEP:
            entry.become(Turn.ASLEEP, None, now)
        elif reading.on_gpus:
            entry.become(Turn.PAUSED, next(iter(sorted(reading.on_gpus))), now)
        if was_awake and entry.turn is not Turn.AWAKE:
            self.told.turn(lease_id, False)
            entry.want(now)

    def _mark_idle(self, entry: _Entry, reading: SeatReading, busy: Mapping[str, bool], now: float) -> None:
        """Since when it has not computed, and waits for input; a GPU that doesn't say counts as computing.

        Without a program on the GPU it does not compute, however busy others make the GPU.
        """
        if not reading.rests:
            entry.prompt_since = None
        elif entry.prompt_since is None:
            entry.prompt_since = now
        uuid = entry.gpu_uuid if entry.turn is Turn.AWAKE else None
        if uuid is None or (busy.get(uuid, True) and reading.condition is not Condition.NONE):
            entry.idle_since = None
        elif entry.idle_since is None:
            entry.idle_since = now

    def _is_free(self, gpu_uuid: str, *, though_wanted: bool) -> bool:
        """Whether nobody computes there or is about to, and nobody waits: then a new seat may have it.

        `though_wanted`: it has computed there since before this broker began; then a drain doesn't matter.
        """
        seats = [entry.seat(lease_id) for lease_id, entry in self._entries.items()]
        gpu = next((gpu for gpu in self.gpus if gpu.uuid == gpu_uuid), None)
        usable = gpu is not None and gpu.usable and (though_wanted or not gpu.drained)
        occupied = any(seat.occupies(gpu_uuid) for seat in seats)
        wanted = any(seat.wants_since is not None for seat in seats)
        return usable and not occupied and (though_wanted or not wanted)

    def _is_awake(self, lease_id: str, entry: _Entry, gpu_uuid: str, now: float) -> None:
        was_awake = entry.turn is Turn.AWAKE
        entry.become(Turn.AWAKE, gpu_uuid, now)
        entry.wants_since = entry.out_of_turn_since = entry.target_uuid = None
        entry.wants_by_thread = False
        if not was_awake:
            self.told.turn(lease_id, True)

    # ---- actions

    def _begin(self, action: Action) -> None:
        entry = self._entries[action.lease_id]
        if entry.under_way is not None or entry.retry_at > self.clock():
            return
        entry.under_way = action
        entry.begun += 1
        entry.began = self.clock()
        if action.step is Step.SLEEP:
            entry.target_uuid = action.gpu_uuid
        self._spawn(self._carry_out(action, entry), action.lease_id)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=f"turn-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forget(self) -> None:
        """Removes data on disk of leases that have ended; if this fails, the next call does it."""
        try:
            await self.hands.forget([entry.place for entry in self._entries.values()])
        except GpuSpawnerError as error:
            self.log.warning("%s", error)

    async def _carry_out(self, action: Action, entry: _Entry) -> None:
        try:
            if action.step is Step.END:
                await self._end(action, entry)
            else:
                outcome = await self._move(action, entry.place)
                self.told.step(action.step, outcome)
                await self._ended(action, entry, outcome)
        except Exception:  # the top of a task
            self.log.exception("A turn could not be changed: %s lease=%s", action.step.value, action.lease_id)
            entry.retry_at = self.clock() + RETRY_SECONDS
        finally:
            entry.under_way = None
        self._plan(self.clock())

    def _move(self, action: Action, place: Place) -> Awaitable[Outcome]:
        if action.step is Step.PAUSE:
            return self.hands.pause(place)
        if action.step is Step.SLEEP:
            return self.hands.sleep(place)
        assert action.gpu_uuid is not None
        return self.hands.wake(place, action.gpu_uuid)

    async def _ended(self, action: Action, entry: _Entry, outcome: Outcome) -> None:
        """Handles the outcome; the next sample shows the rest."""
        now, lease_id = self.clock(), action.lease_id
        self.log.info("Turn: %s lease=%s", f"{action.step.value}, {outcome.log_text()}", lease_id)
        if outcome.done:
            entry.retry_at = 0.0
            self.seen = self.seen.with_move(action.step, outcome.moved_bytes, outcome.seconds)
            self._done(action, entry, outcome, now)
            return
        entry.retry_at, entry.target_uuid = now + RETRY_SECONDS, None
        if outcome.obstacle is Obstacle.SILENT:
            entry.can_pause = False
        if outcome.obstacle in UNMOVABLE:
            if entry.unmovable_since is None:
                entry.unmovable_since = now
                sentence = staying_sentence(outcome.sentence, entry.can_pause, self.rules.warn_seconds)
                await self._notice(lease_id, sentence)
        elif outcome.obstacle is Obstacle.FAILED:
            entry.retry_at = now + LOST_RETRY_SECONDS
            if not entry.lost:
                entry.lost = True
                self.log.warning("%s lease=%s detail=%s", outcome.sentence, lease_id, outcome.detail)
                await self._notice(lease_id, outcome.sentence)
        elif outcome.obstacle is Obstacle.BUSY:
            if entry.turn is Turn.AWAKE and entry.outruns_since is None:
                entry.outruns_since = entry.began
        else:
            self.log.warning("%s lease=%s detail=%s", outcome.sentence, lease_id, outcome.detail)

    def _done(self, action: Action, entry: _Entry, outcome: Outcome, now: float) -> None:
        if action.step is Step.WAKE and action.gpu_uuid is not None:
            self._is_awake(action.lease_id, entry, action.gpu_uuid, now)
            return
        was_awake, computed, since = entry.turn is Turn.AWAKE, entry.computes(now), entry.since
        if outcome.condition in (Condition.ASLEEP, Condition.NONE):
            entry.become(Turn.ASLEEP, None, now)
        else:
            entry.become(Turn.PAUSED, entry.gpu_uuid, now)
        if was_awake:
            self.told.turn(action.lease_id, False)
            self._learn_turn(now - since, now)
            if computed and outcome.condition is not Condition.NONE:
                entry.want(now)

    def _learn_turn(self, seconds: float, now: float) -> None:
        """A turn has ended: it counts as far as others waited for its end."""
        waits = [now - each.wants_since for each in self._entries.values() if each.wants_since is not None]
        if waits:
            self.seen = self.seen.with_turn(min(seconds, max(waits)))

    async def _end(self, action: Action, entry: _Entry) -> None:
        if not await self.hands.may_end(entry.place):
            slept = await self.hands.sleep(entry.place)
            if not slept.done:
                self.log.warning("Not ended: %s lease=%s", slept.sentence, action.lease_id)
                entry.retry_at = self.clock() + RETRY_SECONDS
                return
        count = await self.hands.end(entry.place)
        self.log.warning("Ended %d programs lease=%s", count, action.lease_id)
        spite = entry.out_of_turn_since is not None
        if entry.turn is Turn.AWAKE:
            self.told.turn(action.lease_id, False)
        entry.become(Turn.ASLEEP, None, self.clock())
        entry.wants_since = entry.out_of_turn_since = entry.unmovable_since = None
        entry.wants_by_thread, entry.can_pause = False, True
        await self._notice(action.lease_id, OUT_OF_TURN if spite else IN_THE_WAY)

    async def _notice(self, lease_id: str, sentence: str) -> None:
        if self.told.notice is not None:
            await self.told.notice(lease_id, sentence)


def _is_unknown(readings: TurnReadings, place: Place) -> bool:
    reading = readings.seats.get(place.container_id)
    return reading is None or reading.condition is Condition.UNKNOWN
