"""Who may come from now on: those who came at the same time of an earlier week or day, or others. Pure."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from .future import Arrival

KEPT_ARRIVALS = 20_000
_DAY, _WEEK = 86400.0, 7 * 86400.0
_MOST_WEEKS = 4
"""How many earlier weeks the newcomers of a future are drawn from."""
_DAYS_AHEAD = 7
"""Nobody is expected later than this."""
_SHIFT = 900.0
"""Those who came in an earlier week all come sooner or later in one future, by up to so many seconds."""
_TIMES = (0, 1, 1, 2)
"""How often somebody who came comes again."""
_SAME_TIME = 3600.0
"""Who comes within so many seconds of the time at which they came a week (or a day) before has the habit."""
_KEPT_HABITS = 200
"""The newest arrivals say how many have the habit."""
_BY_CHANCE = 10
"""Who came more often than this did so by habit."""
_LESS = 0.75
"""So often a visit of somebody who came a few times is taken for chance, and a user with one fewer comes."""
_STRANGER = "\0"
"""Before the number of somebody who has never come: no user's name begins so."""


class _Span(NamedTuple):
    """A part of the future, like the one so long before it."""

    period_seconds: float
    back_seconds: float
    begins_seconds: float
    ends_seconds: float


class Newcomers:
    """Keeps who came when, and draws who may come.

    Who of them comes matters with fair share: those who have used little pass those who have used more.
    """

    def __init__(self) -> None:
        self._arrivals: list[Arrival] = []
        self._visits: Counter[str] = Counter()
        """How often each user is in `_arrivals`."""
        self._latest: dict[str, Arrival] = {}
        self._by_visits: dict[int, list[str]] = {}
        """Users by how often they came; empty after a change."""
        self._habits: dict[float, deque[bool]] = {
            period: deque(maxlen=_KEPT_HABITS) for period in (_DAY, _WEEK)
        }
        """Of the newest arrivals, whether the user came at the same time one period before."""

    def arrived(self, arrival: Arrival) -> None:
        """Somebody has come."""
        user = arrival.waiting.user
        for period, habits in self._habits.items():
            if self._arrivals and self._arrivals[0].at_seconds <= arrival.at_seconds - period:
                habits.append(self._came(user, arrival.at_seconds - period))
        self._arrivals.append(arrival)
        self._latest[user] = arrival
        self._visits[user] += 1
        if len(self._arrivals) > KEPT_ARRIVALS:
            self._forget(self._arrivals.pop(0).waiting.user)
        self._by_visits.clear()

    def _forget(self, user: str) -> None:
        self._visits[user] -= 1
        if not self._visits[user]:
            del self._visits[user], self._latest[user]

    def _came(self, user: str, at_seconds: float) -> bool:
        """Whether the user came at about this time."""
        first, end = (self._index(at_seconds + side * _SAME_TIME) for side in (-1, 1))
        return any(each.waiting.user == user for each in self._arrivals[first:end])

    def _index(self, at_seconds: float) -> int:
        return bisect_left(self._arrivals, at_seconds, key=lambda each: each.at_seconds)

    def coming(self, now_seconds: float, draw: random.Random) -> Iterator[Arrival]:
        """Who may come, in order: each of the same time in an earlier week (or day) comes again not at all,
        once or twice. It is the same user as often as people have had that habit, else anybody.
        """
        shift, strangers = draw.uniform(-_SHIFT, _SHIFT), 0
        for span in self._spans(now_seconds, draw):
            habits = self._habits[span.period_seconds]
            habit = (sum(habits) + 1) / (len(habits) + 2)
            back = span.back_seconds + shift
            for index in range(self._index(span.begins_seconds - back), len(self._arrivals)):
                each = self._arrivals[index]
                at = each.at_seconds + back
                if at >= span.ends_seconds:
                    break
                for _ in range(_TIMES[int(draw.random() * len(_TIMES))]):
                    who = each if draw.random() < habit else self._anybody(draw)
                    if who is None:
                        strangers += 1
                        who = each._replace(waiting=each.waiting._replace(user=f"{_STRANGER}{strangers}"))
                    yield who._replace(at_seconds=at)

    def _spans(self, now_seconds: float, draw: random.Random) -> Iterator[_Span]:
        """The next week like one of the last; before a week is known, each day like one of those known."""
        if not self._arrivals:
            return
        known_seconds = now_seconds - self._arrivals[0].at_seconds
        weeks = min(_MOST_WEEKS, int(known_seconds // _WEEK))
        if weeks:
            yield _Span(_WEEK, draw.randint(1, weeks) * _WEEK, now_seconds, now_seconds + _WEEK)
            return
        days = int(known_seconds // _DAY)
        for ahead in range(_DAYS_AHEAD if days else 0):
            begins = now_seconds + ahead * _DAY
            yield _Span(_DAY, (ahead + draw.randint(1, days)) * _DAY, begins, begins + _DAY)

    def _anybody(self, draw: random.Random) -> Arrival | None:
        """The latest arrival of somebody who may be next; None for somebody who has never come.

        After Good and Turing: the next one is like one of those who came, as they were known without that
        visit. So at the begin of a term, when many came for the first time, many are new, and who came twice
        by chance doesn't come twice as often from then on.
        """
        if not self._by_visits:
            for user, visits in self._visits.items():
                self._by_visits.setdefault(visits, []).append(user)
        one = self._arrivals[int(draw.random() * len(self._arrivals))].waiting.user
        visits = self._visits[one]
        if visits == 1:
            return None
        fewer = self._by_visits.get(visits - 1)
        if fewer and visits <= _BY_CHANCE and draw.random() < _LESS:
            return self._latest[fewer[int(draw.random() * len(fewer))]]
        return self._latest[one]
