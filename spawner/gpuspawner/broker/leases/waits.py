"""Keeps the estimates of the waits up to date: a thread computes them from a copy of the queue."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ...core.errors import LedgerFault
from ...core.model import Lease, LeaseState
from ...core.states import UNSETTLED
from ...core.units import Clock, utc_now
from ...core.want import Mode
from ...node.daemon_pool import DaemonPool
from ..decide.line.estimate import Estimate, Estimator
from ..decide.line.future import Arrival, Line, with_ends, with_guests
from ..decide.line.queue import Waiting
from ..ledger import PastSession
from .hurry import Hurry

LOOK_SECONDS = 2.0
"""The delay between a change and the new estimates."""
_REST = 10.0
"""A look that took long is followed by this many times as long without one: the thread slows the broker."""
_GUEST_SECONDS = 10.0
"""So long an answer to somebody who doesn't wait yet is used again, also for others."""
_GUEST_PATIENCE_SECONDS = 1.0
"""The spawn page waits no longer for the likely wait; then it is not known."""
_WAY_SECONDS, _GUEST_WAY_SECONDS = 3.0, 0.3
"""So long in all the computing gives way to answers, for those who wait and for a guest."""
_AGAIN_SECONDS = 30.0
"""Without a change they are computed again at this interval, because they depend on the time."""
_MINUTE = 60.0
_MOST_LESSONS = 20_000
"""What is kept to be learnt; more comes only before `run` has begun."""
_MOST_AT_ONCE = 500
"""So many who came are read at one look: after a start of the broker there are thousands in the ledger."""
_NEWS_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class Guest:
    """Somebody who doesn't wait yet: their requests by tier. Guests who are `alike` get the same answer."""

    asking: Mapping[str, Waiting]
    alike: Hashable


