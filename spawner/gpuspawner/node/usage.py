"""Reads each device's memory use, utilization, climate and users at intervals: for pages and idleness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..core.errors import DeviceFault
from ..core.units import Clock, utc_now
from .daemon_pool import DaemonPool
from .inventory import Inventory
from .processes import ProcessTable
from .users import DeviceUsers, MakeTable, Users

_Log = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory use, utilization and climate of a device, and which containers used it.

    None if NVML doesn't report it, as for MIG. `users` is never None only because NVML failed once.
    `memory_bytes` has what each container's processes use, for the containers of all leases; a container that
    is missing, or None, is not known.
    """

    used_bytes: int | None = None
    utilization_percent: float | None = None
    users: Users | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    memory_bytes: Mapping[str, int | None] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class UsageSettings:
    """How often it is read, by which clock, and where processes are looked up."""

    interval_seconds: float = 5.0
    clock: Clock = utc_now
    make_table: MakeTable = ProcessTable


class UsageMonitor:
    """Asks every device each `settings.interval_seconds`, each in its own thread: one that hangs delays no
    other."""

    def __init__(self, inventory: Inventory, log: _Log, settings: UsageSettings | None = None) -> None:
        self._inventory = inventory
        self._log = log
        self._settings = settings or UsageSettings()
        self._containers: frozenset[str] = frozenset()
        self._users: dict[str, DeviceUsers] = {}
        self._pool = DaemonPool("nvml-usage")
        self._asked: dict[str, asyncio.Future[Usage] | None] = {}
        self._usage: dict[str, Usage] = {}
        self._task: asyncio.Task[None] | None = None

    def now(self) -> dict[str, Usage]:
        """The last readings, without devices that do not answer."""
        return dict(self._usage)

    def watch(self, uuids: Iterable[str], containers: frozenset[str] = frozenset()) -> None:
        """Adds these devices; `containers` are those of the leases. Call it on the event loop."""
        self._containers = containers
        for uuid in uuids:
            if uuid not in self._asked:
                self._asked[uuid] = None
                table = self._settings.make_table()
                self._users[uuid] = DeviceUsers(uuid, self._inventory, table, self._settings.clock)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="usage")

    async def stop(self) -> None:
        """Stops the monitor; a hanging call is abandoned in its thread."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._pool.close()
        for uuid, users in self._users.items():
            asked = self._asked[uuid]
            if asked is None or asked.done():  # one that hangs still has its processes in hand
                users.close()

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except Exception:  # top of the loop: it must continue
                self._log.exception("Reading the devices' use failed; retrying")
            await asyncio.sleep(self._settings.interval_seconds)

    async def round(self) -> None:
        """Asks each device once; waits for an interval at most."""
        for uuid, asked in self._asked.items():
            if asked is None:
                self._asked[uuid] = self._pool.submit(lambda uuid=uuid: self._ask(uuid))  # type: ignore[misc]
        asking = [asked for asked in self._asked.values() if asked is not None]
        if asking:
            await asyncio.wait(asking, timeout=self._settings.interval_seconds)
        for uuid, asked in self._asked.items():
            if asked is None:  # another round has just read it
                continue
            if not asked.done():
                self._usage.pop(uuid, None)
                continue
            self._asked[uuid] = None
            self._usage[uuid] = asked.result()

    def _ask(self, uuid: str) -> Usage:
        looked = self._users[uuid]
        users = looked.look(self._containers)
        try:
            used_bytes, climate = self._inventory.used_bytes(uuid), self._inventory.climate(uuid)
            return Usage(
                used_bytes=used_bytes,
                utilization_percent=self._inventory.utilization_percent(uuid),
                users=users,
                memory_bytes=looked.memory_bytes,
                temperature_celsius=climate.temperature_celsius,
                power_watts=climate.power_watts,
                power_limit_watts=climate.power_limit_watts,
            )
        except DeviceFault:
            return Usage(users=users)
