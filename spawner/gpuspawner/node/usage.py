"""How much of each device is in use and how busy it is, asked now and then and kept for the pages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..core.errors import DeviceFault
from .daemon_pool import DaemonPool
from .inventory import Inventory

_Log = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """By whomever. None where it is not told: NVML has no utilization of a MIG instance."""

    used_bytes: int | None = None
    utilization_percent: float | None = None


class UsageMonitor:
    """Asks every device each `interval_seconds`, in a thread of its own: one that hangs delays no other."""

    def __init__(self, inventory: Inventory, log: _Log, interval_seconds: float = 5.0) -> None:
        self._inventory = inventory
        self._log = log
        self._interval_seconds = interval_seconds
        self._pool = DaemonPool("nvml-usage")
        self._asked: dict[str, asyncio.Future[Usage] | None] = {}
        self._usage: dict[str, Usage] = {}
        self._task: asyncio.Task[None] | None = None

    def now(self) -> dict[str, Usage]:
        """What was found the last time; nothing of a device that does not answer."""
        return dict(self._usage)

    def watch(self, uuids: Iterable[str]) -> None:
        """Asks these from now on, and those of before. On the event loop."""
        for uuid in uuids:
            self._asked.setdefault(uuid, None)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="usage")

    async def stop(self) -> None:
        """Ends it; a call that hangs is left behind."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._pool.close()

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except Exception:  # the top of this loop
                self._log.exception("Asking for the use of the devices failed; it goes on")
            await asyncio.sleep(self._interval_seconds)

    async def round(self) -> None:
        """Asks once; waits for no answer longer than an interval."""
        for uuid, asked in self._asked.items():
            if asked is None:
                self._asked[uuid] = self._pool.submit(lambda uuid=uuid: self._ask(uuid))  # type: ignore[misc]
        asking = [asked for asked in self._asked.values() if asked is not None]
        if asking:
            await asyncio.wait(asking, timeout=self._interval_seconds)
        for uuid, asked in self._asked.items():
            if asked is None or not asked.done():
                self._usage.pop(uuid, None)
                continue
            self._asked[uuid] = None
            self._usage[uuid] = asked.result()

    def _ask(self, uuid: str) -> Usage:
        try:
            used_bytes = self._inventory.used_bytes(uuid)
            return Usage(used_bytes, self._inventory.utilization_percent(uuid))
        except DeviceFault:
            return Usage()