class Waits:
    """The estimates for those who wait.

    `line` copies the queue, `arrival` describes a lease that came since the last look, `wake` says that there
    is news.
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
        self._guests: dict[Hashable, tuple[float, Mapping[str, Estimate | None]]] = {}
        self._began: dict[str, float] = {}
        self._arrived: deque[Lease] = deque(maxlen=_MOST_LESSONS)
        self._lessons: deque[Callable[[], None]] = deque(maxlen=_MOST_LESSONS)
        self._changed = asyncio.Event()
        self._pool = DaemonPool("waits", most=1)
        self.hurry = Hurry()
        """The answers to which the computing gives way."""
        self._learnt: list[float] = []
        """How wrong estimates were that `keep` has not recorded yet."""
        self.keep: Callable[[Sequence[float]], Awaitable[None]] | None = None
        """Records how wrong estimates were, for `learn_errors` of the next broker. May raise LedgerFault."""
        self.told_end: Callable[[str], datetime | None] = lambda lease_id: None
        """The end that the user of a running lease was told; None if they were told none."""

    def of(self, lease_id: str) -> Estimate | None:
        """The estimated time at which a waiting lease is served; None if it isn't known."""
        return self._said.get(lease_id)

    async def of_guest(self, guest: Guest) -> Mapping[str, Estimate | None]:
        """When requests that don't wait yet would be served, by tier; None, or left out: not known.

        The answer for users who look alike is kept for some seconds, as a whole class may ask at once.
        """
        now = self._clock().timestamp()
        known = self._guests.get(guest.alike)
        if known is not None and 0 <= now - known[0] < _GUEST_SECONDS:
            return known[1]
        line = with_guests(self._line_now(), guest.asking)
        ids = {waiting.lease_id: tier for tier, waiting in guest.asking.items()}
        try:
            async with asyncio.timeout(_GUEST_PATIENCE_SECONDS):
                give_way = self.hurry.way(_GUEST_WAY_SECONDS)
                found = await self._pool.submit(
                    lambda: self._estimator.estimate(line, now, ids, give_way=give_way)
                )
        except TimeoutError:
            return {}
        answer = {ids[lease_id]: each for lease_id, each in found.items() if each is None or each.known}
        self._guests = {
            alike: each for alike, each in self._guests.items() if 0 <= now - each[0] < _GUEST_SECONDS
        }
        self._guests[guest.alike] = now, answer
        return answer

    def learn_past(self, sessions: Iterable[PastSession]) -> None:
        """The sessions in the ledger that have ended: how long they lasted, and when people came."""
        for each in sorted(sessions, key=lambda each: each.lease.created_at):
            self._arrived.append(each.lease)
            if each.lease.state is LeaseState.CLOSED:
                began, ended = each.began_at.timestamp(), each.ended_at.timestamp()
                kept = each.awake_seconds if each.lease.mode is not Mode.TURNS else ended - began
                self._learn_length(each.lease, began, kept)

    def learn_errors(self, errors: Sequence[float]) -> None:
        """How wrong earlier brokers' estimates were, in order."""
        self._lessons.append(lambda: self._estimator.recall(errors))

    def on_lease(self, lease: Lease) -> None:
        """A lease has changed: record what can be learnt from it, and request new estimates."""
        at = lease.since.timestamp()
        if lease.since == lease.created_at and lease.state in UNSETTLED:
            self._arrived.append(lease)
        if lease.state is not LeaseState.WAITING:
            self._said.pop(lease.id, None)
            first = self._first.pop(lease.id, None)
            if first is not None and lease.state is LeaseState.RESERVED:
                self._lessons.append(lambda: self._learnt.append(self._estimator.learn(first, at)))
        if lease.state in (LeaseState.RESERVED, LeaseState.RUNNING):
            self._began.setdefault(lease.id, at)
        elif lease.state is LeaseState.CLOSED and lease.id in self._began:
            began = self._began.pop(lease.id)
            self._learn_length(lease, began, at - began)
        self._changed.set()

    def look_soon(self) -> None:
        """An end that was told has changed: request new estimates."""
        self._changed.set()

    def _line_now(self) -> Line:
        return with_ends(self._line(), self.told_end)

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
            began = asyncio.get_running_loop().time()
            try:
                await self.look()
            except Exception:  # the top of the loop: a failed estimate must not stop leasing
                self._log.exception("The waits could not be estimated; the next change tries again")
            took = asyncio.get_running_loop().time() - began
            await asyncio.sleep(max(LOOK_SECONDS, _REST * took))

    async def look(self) -> None:
        """Computes the estimates once; users who wait are told if the range has changed by much."""
        line, now = self._line_now(), self._clock().timestamp()
        some = [self._arrived.popleft() for _ in range(min(_MOST_AT_ONCE, len(self._arrived)))]
        lessons = [*map(self._lesson_of, some), *self._lessons]
        self._lessons.clear()
        if self._arrived:
            self._changed.set()
        if line.waiting or lessons:
            self._take(await self._pool.submit(lambda: self._work(line, now, lessons)), now)
        await self._keep_learnt()

    async def _keep_learnt(self) -> None:
        """Records what was learnt; if that fails, the next look does it."""
        learnt = list(self._learnt)
        if learnt and self.keep is not None:
            try:
                await self.keep(learnt)
            except LedgerFault as error:
                self._log.warning("How wrong estimated waits were can't be recorded yet: %s", error)
                return
            del self._learnt[: len(learnt)]

    def _work(
        self, line: Line, now: float, lessons: list[Callable[[], None]]
    ) -> Mapping[str, Estimate | None]:
        """In the thread; only one runs at a time, and nobody else touches the estimator."""
        for lesson in lessons:
            lesson()
        give_way = self.hurry.way(_WAY_SECONDS)
        return self._estimator.estimate(line, now, give_way=give_way) if line.waiting else {}

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

    def _learn_length(self, lease: Lease, began: float, seconds: float) -> None:
        lengths = self._estimator.lengths
        self._lessons.append(lambda: lengths.add(lease.tier, seconds, lease.user, began))


def _moved(said: Estimate, now: Estimate, now_seconds: float) -> bool:
    """Whether the change is large enough to tell: a tenth of the wait, and at least a minute."""
    enough = max(_MINUTE, _NEWS_FRACTION * (said.latest_seconds - now_seconds))
    return (
        abs(said.earliest_seconds - now.earliest_seconds) >= enough
        or abs(said.latest_seconds - now.latest_seconds) >= enough
    )
