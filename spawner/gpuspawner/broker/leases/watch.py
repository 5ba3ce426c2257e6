"""Following one lease: its state and its place in the queue, as they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from ...core.errors import LeaseConflict
from ...core.model import Lease, LeaseState
from ...core.states import ENDED
from ..decide.line.estimate import Estimate
from ..decide.line.queue import Place
from ..decide.snapshot import Change


class WaitNews(NamedTuple):
    """The information about a waiting lease; all empty for a lease that doesn't wait."""

    place: Place | None
    obstacle: str
    wait: Estimate | None
    idle_but_out: str


class Watches:
    """Everybody who follows a lease; waking is cheap, and each then checks for itself what has changed."""

    def __init__(self) -> None:
        self._by_lease: dict[str, list[Watch]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_lease.values()))

    def put(self, lease: Lease) -> None:
        """Tell everybody who follows the lease its new state."""
        for watch in self._by_lease.get(lease.id, ()):
            watch.put(lease)

    def wake_waiting(self) -> None:
        """A lease left the queue: everybody who follows a waiting lease checks its place again."""
        for watches in self._by_lease.values():
            for watch in watches:
                watch.wake()

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
        news_of: Callable[[str], WaitNews],
    ) -> None:
        self.lease_id = lease_id
        self._watches = watches
        self._find = find
        self._news_of = news_of
        self._news = asyncio.Event()
        self._lease: Lease | None = None
        self._last: Change | None = None

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
            self._news.clear()
            change = self._look()
            if self._last is None or _worth_telling(change) != _worth_telling(self._last):
                self._last = change
                return change
            await self._news.wait()
        raise StopAsyncIteration

    def put(self, lease: Lease) -> None:
        """The lease has changed to this."""
        self._lease = lease
        self._news.set()

    def wake(self) -> None:
        """The place of a waiting lease may have changed."""
        if self._lease is not None and self._lease.state is LeaseState.WAITING:
            self._news.set()

    def _look(self) -> Change:
        assert self._lease is not None  # set on entry
        news = self._news_of(self.lease_id)
        if news.place is None:
            return Change(self._lease, None, None)
        place = news.place
        return Change(self._lease, place.position, place.waiting, news.obstacle, news.wait, news.idle_but_out)


def _worth_telling(change: Change) -> tuple[object, ...]:
    """The values whose change is reported: the number that wait behind a place is not one of them."""
    return change.lease, change.position, change.obstacle, change.wait, change.idle_but_out
