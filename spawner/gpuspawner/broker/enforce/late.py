"""Devices that could not be read when the broker started are taken up once they can be.

Without this, a GPU that came back would be idle, and what runs on it without a guard, until the next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from ...core.errors import GpuSpawnerError
from ...node.daemon_pool import DaemonPool
from ...node.health import HealthMonitor
from ...node.usage import UsageMonitor
from ..decide.pooling import Pooling
from ..leases.leasing import LeaseService
from ..observe.metrics import Metrics
from .enforcement import Enforcement
from .sharing import Sharing

LOOK_SECONDS = 30.0
"""So often it is looked whether they can be read."""


@dataclass(frozen=True, slots=True)
class LateParts:
    """What it works with. `probe` finds the way for these UUIDs, too, into a container."""

    sharing: Sharing
    nvml: DaemonPool
    service: LeaseService
    enforcement: Enforcement
    health: HealthMonitor
    usage: UsageMonitor
    probe: Callable[[Iterable[str]], Awaitable[None]]
    metrics: Metrics
    log: logging.Logger


class LateDevices:
    """One a broker, on its event loop."""

    def __init__(self, parts: LateParts) -> None:
        self._parts = parts

    async def run(self) -> None:
        """Looks again and again; runs until cancelled. The same failure is logged once."""
        parts, told = self._parts, ""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
                told = ""
            except Exception as error:  # the top of this loop
                parts.metrics.failed("late")
                if str(error) != told:
                    known = isinstance(error, GpuSpawnerError)
                    parts.log.warning("A late device is not taken up: %s", error, exc_info=not known)
                told = str(error)

    async def look(self) -> None:
        """Once. Raises DeviceFault, ConfigError, EngineFault or LedgerFault; the next look tries again."""
        parts = self._parts
        missing = parts.service.misses_devices()
        pooling = await parts.nvml.submit(lambda: parts.sharing.find_late(missing))
        if pooling is not None:
            await self._take_up(pooling)

    async def _take_up(self, pooling: Pooling) -> None:
        parts = self._parts
        late = [device for device in pooling.devices if device.uuid not in parts.sharing.pooling.terms]
        await parts.probe(device.uuid for device in late)
        parts.enforcement.extend(pooling)
        await parts.service.add(late, pooling.terms)
        await parts.health.add(late)
        parts.usage.add(device.uuid for device in late)
        parts.sharing.took(pooling)
        for warning in pooling.warnings:
            parts.log.warning("%s", warning)
        uuids = ",".join(device.uuid for device in late)
        parts.log.info("Can be read after all and is taken up devices=%s", uuids)
