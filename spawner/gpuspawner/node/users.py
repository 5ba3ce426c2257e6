"""Which containers used a device, and when last: NVML's use by process, told by container.

What it can't see: NVML counts the use of all clients of MPS for the MPS server (H100, driver 580.159.04). So
while the server computes, those of its clients that use the CPU count as users: a program that starts work on
a GPU needs the CPU for it, an idle notebook's kernel doesn't. There, idle clients (PyTorch among them) used 0
to 0.4 % of a core; one that computed 0.3 s in 7 s used 6 % in the five seconds in which it did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Protocol

from ..core.errors import DeviceFault
from ..core.units import Clock
from .inventory import GpuProcess, Inventory
from .processes import Process

CPU_PERCENT = 1.0
"""From this share of one core on, a client of MPS counts as a user while the server computes."""

_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Users:
    """When each container last used the device, by the node's clock; those that never did are missing.

    `unknown_at`: when it was last used by somebody who can't be told, or could not be looked at.
    """

    last_used: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    unknown_at: datetime | None = None


class Table(Protocol):
    """What is asked of processes: a `ProcessTable`, for use in one thread at a time."""

    def look_all(self, pids: Collection[int]) -> dict[int, Process]:
        """The processes that have these pids now."""
        ...

    def cpu_seconds(self, process: Process) -> float | None:
        """CPU time that the process has used; None if it has ended."""
        ...

    def close(self) -> None:
        """Lets go of the processes."""
        ...


MakeTable = Callable[[], Table]


class DeviceUsers:
    """Follows one device. One call at a time, in any thread; it blocks as long as NVML does."""

    def __init__(self, uuid: str, inventory: Inventory, table: Table, clock: Clock) -> None:
        self._uuid, self._inventory, self._table, self._clock = uuid, inventory, table, clock
        self._until_us = 0
        self._users = Users()
        self._known: dict[int, Process] = {}
        self._cpu: dict[_Key, tuple[float, datetime]] = {}
        self.memory_bytes: Mapping[str, int | None] = {}
        """What the processes of each container had on the device at the last look; None: not reported."""

    def look(self, containers: frozenset[str]) -> Users | None:
        """Who used the device, up to now; `containers` are those of the leases. None if NVML can't tell.

        Where NVML fails, the device may have been used.
        """
        now = self._clock()
        try:
            use = self._inventory.process_use(self._uuid, self._until_us)
            if use is None:
                return None
            listed = self._inventory.processes(self._uuid)
        except DeviceFault:
            self._users = Users(self._users.last_used, now)
            self.memory_bytes = {}
            return self._users
        self._until_us = use.until_us
        before = self._known
        self._known = self._table.look_all({each.pid for each in listed} | use.pids)
        self.memory_bytes = self._memory(listed, containers)
        working = self._working(listed, now)
        used = {pid: self._known.get(pid) or before.get(pid) for pid in use.pids}
        found = {process.container(containers) for process in used.values() if process is not None}
        if any(process is not None and process.is_mps_server for process in used.values()):
            found |= {process.container(containers) for process in working}
        last_used = {each: at for each, at in self._users.last_used.items() if each in containers}
        last_used |= {container: now for container in found if container in containers}
        unknown = any(process is None for process in used.values())
        self._users = Users(last_used, now if unknown else self._users.unknown_at)
        return self._users

    def close(self) -> None:
        """Lets go of the processes that it holds."""
        self._table.close()

    def _memory(self, listed: Iterable[GpuProcess], containers: frozenset[str]) -> dict[str, int | None]:
        """The sum for each of the containers, as the guard counts it; 0 for those without a process."""
        found: dict[str, int | None] = dict.fromkeys(containers, 0)
        for each in listed:
            process = self._known.get(each.pid)
            container = None if process is None else process.container(containers)
            if container in found:
                so_far, more = found[container], each.memory_bytes
                found[container] = None if so_far is None or more is None else so_far + more
        return found

    def _working(self, listed: Iterable[GpuProcess], now: datetime) -> list[Process]:
        """The clients of MPS that used the CPU since the last look, and those that are new."""
        clients = [self._known[each.pid] for each in listed if each.through_mps and each.pid in self._known]
        before, self._cpu, found = self._cpu, {}, []
        for process in clients:
            key = (process.pid, process.start_ticks)
            used = self._table.cpu_seconds(process)
            last = before.get(key)
            if used is None or last is None or _percent(used - last[0], now - last[1]) >= CPU_PERCENT:
                found.append(process)
            if used is not None:
                self._cpu[key] = (used, now)
        return found


def _percent(cpu_seconds: float, passed: timedelta) -> float:
    """Of one core. No time that passed, or a clock that was set back: nothing can be said, so it worked."""
    seconds = passed.total_seconds()
    return 100 * cpu_seconds / seconds if seconds > 0 else 100.0
