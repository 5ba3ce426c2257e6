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
    loop = asyncio.get_running_loop()
    part_seconds = seconds / LOOKS
    ended = False
    async with asyncio.timeout(None) as limit:

        def look(left: int) -> None:
            if left and not ended:
                loop.call_later(part_seconds, look, left - 1)
            elif not ended:
                limit.reschedule(loop.time())

        look(LOOKS)
        try:
            yield
        finally:
            ended = True
