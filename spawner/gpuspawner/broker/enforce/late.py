"""Adds devices that could not be read when the broker started, as soon as the node reports them.

Without this, a GPU that works again would stay idle, and programs on it unguarded, until the next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from ...core.errors import ConfigError
from ...node.api import NodeFacts
from ..decide.place.pooling import Pooling
from ..leases.leasing import LeaseService
from ..observe.failures import LoopFailures
from ..observe.metrics import Metrics
from .enforcement import Enforcement
from .sharing import Sharing

RETRY_SECONDS = 30.0
"""Pause after a failed attempt, for example because no CDI spec names the device yet."""


@dataclass(frozen=True, slots=True)
class LateParts:
    """The objects that it needs. `probe` detects how containers get these devices."""

    sharing: Sharing
    service: LeaseService
    enforcement: Enforcement
    probe: Callable[[Iterable[str]], Awaitable[None]]
    metrics: Metrics
    log: logging.Logger


class LateDevices:
    """One a broker, on its event loop."""

    def __init__(self, parts: LateParts) -> None:
        self._parts = parts
        self._facts: NodeFacts | None = None
        self._news = asyncio.Event()
        self._adding = asyncio.Lock()
        self.problem = ""
        """Why devices can't be added with these settings; "" if nothing is known against it."""

    def offer(self, facts: NodeFacts) -> None:
        """Called with new facts of the node: new devices are added soon."""
        self._facts = facts
        self._news.set()

    async def take(self, facts: NodeFacts) -> None:
        """Adds new devices now. If the settings don't allow that, `run` says so and retries.

        Raises EngineFault or LedgerFault.
        """
        self._facts = facts
        try:
            await self.add_new()
        except ConfigError:
            self._news.set()

    async def run(self) -> None:
        """Adds the offered devices; runs until cancelled. The same failure is logged only once."""
        failures = LoopFailures("late", self._parts.metrics, self._parts.log)
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.add_new()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed("A late device could not be added", error)
                self._news.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def add_new(self) -> None:
        """Adds the new devices. Raises ConfigError, EngineFault or LedgerFault; it is then retried."""
        async with self._adding:
            try:
                pooling = None if self._facts is None else self._parts.sharing.find_late(self._facts)
            except ConfigError as error:
                self.problem = str(error)
                raise
            self.problem = ""
            if pooling is not None:
                await self._add(pooling)

    async def _add(self, pooling: Pooling) -> None:
        parts = self._parts
        late = [device for device in pooling.devices if device.uuid not in parts.sharing.pooling.terms]
        await parts.probe(device.uuid for device in late)
        await parts.enforcement.extend(pooling)
        await parts.enforcement.report_health()
        health = [parts.enforcement.health_of(device.uuid) for device in late]
        await parts.service.add(late, pooling.terms, [each for each in health if not each.healthy])
        await parts.enforcement.report(*(device.uuid for device in late))  # they may be known, from before
        parts.sharing.took(pooling)
        for warning in pooling.warnings:
            parts.log.warning("%s", warning)
        uuids = ",".join(device.uuid for device in late)
        parts.log.info("Added devices that can be read now devices=%s", uuids)
