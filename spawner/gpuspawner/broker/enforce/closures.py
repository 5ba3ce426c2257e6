"""Which devices no new container may get although they work: looked at again and again, and before each end.

Two causes: containers can't get the device now (`WayIn`), or a process of a container that is gone is left on
it. Labs that run are not affected by either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import DeviceFault
from ...core.model import DeviceHealth, Lease
from ...node.api import Node, Process
from ...node.engine import Engine
from ..observe.failures import LoopFailures
from ..observe.metrics import Metrics
from .way_in import WayIn

ROUND_SECONDS = 5.0
"""Pause between two rounds, with few machines. A round reads NVML once for each device, and asks Docker once
or twice."""


@dataclass(frozen=True, slots=True)
class ClosureParts:
    """What it uses. `devices` returns the UUIDs in pools, `leases` the living leases, and `close` is
    `Enforcement.close_to_new`."""

    node: Node
    engine: Engine
    way_in: WayIn
    devices: Callable[[], Iterable[str]]
    leases: Callable[[], Sequence[Lease]]
    close: Callable[[Iterable[DeviceHealth]], Awaitable[None]]
    metrics: Metrics
    log: logging.Logger
    stretch: Callable[[], float] = lambda: 1.0
    """So many times as long are the pauses, because there are many machines."""


class Closures:
    """One a broker with real devices, on its event loop."""

    def __init__(self, parts: ClosureParts) -> None:
        self._parts = parts
        self._left: dict[str, tuple[Process, ...]] = {}
        self._reporting = asyncio.Lock()

    async def run(self) -> None:
        """Rounds until cancelled. The same failure is logged once."""
        failures = LoopFailures("closures", self._parts.metrics, self._parts.log)
        while True:
            await asyncio.sleep(ROUND_SECONDS * self._parts.stretch())
            try:
                await self.round()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed("Whether containers can get the devices is not known, retrying", error)

    async def round(self) -> None:
        """Looks at everything. Raises EngineFault; then nothing has changed."""
        await self._parts.way_in.look_again()
        looks = (self._look_at(uuid) for uuid in tuple(self._parts.devices()))  # one message to a machine
        for found in await asyncio.gather(*looks, return_exceptions=True):
            if found is not None:
                raise found
        await self.report()

    async def before_close(self, lease: Lease) -> None:
        """Docker has no container of the lease any more: closes its devices on which a process is left.

        If NVML doesn't say which processes there are, the device is watched by its health.
        """
        if lease.container_id is None:
            return
        for uuid in lease.device_uuids:
            try:
                found = await self._parts.node.processes(uuid)
            except DeviceFault:
                continue
            if left := tuple(each for each in found if lease.container_id in each.container_ids):
                self._left[uuid] = left
        await self.report()

    async def _look_at(self, uuid: str) -> None:
        """Raises EngineFault. If NVML fails, nothing changes: what was left may be there still."""
        try:
            found = await self._parts.node.processes(uuid)
        except DeviceFault:
            return
        ours = {lease.container_id for lease in self._parts.leases()}
        strange = [each for each in found if each.container_ids and ours.isdisjoint(each.container_ids)]
        left = [each for each in strange if await self._is_gone(each)]
        if left:
            self._left[uuid] = tuple(left)
        else:
            self._left.pop(uuid, None)

    async def _is_gone(self, process: Process) -> bool:
        """Whether Docker has none of the process's containers. Raises EngineFault."""
        for container_id in process.container_ids:
            if await self._parts.engine.exists(container_id):
                return False
        return True

    async def report(self) -> None:
        """Closes the devices that are known to be out of use, and opens the others."""
        async with self._reporting:
            closed = {
                uuid: DeviceHealth(uuid, False, reason, new_only=True, needs_admin=True)
                for uuid, reason in self._parts.way_in.obstacles.items()
            }
            for uuid, left in self._left.items():
                closed[uuid] = DeviceHealth(uuid, False, _sentence(left), new_only=True)
            await self._parts.close(closed.values())


def _sentence(left: Sequence[Process]) -> str:
    """What is left and how to end it: for the GPU page and `doctor`."""
    one = len(left) == 1
    who = ", ".join(f"{each.pid} ({each.name})" for each in left)
    pids = " ".join(str(each.pid) for each in left)
    return (
        f"{'Process' if one else 'Processes'} {who} of a server that has ended still "
        f"{'uses' if one else 'use'} it: run `kill -9 {pids}`; if {'it stays' if one else 'they stay'}, "
        "restart the machine"
    )
