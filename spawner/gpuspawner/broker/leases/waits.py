"""Keeps the estimates of the waits up to date: a thread computes them from a copy of the queue."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from ...core.model import Lease, LeaseState
from ...core.states import UNSETTLED
from ...core.units import Clock, utc_now
from ...node.daemon_pool import DaemonPool
from ..decide.line.estimate import Arrival, Estimate, Estimator, Line
from ..ledger import PastSession

LOOK_SECONDS = 2.0
"""The delay between a change and the new estimates."""
_AGAIN_SECONDS = 30.0
"""Without a change they are computed again at this interval, because they depend on the time."""
_MINUTE = 60.0
_MOST_LESSONS = 1000
"""What is kept to be learnt; more comes only before `run` has begun."""
_NEWS_FRACTION = 0.1


class Waits:
    """The estimates for those who wait.

    `line` copies the queue, `arrival` describes a lease that came since the last look (it counts the whole
    queue, which is too slow for every request), `wake` says that there is news.
    """

    def __init__(
        self,
        line: Callable[[], Line],
        arrival: Callable[[Lease], Arrival],
        wake: Callable[[], None],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        clock: Clock = utc_now,
    ) -> None:
        self._line = line
        self._arrival = arrival
        self._wake = wake
        self._log = log
        self._clock = clock
        self._estimator = Estimator()
        self._said: dict[str, Estimate] = {}
        self._first: dict[str, Estimate] = {}
        self._newcomers: dict[str, Estimate] = {}
        self._began: dict[str, tuple[str, float]] = {}
        self._arrived: deque[Lease] = deque(maxlen=_MOST_LESSONS)
        self._lessons: deque[Callable[[], None]] = deque(maxlen=_MOST_LESSONS)
        self._changed = asyncio.Event()
        self._pool = DaemonPool("waits", most=1)

    def of(self, lease_id: str) -> Estimate | None:
        """The estimated time at which a waiting lease is served; None if it isn't known."""
        return self._said.get(lease_id)

    def of_newcomer(self, tier: str) -> Estimate | None:
        """When a request of this tier that came now would be served; None if it isn't known."""
        return self._newcomers.get(tier)

    def learn_past(self, sessions: Iterable[PastSession]) -> None:
        """The sessions in the ledger that have ended."""
        for each in sessions:
            if each.lease.state is LeaseState.CLOSED:
                self._learn_length(each.lease.tier, each.awake_seconds)

    def on_lease(self, lease: Lease) -> None:
        """A lease has changed: record what can be learnt from it, and request new estimates."""
        at = lease.since.timestamp()
        if lease.since == lease.created_at and lease.state in UNSETTLED:
            self._arrived.append(lease)
        if lease.state is not LeaseState.WAITING:
            self._said.pop(lease.id, None)
            first = self._first.pop(lease.id, None)
            if first is not None and lease.state is LeaseState.RESERVED:
                self._lessons.append(lambda: self._estimator.learn(first, at))
        if lease.state in (LeaseState.RESERVED, LeaseState.RUNNING):
            self._began.setdefault(lease.id, (lease.tier, at))
        elif lease.state is LeaseState.CLOSED and lease.id in self._began:
            tier, began = self._began.pop(lease.id)
            self._learn_length(tier, at - began)
        self._changed.set()

    async def run(self) -> None:
        """Computes the estimates again after each change, until cancelled."""
        try:
            await self._follow()
        finally:
            self._pool.close()

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_AGAIN_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                await self.look()
            except Exception:  # the top of the loop: a failed estimate must not stop leasing
                self._log.exception("The waits could not be estimated; the next change tries again")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Computes the estimates once; users who wait are told if the range has changed by much."""
        line, now = self._line(), self._clock().timestamp()
        lessons = [*map(self._lesson_of, self._arrived), *self._lessons]
        self._arrived.clear()
        self._lessons.clear()
        if line.waiting or lessons:
            self._take(await self._pool.submit(lambda: self._work(line, now, lessons)), now)

    def _work(
        self, line: Line, now: float, lessons: list[Callable[[], None]]
    ) -> Mapping[str, Estimate | None]:
        """In the thread; only one runs at a time, and nobody else touches the estimator."""
        for lesson in lessons:
            lesson()
        return self._estimator.estimate(line, now) if line.waiting else {}

    def _take(self, found: Mapping[str, Estimate | None], now: float) -> None:
        news = False
        for lease_id, estimate in found.items():
            said = self._said.get(lease_id)
            if estimate is not None:
                self._first.setdefault(lease_id, estimate)  # learnt from, even if it is not told
            if estimate is None or not estimate.known:
                news |= self._said.pop(lease_id, None) is not None
            elif said is None or _moved(said, estimate, now):
                self._said[lease_id] = estimate
                news = True
        for lease_id in self._said.keys() - found.keys():
            del self._said[lease_id]
        if news:
            self._wake()

    def _lesson_of(self, arrived: Lease) -> Callable[[], None]:
        arrival = self._arrival(arrived)
        return lambda: self._estimator.arrived(arrival)

    def _learn_length(self, tier: str, seconds: float) -> None:
        self._lessons.append(lambda: self._estimator.lengths.add(tier, seconds))


def _moved(said: Estimate, now: Estimate, now_seconds: float) -> bool:
    """Whether the change is large enough to tell: a tenth of the wait, and at least a minute."""
    enough = max(_MINUTE, _NEWS_FRACTION * (said.latest_seconds - now_seconds))
    return (
        abs(said.earliest_seconds - now.earliest_seconds) >= enough
        or abs(said.latest_seconds - now.latest_seconds) >= enough
    )
