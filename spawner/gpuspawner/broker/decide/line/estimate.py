"""How long a request will wait: a range, from many possible futures of the queue and from past errors. Pure.

Each future (`future.py`) draws for everybody who holds devices how long their session still lasts, and
serves the queue in its order. Where newcomers may pass (fair share, priorities), others come meanwhile
(`newcomers.py`). The futures give a middle and what lies on both sides of it. How far true
waits were from the middle is remembered, in units of these sides: so much wider the next ranges become.
"""

from __future__ import annotations

import random
import statistics
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .future import Arrival, Begin, Future, Lasts, Line
from .lengths import Drawn, Lengths
from .newcomers import Newcomers

KEPT_ERRORS = 80
"""So many of the newest errors say how wrong the next ranges may be; with the hours that changes."""
_ENOUGH_ERRORS = 25
_FIRST_EDGES = (-2.5, 2.5)
"""The edges of the range in sides of the middle as long as too few errors are known."""
_WIDEST = 1.5
"""A range that is wider than this many times the wait in its middle is not told."""
_COVERED = (0.97, 0.95, 0.93, 0.91, 0.89, 0.87, 0.85, 0.83)
"""The part of the past waits that a range must have covered: the first that leaves it narrow, else the last.

More than the required 80 %, as the newest errors are few and come in groups: a day is wrong as a whole. Where
ranges are wide, covering more would make them so wide that they say little.
"""
_NARROW = 0.4
"""A range is narrow if it is at most this part of the wait in its middle: then covering more costs little."""
_SIDE = 0.1
"""The side of the middle ends where this part of the futures lies beyond it."""
_MOST_FUTURES = 32
_LEAST_FUTURES = 8
_STEPS = 4000
"""At most this many sessions are drawn for one estimate: a long queue gets fewer futures."""
_LEAST_SIDE_SECONDS = 30.0
_LEAST_SIDE_FRACTION = 0.04
"""A side is at least this part of the wait: where all futures agree, they still leave something out."""
_LEAST_WIDTH_SECONDS = 300.0
"""A range as narrow as this is told however short the wait is."""


_Edges = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """When a request will likely be served, in seconds since 1970; `endings` sessions end before that.

    `before_seconds` and `after_seconds` are how far the futures spread on both sides of the middle.
    """

    earliest_seconds: float
    latest_seconds: float
    endings: int
    middle_seconds: float
    before_seconds: float
    after_seconds: float
    known: bool = True
    """Whether the range is told: one much wider than the wait says nothing."""

    def error(self, began_seconds: float) -> float:
        """How far the true begin is from the middle, in sides: between -1 and 1 are the likely ones."""
        late = began_seconds - self.middle_seconds
        return late / (self.after_seconds if late > 0 else self.before_seconds)


class Estimator:
    """Keeps what past sessions and waits say, and estimates the waits of a queue."""

    def __init__(self, seed: int = 1) -> None:
        self.lengths = Lengths()
        self._seed = seed
        self._draw = random.Random(seed)
        self._errors: deque[float] = deque(maxlen=KEPT_ERRORS)
        self._newcomers = Newcomers()

    def learn(self, estimate: Estimate, began_seconds: float) -> float:
        """Record when a request with this estimate really began; returns how wrong it was, in sides."""
        error = estimate.error(began_seconds)
        self._errors.append(error)
        return error

    def recall(self, errors: Iterable[float]) -> None:
        """Record what an earlier estimator's `learn` returned, in order."""
        self._errors.extend(errors)

    def arrived(self, arrival: Arrival) -> None:
        """Somebody has come."""
        self._newcomers.arrived(arrival)

    def estimate(
        self,
        line: Line,
        now_seconds: float,
        only: Collection[str] | None = None,
        give_way: Callable[[], None] = lambda: None,
    ) -> dict[str, Estimate | None]:
        """The estimates by lease id, None where nothing is known; only of these leases if they are given.

        `give_way` is called again and again: it may take a while for the sake of others.
        """
        wanted = {each.lease_id for each in line.waiting} if only is None else set(only)
        count = max(_LEAST_FUTURES, min(_MOST_FUTURES, _STEPS // max(1, len(line.waiting))))
        self._draw.seed(self._seed)  # the same random draws again: only new information may change a range
        tiers = {*line.tiers.values(), *(each.tier for each in line.sessions)}
        begun: dict[str, list[Begin]] = {each: [] for each in wanted}
        for _ in range(count):
            newcomers = self.newcomers(now_seconds) if line.may_pass else iter(())
            future = Future(line, newcomers, self.session_lengths(tiers), now_seconds, give_way)
            for lease_id, begin in future.run(wanted).items():
                begun[lease_id].append(begin)
        edges = self._edges()
        return {
            lease_id: _range(begins, edges, now_seconds) if len(begins) == count else None
            for lease_id, begins in begun.items()
        }

    def newcomers(self, now_seconds: float) -> Iterator[Arrival]:
        """Who may come in one future, in order."""
        return self._newcomers.coming(now_seconds, self._draw)

    def session_lengths(self, tiers: Iterable[str]) -> Lasts:
        """Draws the lengths of the sessions of one future."""
        stretch = {tier: self.lengths.stretch(tier, self._draw) for tier in sorted(tiers)}

        def lasts(drawn: Drawn, age_seconds: float, left_seconds: float | None) -> float | None:
            found = self.lengths.draw(drawn, age_seconds, None, self._draw)
            if found is None:
                return self.lengths.draw(drawn, age_seconds, left_seconds, self._draw)
            found *= stretch.get(drawn.tier, 1.0)
            return found if left_seconds is None else min(found, max(0.0, left_seconds))

        return lasts

    def _edges(self) -> Sequence[_Edges]:
        """The edges of a range around its middle, in sides; those that cover most errors come first."""
        if len(self._errors) < _ENOUGH_ERRORS:
            return (_FIRST_EDGES,)
        return [_narrowest(self._errors, covered) for covered in _COVERED]


def _range(begins: list[Begin], choices: Sequence[_Edges], now_seconds: float) -> Estimate:
    """From when a lease begins in the futures; with the first of these edges that make the range narrow."""
    starts = sorted(begin.at_seconds for begin in begins)
    middle = statistics.median(starts)
    aside = int(_SIDE * len(starts))
    least = max(_LEAST_SIDE_SECONDS, _LEAST_SIDE_FRACTION * (middle - now_seconds))
    before = max(least, middle - starts[aside])
    after = max(least, starts[-1 - aside] - middle)
    for low, high in choices:
        earliest = max(now_seconds, middle + low * (before if low < 0 else after))
        latest = max(now_seconds, middle + high * (after if high > 0 else before))
        wait = (earliest + latest) / 2 - now_seconds
        if latest - earliest <= _NARROW * wait:
            break
    return Estimate(
        earliest_seconds=earliest,
        latest_seconds=latest,
        endings=int(statistics.median_low(begin.endings for begin in begins)),
        middle_seconds=middle,
        before_seconds=before,
        after_seconds=after,
        known=latest - earliest <= max(_LEAST_WIDTH_SECONDS, _WIDEST * wait),
    )


def _narrowest(values: Iterable[float], covered: float) -> _Edges:
    """The narrowest range that covers this part of the values."""
    ordered = sorted(values)
    inside = min(len(ordered), int(covered * len(ordered)) + 1)
    return min(
        ((ordered[n], ordered[n + inside - 1]) for n in range(len(ordered) - inside + 1)),
        key=lambda edges: edges[1] - edges[0],
    )
