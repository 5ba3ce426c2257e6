"""A time limit that a busy event loop can't use up before the answer was looked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LOOKS = 20
"""The loop turns at least this often within a limit. A request to the broker takes some ten turns."""


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Raises TimeoutError if the block takes longer than `seconds`, as `asyncio.timeout` does.

    The time is counted in `LOOKS` parts, one after the other. When hundreds of users click at once, a turn of
    the hub's loop may take seconds (6.5 s seen with 80 on a busy machine): by the clock, a limit of two
    seconds is over before the request was sent. Here such a turn counts as one part.
    """
    async with asyncio.timeout(None) as limit:
        parts = _Parts(limit, seconds / LOOKS)
        parts.begin()
        try:
            yield
        finally:
            parts.end()


class _Parts:
    """The parts of one limit.

    Nothing here refers to itself once it has ended: it would keep the task, and all that this holds, until
    the next full garbage collection.
    """

    def __init__(self, limit: asyncio.Timeout, part_seconds: float) -> None:
        self._limit = limit
        self._part_seconds = part_seconds
        self._left = LOOKS
        self._next: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The next part begins; after the last one, the limit is over."""
        loop = asyncio.get_running_loop()
        if self._left:
            self._left -= 1
            self._next = loop.call_later(self._part_seconds, self.begin)
        else:
            self._limit.reschedule(loop.time())

    def end(self) -> None:
        """The block has ended."""
        if self._next is not None:
            self._next.cancel()
