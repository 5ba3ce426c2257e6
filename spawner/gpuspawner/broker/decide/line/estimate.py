"""How long a request will wait: a range, from session limits, past sessions, and replays of the queue. Pure.

A replay draws for everybody who holds devices how long their session still lasts (from past sessions of the
tier that lasted as long already, up to the limit), and serves the queue in its order. Where newcomers may
pass (fair share, priorities), those of the same time last week come again, at random, and go as far forward
as they did. Several replays give the middle and the spread of a wait. How far true waits were from the middle
is remembered, in spreads: it says how wide a range must be that is right nine times in ten.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from ....core.want import Want
from ..place.placement import Kind, Room, Rooms, Share, place, rank, suits, take
from .backfill import Holding
from .queue import Waiting

KEPT_LENGTHS = 400
"""At most this many past sessions, the latest, are kept for each tier."""
KEPT_ERRORS = 200
_ENOUGH_ERRORS = 25
KEPT_LESSONS = 400
_NEAREST = 40
"""If others may pass, a range comes from this number of earlier estimates, the most similar ones."""
_SPREAD_WEIGHT = 0.3
_WIDEST = 1.0
"""A range that is wider than this part of the wait in its middle is not told."""
_COVERED = 0.88
"""The part of the past waits that a range must have covered; more than the required 80 %."""
_MOST_REPLAYS = 24
_LEAST_REPLAYS = 6
_STEPS = 3000
"""At most this many sessions are replayed for one estimate: a long queue gets fewer replays."""
_LEAST_SPREAD_SECONDS = 30.0
_LEAST_WAIT_SECONDS = 60.0
KEPT_ARRIVALS = 5000
_DAY, _WEEK = 86400.0, 7 * 86400.0
_SHIFT_SECONDS = 900.0
"""Users who came last week come earlier or later by up to this time."""


class Outlook(NamedTuple):
    """What an estimate is compared with earlier ones by, if others may pass: when, and three logarithms."""

    asked_seconds: float
    log_wait: float
    log_ahead: float
    log_spread: float

    def distance(self, other: Outlook) -> float:
        """How unlike two outlooks are."""
        return (
            (self.log_wait - other.log_wait) ** 2
            + (self.log_ahead - other.log_ahead) ** 2
            + _SPREAD_WEIGHT * (self.log_spread - other.log_spread) ** 2
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """When a request will likely be served, in seconds since 1970; `endings` sessions end before that."""

    earliest_seconds: float
    latest_seconds: float
    endings: int
    middle_seconds: float
    spread_seconds: float
    known: bool = True
    """Whether the range is told: where others may pass, only one that is narrower than the wait."""
    outlook: Outlook | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A lease that holds devices: since when, in which tier, and the latest end (None: no limit)."""

    holding: Holding
    tier: str
    began_seconds: float


@dataclass(frozen=True, slots=True)
class Line:
    """What the estimate is made from: rooms that are free, sessions, and who waits, in the order of service.

    `tiers` names the tier of each waiting request by its lease id.
    """

    rooms: Rooms
    all_rooms: Mapping[str, Room]
    sessions: Sequence[Session]
    waiting: Sequence[Waiting]
    tiers: Mapping[str, str]
    may_pass: bool = False
    """Whether a request that comes later may be served before these."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Somebody who came: when, with what, and which part of the queue was before it (None: no queue)."""

    at_seconds: float
    waiting: Waiting
    tier: str
    before_fraction: float | None


class Lengths:
    """How long past sessions lasted, by tier."""

    def __init__(self) -> None:
        self._latest: dict[str, deque[float]] = {}
        self._sorted: dict[str, list[float]] = {}

    def add(self, tier: str, seconds: float) -> None:
        """Record how long a session of this tier lasted."""
        latest = self._latest.setdefault(tier, deque())
        ordered = self._sorted.setdefault(tier, [])
        latest.append(seconds)
        insort(ordered, seconds)
        if len(latest) > KEPT_LENGTHS:
            ordered.remove(latest.popleft())

    def draw(self, tier: str, age_seconds: float, left_seconds: float | None, chance: float) -> float | None:
        """How long a session of this age still lasts; `chance` from 0 to 1 picks among the past ones.

        `left_seconds` is what its limit leaves. None where neither past sessions nor a limit say anything.
        """
        ordered = self._sorted.get(tier, [])
        first = bisect_right(ordered, age_seconds)
        longer = len(ordered) - first
        if longer >= 3:
            lasts = ordered[first + min(longer - 1, int(chance * longer))] - age_seconds
            return lasts if left_seconds is None else min(lasts, max(0.0, left_seconds))
        if left_seconds is None:
            return None
        return max(0.0, left_seconds) * chance if not ordered else max(0.0, left_seconds)


