"""The one thread that talks to the database, with a time limit for every wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from ...core.errors import LedgerFault
from ...node.daemon_pool import DaemonPool

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""How long the database may give no answer at all. Its own limits for locks and statements are shorter: this
limit is for a server, a disk or a network that hangs."""
BREAK_SECONDS = 1.0
"""How long a call may take to notice that its connection was broken."""


class LedgerThread:
    """Runs calls one after the other in a daemon thread, which does not prevent the process from ending.

    `break_off` makes the call in progress fail, from any thread.
    """

    def __init__(
        self, break_off: Callable[[], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._break_off = break_off
        self._monotonic = monotonic
        self._heard_at = monotonic()
        self._pool = DaemonPool("ledger", most=1)
        self._closed = False

    def heard(self) -> None:
        """The database has answered: waiting calls may wait longer. May be called in any thread."""
        self._heard_at = self._monotonic()

    async def run(self, call: Callable[[], T], silence_seconds: float | None = None) -> T:
        """What `call` returns. After a silence of `silence_seconds` (None: ANSWER_SECONDS) it is broken off.

        A call that had not begun by then never begins. Raises LedgerFault without an answer, and whatever
        `call` raises.
        """
        if self._closed:
            raise LedgerFault("The ledger is closed: start the broker again.")
        given_up = False

        def begin() -> T:
            if given_up:
                raise LedgerFault("The ledger was busy for too long.")
            self.heard()
            return call()

        future = self._pool.submit(begin)
        if not await self._answered(future, ANSWER_SECONDS if silence_seconds is None else silence_seconds):
            given_up = True
            self._break_off()
            await asyncio.wait({future}, timeout=BREAK_SECONDS)
        if not future.done():
            raise LedgerFault(
                "The ledger does not answer: see its disk, or its database server and the network to it."
            )
        return future.result()

    async def _answered(self, future: asyncio.Future[T], silence_seconds: float) -> bool:
        """True once it is done, False after a silence."""
        asked_at = self._monotonic()
        while True:
            left = max(asked_at, self._heard_at) + silence_seconds - self._monotonic()
            if left <= 0:
                return False
            done, _ = await asyncio.wait({future}, timeout=left)
            if done:
                return True

    async def close(self, last: Callable[[], None]) -> None:
        """Accept no more calls except `last`, which is waited for like others; then the thread ends.

        Where the database hangs, both happen once the call in progress has returned. May be called twice.
        """
        if self._closed:
            return
        self._closed = True
        future = self._pool.submit(last)
        if not await self._answered(future, ANSWER_SECONDS):
            self._break_off()
            await asyncio.wait({future}, timeout=BREAK_SECONDS)
        self._pool.close()
