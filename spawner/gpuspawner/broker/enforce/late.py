"""Devices that could not be read when the broker started are added once the node has them.

Without this, a GPU that came back would be idle, and what runs on it without a guard, until the next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from ...core.errors import GpuSpawnerError
from ...node.api import NodeFacts
from ..decide.pooling import Pooling
from ..leases.leasing import LeaseService
from ..observe.metrics import Metrics
from .enforcement import Enforcement
from .sharing import Sharing

RETRY_SECONDS = 30.0
"""Pause after an attempt that failed, as where no CDI spec names the device yet."""


@dataclass(frozen=True, slots=True)
class LateParts:
    """What it works with. `probe` finds the way for these UUIDs, too, into a container."""

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

    def offer(self, facts: NodeFacts) -> None:
        """The node has new facts: what is new in them is added soon."""
        self._facts = facts
        self._news.set()

    async def run(self) -> None:
        """Adds what is offered; runs until cancelled. The same failure is logged once."""
        parts, told = self._parts, ""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.add_new()
                told = ""
            except Exception as error:  # the top of this loop
                parts.metrics.failed("late")
                if str(error) != told:
                    known = isinstance(error, GpuSpawnerError)
                    parts.log.warning("A late device could not be added: %s", error, exc_info=not known)
                told = str(error)
                self._news.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def add_new(self) -> None:
        """What is new. Raises ConfigError, EngineFault or LedgerFault; it is then tried again."""
        if self._facts is not None:
            pooling = self._parts.sharing.find_late(self._facts)
            if pooling is not None:
                await self._add(pooling)

    async def _add(self, pooling: Pooling) -> None:
        parts = self._parts
        late = [device for device in pooling.devices if device.uuid not in parts.sharing.pooling.terms]
        await parts.probe(device.uuid for device in late)
        await parts.enforcement.extend(pooling)
        await parts.service.add(late, pooling.terms)
        await parts.enforcement.report_health()
        parts.sharing.took(pooling)
        for warning in pooling.warnings:
            parts.log.warning("%s", warning)
        uuids = ",".join(device.uuid for device in late)
        parts.log.info("Can be read now and was added devices=%s", uuids)
