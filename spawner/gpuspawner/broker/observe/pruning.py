"""Prunes old history, a little at a time."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from ...core.units import Clock, utc_now
from ..ledger import Ledger
from .failures import LoopFailures

ROUND_SECONDS = 3600.0
STEP_ROWS = 100
"""So many rows in one transaction: nobody who wants a lease waits for it noticeably."""
ROUND_ROWS = 2000
"""So many in a round, so that a clock that was set wrong for an hour can't take the whole history."""


class Pruning:
    """Deletes what ended longer ago than `days`; runs until cancelled."""

    def __init__(self, ledger: Ledger, days: float, log: logging.Logger, clock: Clock = utc_now) -> None:
        self._ledger, self._keep, self._log, self._clock = ledger, timedelta(days=days), log, clock

    async def run(self, failures: LoopFailures) -> None:
        """A round an hour, the first at once."""
        while True:
            try:
                await self.round()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed("Old history could not be pruned; the next round tries again", error)
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> int:
        """How many rows were pruned. Raises LedgerFault."""
        before, gone = self._clock() - self._keep, 0
        while gone < ROUND_ROWS and (step := await self._ledger.prune(before, STEP_ROWS)):
            gone += step
            await asyncio.sleep(0.02)
        if gone:
            self._log.info("Pruned %d history rows from before %s", gone, f"{before:%Y-%m-%d}")
        return gone
