"""A further machine with simulated GPUs, simulated on this one: to try several machines without having them.

Its containers run in the Docker Engine of this machine. A line with its name in the faults file makes it
unreachable, as a cut network would.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config.site import GpuSite
from ..core.disk import Disk
from ..core.errors import DeviceFault
from ..core.model import DeviceHealth
from .api import Access, DesiredState, Labs, NodeEvent, NodeFacts, TurnHands
from .inventory.simulated import FAULTS_FILE, SimulatedInventory, read_faults
from .local import LocalNode, LocalSettings
from .processes import Process

LOOK_SECONDS = 1.0
"""How often the faults file is read."""


class SimulatedNode:
    """One for each further machine that `c.GpuSite.simulated_devices` names. See `Node` for the methods."""

    def __init__(self, name: str, site: GpuSite, log: logging.Logger) -> None:
        folder = Path(site.state_dir).absolute()
        inventory = partial(SimulatedInventory.from_site, site, name)
        self._node = LocalNode(LocalSettings(inventory, folder, name=name), log)
        self._name, self._faults = name, folder / FAULTS_FILE
        self._facts = NodeFacts(name, simulated=True)
        self._events: asyncio.Queue[NodeEvent | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> NodeFacts:
        """What it has, also if it is away from the beginning: a real one would then be unknown."""
        found = await self._node.start()
        away = await self._away()
        self._facts = replace(found, away=away, devices=() if away else found.devices)
        self._tasks = [
            asyncio.create_task(self._forward(), name=f"events of {self._name}"),
            asyncio.create_task(self._watch(found), name=f"reach of {self._name}"),
        ]
        return self._facts

    async def apply(self, desired: DesiredState) -> None:
        """Kept while it is away, as a real one gets it when it is back."""
        await self._node.apply(desired)

    async def settle(self, uuid: str) -> None:
        """Raises DeviceFault while it is away."""
        if self._facts.away:
            raise DeviceFault(self._facts.away)
        await self._node.settle(uuid)

    async def health(self) -> tuple[DeviceHealth, ...]:
        """Of the devices that are watched."""
        return await self._node.health()

    async def way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        """No device gets into a container: there is none."""
        return await self._node.way_in(info, version, uuids)

    async def service_way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        """They need no injection."""
        return await self._node.service_way_in(info, version, uuids)

    async def processes(self, uuid: str) -> tuple[Process, ...]:
        """None computes on a simulated GPU."""
        return await self._node.processes(uuid)

    async def reload_stamp(self) -> int | None:
        """None: no container here has a device to lose."""
        return None

    async def disks(self, docker_root: str) -> tuple[Disk, ...]:
        """None of its own."""
        return ()

    def labs(self) -> Labs | None:
        """None: the broker's Docker is asked."""
        return None

    def turn_hands(self) -> TurnHands | None:
        """None: nobody computes here."""
        return None

    async def check_turns(self, uuids: Sequence[str]) -> str:
        """Nothing is against them."""
        return await self._node.check_turns(uuids)

    async def events(self) -> AsyncIterator[NodeEvent]:
        """Ends when the node is closed."""
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        """Stops the node."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._node.close()
        self._events.put_nowait(None)

    async def _forward(self) -> None:
        async for event in self._node.events():
            if not isinstance(event, NodeFacts):  # they never change here but for `away`
                self._events.put_nowait(event)

    async def _watch(self, found: NodeFacts) -> None:
        """Reports when it goes away and when it is back."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            away = await self._away()
            if away != self._facts.away:
                devices = self._facts.devices if away else found.devices
                self._facts = replace(self._facts, away=away, devices=devices)
                self._events.put_nowait(self._facts)

    async def _away(self) -> str:
        try:
            reason = (await asyncio.to_thread(read_faults, self._faults)).get(self._name)
        except DeviceFault as fault:
            return str(fault)
        return f"the machine {self._name} can't be reached: {reason}" if reason else ""
