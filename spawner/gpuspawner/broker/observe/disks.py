"""Watches the disks that labs and broker fill: for metrics, the status document and the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ...core.disk import Disk, DiskState
from ...core.errors import EngineFault
from .failures import LoopFailures
from .metrics import Metrics

ROUND_SECONDS = 30.0

Facts = Callable[[], Awaitable[tuple[dict[str, Any], dict[str, Any]]]]
"""Docker's `info` and `version`. Raises EngineFault."""
Read = Callable[[str], Awaitable[tuple[Disk, ...]]]


class DiskWatch:
    """One a broker, on its event loop. `read` reads the disks, given Docker's folder (`Node.disks`)."""

    def __init__(self, facts: Facts, read: Read, metrics: Metrics, log: logging.Logger) -> None:
        self._facts, self._read = facts, read
        self._metrics, self._log = metrics, log
        self._root = ""
        self._disks: tuple[Disk, ...] = ()

    def now(self) -> tuple[Disk, ...]:
        """The last readings; empty before the first one."""
        return self._disks

    async def run(self) -> None:
        """Rounds until cancelled. The same failure is logged once."""
        failures = LoopFailures("disks", self._metrics, self._log)
        while True:
            try:
                await self.round()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed("The disks can't be read; trying again", error)
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Reads the disks. Docker is asked for its folder until it has told it once."""
        if not self._root:
            try:
                info, _ = await self._facts()
                self._root = str(info.get("DockerRootDir") or "")
            except EngineFault:
                pass  # the reconciliation says it
        before = {disk.holds: disk.state for disk in self._disks}
        self._disks = await self._read(self._root)
        self._metrics.disks(self._disks)
        for disk in self._disks:
            if disk.state is not before.get(disk.holds, DiskState.OK):
                level = logging.INFO if disk.state is DiskState.OK else logging.WARNING
                self._log.log(level, "Disk of %s: %s", disk.holds, disk.sentence())
