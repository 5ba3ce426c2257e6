"""Whether a machine can be reached. Nothing new starts on one that can't; its leases keep their devices.

One that is back serves again when Docker was compared with the ledger: what happened there meanwhile, such as
servers that have ended, isn't known before. Unknown is not free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ...node.api import NodeFacts
from ..observe.failures import LoopFailures
from ..observe.metrics import Metrics

RETRY_SECONDS = 1.0
"""Pause after a failed comparison."""


@dataclass(frozen=True, slots=True)
class PresenceParts:
    """What it uses. `set_away` is `Enforcement.set_away`. `compare` compares Docker with the ledger and
    returns whether that was good enough; `offer` gets the facts of a machine that is there."""

    node: str
    set_away: Callable[[str], Awaitable[None]]
    compare: Callable[[], Awaitable[bool]]
    offer: Callable[[NodeFacts], None]
    metrics: Metrics
    log: logging.Logger
    retry_seconds: float = RETRY_SECONDS


class Presence:
    """One a machine, on the broker's event loop."""

    def __init__(self, parts: PresenceParts, facts: NodeFacts) -> None:
        self._parts = parts
        self._facts, self._told = facts, ""
        self._news = asyncio.Event()
        self._news.set()

    def on_facts(self, facts: NodeFacts) -> None:
        """Called with the node's new facts."""
        self._facts = facts
        self._news.set()

    async def run(self) -> None:
        """Follows the news until cancelled. The same failure is logged once."""
        failures = LoopFailures("presence", self._parts.metrics, self._parts.log)
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.follow()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed(f"Whether machine {self._parts.node} can be used isn't known", error)
                self._news.set()
                await asyncio.sleep(self._parts.retry_seconds)

    async def follow(self) -> None:
        """Does what the latest facts say. Raises EngineFault or LedgerFault; call again then."""
        parts, facts = self._parts, self._facts
        if facts.away:
            if facts.away != self._told:
                self._told = facts.away
                parts.log.warning("Nothing new starts on machine %s: %s", parts.node, facts.away)
                await parts.set_away(facts.away)
            return
        if self._told:
            if not await parts.compare() or self._facts.away:
                self._news.set()  # it went away again, or a server there can't be judged yet
                await asyncio.sleep(parts.retry_seconds)
                return
            self._told = ""
            await parts.set_away("")
            parts.log.info("Machine %s is back: its servers were compared with the ledger", parts.node)
        parts.offer(facts)
