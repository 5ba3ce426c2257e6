"""How long a session still lasts: drawn from past ones that lasted as long already, up to its limit. Pure."""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

KEPT_LENGTHS = 400
"""At most this many past sessions, the latest, are kept for each tier, and for each user and hour of it."""
_TRUST = 5.0
"""With n past sessions of the same user (or hour) a draw is of them with the chance n / (n + this)."""
_HOUR_SECONDS = 3600.0
_HOURS_OF_WEEK = 168
_LEAST_STRETCH = 0.3
_FEWEST = 3
"""Fewer past sessions of a tier that lasted as long say nothing."""


@dataclass(slots=True)
class _Past:
    """Some past sessions: in the order of time, and by length."""

    latest: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        self.latest.append(seconds)
        insort(self.ordered, seconds)
        if len(self.latest) > KEPT_LENGTHS:
            self.ordered.remove(self.latest.popleft())


class Lengths:
    """How long past sessions lasted: by tier, and within it by user and by the hour of the week.

    People have habits and classes have hours, so these count more than the tier, the more of them there are.
    """

    def __init__(self) -> None:
        self._past: dict[Hashable, _Past] = {}

    def add(self, tier: str, seconds: float, user: str = "", began_seconds: float | None = None) -> None:
        """Record how long a session lasted."""
        for key in _keys(tier, user, began_seconds):
            self._past.setdefault(key, _Past()).add(seconds)

    def stretch(self, tier: str, draw: random.Random) -> float:
        """A factor for all lengths of one future: how wrong the mean of so few past sessions may be."""
        past = self._past.get((tier,))
        if past is None or len(past.ordered) < _FEWEST:
            return 1.0
        mean = statistics.fmean(past.ordered)
        doubt = statistics.pstdev(past.ordered, mean) / max(1.0, mean) / math.sqrt(len(past.ordered))
        return max(_LEAST_STRETCH, draw.gauss(1.0, doubt))

    def draw(
        self, session: Drawn, age_seconds: float, left_seconds: float | None, draw: random.Random
    ) -> float | None:
        """How long a session of this age still lasts, drawn at random from the past ones that lasted longer.

        `left_seconds` is what its limit leaves. None where neither past sessions nor a limit say anything.
        """
        lasts = self._among_longer(session, age_seconds, draw)
        if lasts is not None:
            return lasts if left_seconds is None else min(lasts, max(0.0, left_seconds))
        if left_seconds is None:
            return None
        return max(0.0, left_seconds) * draw.random()

    def _among_longer(self, session: Drawn, age_seconds: float, draw: random.Random) -> float | None:
        """From the narrowest kind of past sessions (user, hour of the week, tier) that the draw falls on."""
        for key in _keys(session.tier, session.user, session.began_seconds):
            past = self._past.get(key)
            if past is None:
                continue
            first = bisect_right(past.ordered, age_seconds)
            longer = len(past.ordered) - first
            if len(key) == 1:
                if longer < _FEWEST:
                    return None
            elif longer == 0 or draw.random() >= longer / (longer + _TRUST):
                continue
            return past.ordered[first + int(draw.random() * longer)] - age_seconds
        return None


@dataclass(frozen=True, slots=True)
class Drawn:
    """The session whose length is drawn: its tier, and if they are known its user and its begin."""

    tier: str
    user: str = ""
    began_seconds: float | None = None


def _keys(tier: str, user: str, began_seconds: float | None) -> list[tuple[Hashable, ...]]:
    """What past sessions are found by, from the narrowest kind to the widest."""
    keys: list[tuple[Hashable, ...]] = []
    if user:
        keys.append((tier, user))
    if began_seconds is not None:
        keys.append((tier, "hour", int(began_seconds // _HOUR_SECONDS) % _HOURS_OF_WEEK))
    return [*keys, (tier,)]