class Estimator:
    """Keeps what past sessions and waits say, and estimates the waits of a queue."""

    def __init__(self, seed: int = 1) -> None:
        self.lengths = Lengths()
        self._seed = seed
        self._draw = random.Random(seed)
        self._lessons: deque[tuple[Outlook, float]] = deque(maxlen=KEPT_LESSONS)
        self._errors: deque[float] = deque(maxlen=KEPT_ERRORS)
        self._arrivals: deque[Arrival] = deque(maxlen=KEPT_ARRIVALS)

    def learn(self, estimate: Estimate, began_seconds: float) -> None:
        """Record when a request with this estimate really began."""
        if estimate.outlook is not None:
            waited = max(1.0, began_seconds - estimate.outlook.asked_seconds)
            self._lessons.append((estimate.outlook, math.log(waited) - estimate.outlook.log_wait))
            return
        self._errors.append((began_seconds - estimate.middle_seconds) / estimate.spread_seconds)

    def arrived(self, arrival: Arrival) -> None:
        """Somebody has come."""
        self._arrivals.append(arrival)

    def newcomers(self, now_seconds: float) -> list[Arrival]:
        """Who may come from now on: each of the same time last week (or yesterday) no time, once or more."""
        if not self._arrivals:
            return []
        known_seconds = now_seconds - self._arrivals[0].at_seconds
        back = next((each for each in (_WEEK, _DAY) if known_seconds >= each), None)
        if back is None:
            return []
        fractions = [each.before_fraction for each in self._arrivals if each.before_fraction is not None]
        first = bisect_left(self._arrivals, now_seconds - back, key=lambda each: each.at_seconds)
        found = []
        for each in islice(self._arrivals, first, None):
            for _ in range(self._draw.choices((0, 1, 2), (1, 2, 1))[0]):
                fraction = each.before_fraction
                if fraction is None:
                    fraction = self._draw.choice(fractions) if fractions else 1.0
                at = each.at_seconds + back + self._draw.uniform(-_SHIFT_SECONDS, _SHIFT_SECONDS)
                found.append(replace(each, at_seconds=max(now_seconds, at), before_fraction=fraction))
        return sorted(found, key=lambda each: each.at_seconds)

    def estimate(self, line: Line, now_seconds: float, only: str | None = None) -> dict[str, Estimate | None]:
        """The estimates by lease id, None where nothing is known; of `only` one lease if it is given."""
        steps = max(1, len(line.waiting))
        count = max(_LEAST_REPLAYS, min(_MOST_REPLAYS, _STEPS // steps))
        self._draw.seed(self._seed)  # the same random draws again: only new information may change a range
        begun: dict[str, list[tuple[float, int]]] = {each.lease_id: [] for each in line.waiting}
        for _ in range(count):
            for lease_id, found in _Replay(line, self, now_seconds).run(only).items():
                begun[lease_id].append(found)
        wanted = begun if only is None else {only: begun[only]}
        ahead = {each.lease_id: (n + 1) / (steps + 1) for n, each in enumerate(line.waiting)}
        estimates: dict[str, Estimate | None] = {}
        for lease_id, starts in wanted.items():
            estimate = self._range(starts, now_seconds) if len(starts) == count else None
            if estimate is not None and line.may_pass:
                estimate = self._compared(estimate, now_seconds, ahead[lease_id])
            estimates[lease_id] = estimate
        return estimates

    def lasts(self, tier: str, age_seconds: float, left_seconds: float | None) -> float | None:
        """How long a session still lasts, drawn at random; None if nothing is known."""
        return self.lengths.draw(tier, age_seconds, left_seconds, self._draw.random())

    def _range(self, found: list[tuple[float, int]], now_seconds: float) -> Estimate:
        starts = sorted(start for start, _ in found)
        middle = statistics.median(starts)
        spread = max(_LEAST_SPREAD_SECONDS, statistics.pstdev(starts))
        low, high = self._edges()
        return Estimate(
            earliest_seconds=max(now_seconds, middle + low * spread),
            latest_seconds=max(now_seconds, middle + high * spread),
            endings=int(statistics.median_low(endings for _, endings in found)),
            middle_seconds=middle,
            spread_seconds=spread,
        )

    def _compared(self, estimate: Estimate, now_seconds: float, ahead: float) -> Estimate:
        """The estimate where others may pass: from what became of earlier ones that looked most alike."""
        wait = max(_LEAST_WAIT_SECONDS, estimate.middle_seconds - now_seconds)
        spread = math.log(estimate.spread_seconds / wait)
        outlook = Outlook(now_seconds, math.log(wait), math.log(ahead), spread)
        if len(self._lessons) < _NEAREST:
            return replace(estimate, known=False, outlook=outlook)
        near = heapq.nsmallest(_NEAREST, self._lessons, key=lambda lesson: outlook.distance(lesson[0]))
        low, high = _narrowest([math.exp(error) for _, error in near])
        return replace(
            estimate,
            earliest_seconds=now_seconds + low * wait,
            latest_seconds=now_seconds + high * wait,
            known=high - low <= _WIDEST * (low + high) / 2,
            outlook=outlook,
        )

    def _edges(self) -> tuple[float, float]:
        """The range around the middle, in spreads: the narrowest that covers enough of the past errors."""
        if len(self._errors) < _ENOUGH_ERRORS:
            return -2.0, 2.0
        return _narrowest(self._errors)


def _narrowest(values: Iterable[float]) -> tuple[float, float]:
    """The narrowest range that covers enough of the values."""
    ordered = sorted(values)
    inside = min(len(ordered), int(_COVERED * len(ordered)) + 1)
    return min(
        ((ordered[n], ordered[n + inside - 1]) for n in range(len(ordered) - inside + 1)),
        key=lambda edges: edges[1] - edges[0],
    )


class _Replay:
    """One replay of how the queue may be served."""

    def __init__(self, line: Line, estimator: Estimator, now_seconds: float) -> None:
        self._line = line
        self._estimator = estimator
        self._now = now_seconds
        self._rooms: dict[Kind, list[Room]] = {kind: list(listed) for kind, listed in line.rooms.items()}
        self._changed: dict[str, Room] = {}
        self._ends: list[tuple[float, int, tuple[Share, ...]]] = []
        self._pushed = 0
        self._tiers = dict(line.tiers)
        self._numbers = [float(number) for number in range(len(line.waiting))]
        self._lines: dict[Want, list[tuple[float, Waiting]]] = {}
        for number, waiting in enumerate(line.waiting):
            self._lines.setdefault(waiting.want, []).append((float(number), waiting))
        newcomers = estimator.newcomers(now_seconds) if line.may_pass else []
        self._newcomers = deque(newcomers)

    def run(self, only: str | None) -> dict[str, tuple[float, int]]:
        """When each begins and how many sessions end before; those whose begin isn't known are left out."""
        self._begin_with()
        begun: dict[str, tuple[float, int]] = {}
        wanted = {each.lease_id for each in self._line.waiting} if only is None else {only}
        at, endings = self._now, 0
        while True:
            for waiting in self._serve(at):
                if waiting.lease_id in wanted:
                    begun[waiting.lease_id] = (at, endings)
                    wanted.remove(waiting.lease_id)
            if not self._ends or not wanted:
                return begun
            if self._newcomers and self._newcomers[0].at_seconds <= self._ends[0][0]:
                at = self._newcomers[0].at_seconds
                self._join(self._newcomers.popleft())
                continue
            at, _, shares = heapq.heappop(self._ends)
            endings += 1
            self._free(shares)

    def _begin_with(self) -> None:
        for session in self._line.sessions:
            ends = session.holding.ends_seconds
            left = None if ends is None else ends - self._now
            lasts = self._estimator.lasts(session.tier, self._now - session.began_seconds, left)
            if lasts is not None:
                self._push(self._now + lasts, session.holding.shares)

    def _join(self, newcomer: Arrival) -> None:
        """A newcomer goes as far forward in the queue as it did before."""
        at = int((newcomer.before_fraction or 0.0) * len(self._numbers))
        before = self._numbers[at - 1] if at > 0 else (self._numbers[0] - 1.0 if self._numbers else 0.0)
        number = before + 1.0 if at >= len(self._numbers) else (before + self._numbers[at]) / 2
        self._numbers.insert(at, number)
        self._pushed += 1
        waiting = newcomer.waiting._replace(number=self._pushed, lease_id=f"newcomer-{self._pushed}")
        self._tiers[waiting.lease_id] = newcomer.tier
        insort(self._lines.setdefault(waiting.want, []), (number, waiting))

    def _serve(self, at: float) -> list[Waiting]:
        """Who begins now: in the order of the queue; who can't keeps what suits it from those behind."""
        left, begun = dict(self._rooms), []
        heads = [(line[0][0], number, want) for number, (want, line) in enumerate(self._lines.items())]
        heapq.heapify(heads)
        while heads:
            _, number, want = heapq.heappop(heads)
            shares = place(want, left)
            if shares is None:
                left = {kind: listed for kind, listed in left.items() if not suits(want, kind)}
                continue
            line = self._lines[want]
            place_number, waiting = line.pop(0)
            del self._numbers[bisect_left(self._numbers, place_number)]
            begun.append(waiting)
            self._take(shares)
            lasts = self._estimator.lasts(self._tiers[waiting.lease_id], 0.0, waiting.claim.session_seconds)
            if lasts is not None:
                self._push(at + lasts, shares)
            if line:
                heapq.heappush(heads, (line[0][0], number, want))
            else:
                del self._lines[want]
        return begun

    def _push(self, at: float, shares: tuple[Share, ...]) -> None:
        self._pushed += 1
        heapq.heappush(self._ends, (at, self._pushed, shares))

    def _take(self, shares: Iterable[Share]) -> None:
        for share in shares:
            room = self._changed.get(share.device_uuid) or self._line.all_rooms[share.device_uuid]
            self._changed[share.device_uuid] = room.plus(share)
        take(self._rooms, shares)

    def _free(self, shares: Iterable[Share]) -> None:
        for share in shares:
            room = self._changed.get(share.device_uuid) or self._line.all_rooms.get(share.device_uuid)
            if room is None:
                continue
            freed = self._changed[share.device_uuid] = room.minus(share)
            listed = self._rooms.setdefault(room.kind, [])
            at = next((n for n, each in enumerate(listed) if each.device.uuid == share.device_uuid), None)
            if at is not None:
                del listed[at]
            insort(listed, freed, key=rank)
