"""Whether a machine can be reached. Nothing new starts on one that can't; its leases keep their devices.

One that is back serves again when Docker was compared with the ledger: what happened there meanwhile, such as
servers that have ended, isn't known before. Unknown is not free. A machine with a Docker of its own is
compared again and again, and counts as away while that doesn't answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from ...core.errors import EngineFault
from ...core.units import Clock, utc_now
from ...node.api import NodeFacts
from ..observe.failures import LoopFailures
from ..observe.metrics import Metrics

RETRY_SECONDS = 1.0
"""Pause after a failed comparison."""
BACK = "it is back, and its servers are being compared with the ledger"


@dataclass(frozen=True, slots=True)
class PresenceParts:
    """What it uses. `set_away` is `Enforcement.set_away`. `take_up` makes the machine's devices known, while
    they are still out of service. `compare` compares Docker with the ledger and returns whether that was good
    enough; `offer` gets the facts of a machine that is there. `round_seconds`: how often Docker is compared;
    None if that is somebody else's work, because the machine's Docker is the broker's own."""

    node: str
    set_away: Callable[[str], Awaitable[None]]
    take_up: Callable[[NodeFacts], Awaitable[None]]
    compare: Callable[[], Awaitable[bool]]
    offer: Callable[[NodeFacts], None]
    metrics: Metrics
    log: logging.Logger
    round_seconds: float | None = None
    retry_seconds: float = RETRY_SECONDS
    stretch: Callable[[], float] = lambda: 1.0
    """So many times as long are the pauses between rounds, because there are many machines."""
    clock: Clock = utc_now


class Presence:
    """One a machine, on the broker's event loop."""

    def __init__(self, parts: PresenceParts, facts: NodeFacts) -> None:
        self._parts = parts
        self._facts, self._told = facts, ""
        self._serves = not facts.away
        self._is_silent = False
        self._news = asyncio.Event()
        self._news.set()
        self.is_taken_up = self._serves
        """Whether its devices are known: before that, its Docker's reports can't be judged."""
        self.since = parts.clock()
        """Since when it serves, or doesn't."""

    @property
    def obstacle(self) -> str:
        """Why nothing new starts there now; "" if the machine serves."""
        if self._serves:
            return ""
        return self._facts.away or (self._told if self._is_silent else BACK)

    def on_facts(self, facts: NodeFacts) -> None:
        """Called with the node's new facts."""
        self._facts = facts
        self._news.set()

    async def run(self) -> None:
        """Follows the news until cancelled. The same failure is logged once."""
        failures = LoopFailures("presence", self._parts.metrics, self._parts.log)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds()):
                    await self._news.wait()
            self._news.clear()
            try:
                await self.follow()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed(f"Whether machine {self._parts.node} can be used isn't known", error)
                self._news.set()
                await asyncio.sleep(self._parts.retry_seconds)

    def _pause_seconds(self) -> float | None:
        seconds = self._parts.round_seconds
        return None if seconds is None else seconds * self._parts.stretch()

    async def follow(self) -> None:
        """Does what the latest facts say. Raises a Fault; call again then."""
        parts, facts = self._parts, self._facts
        if facts.away:
            self.is_taken_up = False
            await self._leave(facts.away)
            return
        if not self.is_taken_up:
            await parts.take_up(facts)
            self.is_taken_up = True
        if (not self._serves or parts.round_seconds is not None) and not await self._compare():
            self._news.set()  # it went away again, or a server there can't be judged yet
            await asyncio.sleep(parts.retry_seconds)
            return
        parts.offer(facts)

    async def _compare(self) -> bool:
        """Whether the machine serves, which it does after a good comparison."""
        parts = self._parts
        try:
            good = await parts.compare()
        except EngineFault as fault:
            again, self._is_silent = self._is_silent, True  # once: its agent may have gone, and says so next
            if again and parts.round_seconds is not None and not self._facts.away:
                await self._leave(f"the Docker Engine of machine {parts.node} can't be asked: {fault}")
            raise
        self._is_silent = False
        if self._facts.away:
            return False
        if good and not self._serves:
            self._serves, self._told, self.since = True, "", parts.clock()
            await parts.set_away("")
            parts.log.info("Machine %s is back: its servers were compared with the ledger", parts.node)
        return self._serves

    async def _leave(self, reason: str) -> None:
        if self._serves:
            self._serves, self.since = False, self._parts.clock()
        if reason != self._told:
            self._told = reason
            self._parts.log.warning("Nothing new starts on machine %s: %s", self._parts.node, reason)
            await self._parts.set_away(reason)
