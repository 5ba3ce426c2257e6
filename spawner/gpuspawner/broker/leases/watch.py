"""Following one lease: its state and its place in the queue, as they change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import NamedTuple

from ...core.errors import LeaseConflict
from ...core.model import Lease, LeaseState
from ...core.paced import PAUSE_SECONDS
from ...core.states import ENDED
from ..decide.line.estimate import Estimate
from ..decide.line.queue import Place
from ..decide.snapshot import Change

_AT_ONCE, _WAKE_AT_ONCE = 50, 3
"""So many places are looked at, and so many of those who follow them are woken; then comes a pause: a request
that comes meanwhile may not wait for a hundred who are told their place."""
_REST = 20.0
"""A look at all places is followed by this many times its work without one, .."""
_MOST_REST_SECONDS = 2.0
""".. but no longer than this."""


class WaitNews(NamedTuple):
    """The information about a waiting lease; all empty for a lease that doesn't wait."""

    place: Place | None
    obstacle: str
    wait: Estimate | None
    idle_but_out: str


class Watches:
    """Everybody who follows a lease.

    Places in the queue are looked at for all who wait together, soon after a change, and only those are woken
    for whom something has changed: with a thousand who wait, nobody's request may cost a thousand wake-ups.
    `places` counts them, once for all who are looked at.
    """

    def __init__(self, places: Callable[[], Mapping[str, Place]]) -> None:
        self._places = places
        self._by_lease: dict[str, list[Watch]] = {}
        self._is_due = False
        self._looking = False
        self._rests_until = 0.0
        """By the loop's clock."""

    def __len__(self) -> int:
        return sum(map(len, self._by_lease.values()))

    def put(self, lease: Lease) -> None:
        """Tell everybody who follows the lease its new state."""
        for watch in self._by_lease.get(lease.id, ()):
            watch.put(lease)

    def wake_waiting(self) -> None:
        """A lease left the queue: the place of everybody who follows a waiting lease is looked at soon."""
        self._is_due = True
        if not self._looking:
            self._looking = True
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._rests_until), self._look)

    def _look(self) -> None:
        self._is_due = False
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        followed = [watch for watches in self._by_lease.values() for watch in watches]
        places = self._places()
        left = iter([(watch, places.get(watch.lease_id)) for watch in followed])
        spent_seconds = time.monotonic() - began
        loop.call_later(PAUSE_SECONDS, self._look_at, left, spent_seconds)

    def _look_at(self, left: Iterator[tuple[Watch, Place | None]], spent_seconds: float) -> None:
        """The next of those who are left, then the others."""
        loop, woken, began = asyncio.get_running_loop(), 0, time.monotonic()
        for looked, (watch, place) in enumerate(left, 1):
            woken += watch.wake(place)
            if looked == _AT_ONCE or woken == _WAKE_AT_ONCE:
                spent_seconds += time.monotonic() - began
                loop.call_later(PAUSE_SECONDS, self._look_at, left, spent_seconds)
                return
        spent_seconds += time.monotonic() - began
        self._looking = False
        self._rests_until = loop.time() + min(_MOST_REST_SECONDS, _REST * spent_seconds)
        if self._is_due:
            self.wake_waiting()

    def add(self, watch: Watch) -> None:
        """Register a watch."""
        self._by_lease.setdefault(watch.lease_id, []).append(watch)

    def remove(self, watch: Watch) -> None:
        """Forget a watch."""
        watches = self._by_lease[watch.lease_id]
        watches.remove(watch)
        if not watches:
            del self._by_lease[watch.lease_id]


class Watch:
    """`async with` it, then `async for` a `Change`: first the current one, then every state and position.

    Ends after the change to CLOSED. Of changes that come faster than they are read, the latest counts.
    """

    def __init__(
        self,
        lease_id: str,
        watches: Watches,
        find: Callable[[str], Lease | None],
        news_of: Callable[[str, Place | None], WaitNews],
    ) -> None:
        self.lease_id = lease_id
        self._watches = watches
        self._find = find
        self._news_of = news_of
        self._news = asyncio.Event()
        self._lease: Lease | None = None
        self._last: Change | None = None
        self._found: Change | None = None
        """What the last look at everybody's place has found."""

    async def __aenter__(self) -> AsyncIterator[Change]:
        """Start to follow. Raises LeaseConflict if there is no such living lease."""
        self._lease = self._find(self.lease_id)
        if self._lease is None:
            raise LeaseConflict(ENDED)
        self._watches.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watches.remove(self)

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        while self._last is None or self._last.lease.state is not LeaseState.CLOSED:
            if self._last is not None:
                await self._news.wait()
            self._news.clear()
            change, self._found = self._found, None
            if change is None or change.lease is not self._lease:
                change = self._look()
            if self._last is None or _worth_telling(change) != _worth_telling(self._last):
                self._last = change
                return change
        raise StopAsyncIteration

    def put(self, lease: Lease) -> None:
        """The lease has changed to this."""
        self._lease = lease
        self._news.set()

    def wake(self, place: Place | None) -> bool:
        """This is its place in the queue. If that is news, whoever follows it is told; returns whether."""
        if self._lease is None or self._last is None or self._lease.state is not LeaseState.WAITING:
            return False  # who has not been told anything yet looks for itself
        if place is None:
            return False  # it has come since they were counted
        found = self._look(place)
        changed = _worth_telling(found) != _worth_telling(self._last)
        if changed:
            self._found = found
            self._news.set()
        return changed

    def _look(self, place: Place | None = None) -> Change:
        assert self._lease is not None  # set on entry
        news = self._news_of(self.lease_id, place)
        if news.place is None:
            return Change(self._lease, None, None)
        place = news.place
        return Change(self._lease, place.position, place.waiting, news.obstacle, news.wait, news.idle_but_out)


def _worth_telling(change: Change) -> tuple[object, ...]:
    """The values whose change is reported: the number that wait behind a place is not one of them."""
    return change.lease, change.position, change.obstacle, change.wait, change.idle_but_out
