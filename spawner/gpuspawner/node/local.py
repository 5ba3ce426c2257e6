"""This machine as a node: implements `Node` with the local NVML, MPS and /proc.

NVML may hang, even at the start, so a thread opens it. If it doesn't answer in time, the node reports no GPUs
and the reason; it reports its GPUs when NVML answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config.site import GpuSite
from ..core.disk import Disk
from ..core.errors import ConfigError, DeviceFault, GpuSpawnerError
from ..core.model import DeviceHealth
from .api import (
    Access,
    DesiredState,
    DriverFacts,
    Labs,
    MpsProgram,
    Node,
    NodeEvent,
    NodeFacts,
    Readings,
    TurnHands,
)  # fmt: skip
from .claim import DeviceClaim
from .daemon_pool import DaemonPool
from .daemons import RETRY_SECONDS, DaemonTools, GpuDaemons
from .disks import read_disks
from .guard.guard import Guard, GuardSettings
from .health import HealthMonitor
from .injection import Injection, engine_facts, find_access, read_local
from .inventory import Inventory, Patience, is_broken, modes_of, open_inventory
from .inventory.simulated import machine_names
from .mps.control import find_program, pipes_of
from .mps.daemon import MpsPace
from .processes import Process, ProcessTable, ending_obstacle
from .reloads import reload_stamp
from .turning import LocalTurns, can_move, main_memory_bytes, turns_obstacle
from .usage import UsageMonitor

OPEN_SECONDS = 15.0
"""Longest wait for NVML at the start. With the persistence daemon it answers in 0.1 s; without it, each GPU
takes about a second to be initialized."""
LOOK_SECONDS = 30.0
"""How often the node checks whether GPUs that could not be read can be read now."""
PROCESSES_SECONDS = 2.0
"""Longest wait for NVML's list of a GPU's processes."""
READ_SECONDS = 1.0
"""How often the readings for the pages are compared with the last reported ones."""

_Log = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """The settings of a local node. The defaults are for production; tests use shorter times.

    `open_inventory` blocks and raises ConfigError. `injection` is `c.GpuSite.injection`. `name` is the
    machine's; "": as it calls itself. `claim` None: other nodes may use the same real GPUs.
    """

    open_inventory: Callable[[], Inventory]
    state_dir: Path
    injection: str = "auto"
    name: str = ""
    find_mps: Callable[[], MpsProgram] = find_program
    guard: GuardSettings = field(default_factory=GuardSettings)
    pace: MpsPace = field(default_factory=MpsPace)
    open_seconds: float = OPEN_SECONDS
    look_seconds: float = LOOK_SECONDS
    read_seconds: float = READ_SECONDS
    retry_seconds: float = RETRY_SECONDS
    claim: DeviceClaim | None = None


def open_node(site: GpuSite, log: _Log, name: str = "", *, joined: bool = False) -> Node:
    """The node of this machine, by the site's settings. It accesses no hardware before `start`.

    `joined`: its broker is on another machine, where it has this name.
    """
    several = name in machine_names(site.simulated_devices)
    settings = LocalSettings(
        partial(open_inventory, site, name if several else None, name if joined else ""),
        Path(site.state_dir).absolute(),
        injection=site.injection,
        name=name,
        open_seconds=OPEN_SECONDS,
        look_seconds=LOOK_SECONDS,
        claim=DeviceClaim(),
    )
    return LocalNode(settings, log)


class LocalNode:
    """One a broker, on its event loop. See `Node` for what the methods do."""

    def __init__(self, settings: LocalSettings, log: _Log) -> None:
        self._settings, self._log = settings, log
        self._nvml = DaemonPool("nvml", most=1)
        self._asking = DaemonPool("nvml-processes", most=1)
        self._process_patience = Patience(PROCESSES_SECONDS)
        self._patience = Patience()
        self._events: asyncio.Queue[NodeEvent | None] = asyncio.Queue()
        self._facts = NodeFacts(settings.name or socket.gethostname())
        self._desired: DesiredState | None = None
        self._applying = asyncio.Lock()
        self._hardware: _Hardware | None = None
        self._readings = Readings()
        self._tasks: list[asyncio.Task[None]] = []

    # ---- the interface

    async def start(self) -> NodeFacts:
        """Opens NVML and lists the devices. A driver that fails is a fault: it may work after a repair."""
        mps = self._settings.find_mps()
        self._facts = replace(
            self._facts, mps=mps, guard_obstacle=ending_obstacle(), memory_bytes=main_memory_bytes()
        )
        opening = self._nvml.submit(self._open)
        done, _ = await asyncio.wait({opening}, timeout=self._settings.open_seconds)
        seconds = self._settings.open_seconds
        fault = (
            f"NVML has not answered for {seconds:g} s: see `dmesg` and `nvidia-smi`. GPUs are leased once "
        )
        fault = "" if done else f"{fault}it answers"
        if done:
            try:
                self._found(*opening.result())
            except (ConfigError, DeviceFault) as error:
                if not _is_broken_driver(error):
                    raise
                fault = str(error)
        if fault:
            self._facts = replace(self._facts, fault=fault)
            self._log.error("%s", fault)
        self._tasks = [
            asyncio.create_task(self._look_again(None if done else opening, fault), name="late devices"),
            asyncio.create_task(self._read(), name="readings"),
        ]
        return self._facts

    async def apply(self, desired: DesiredState) -> None:
        """Sets the desired state; it is kept for devices that can only be read later."""
        self._desired = desired
        async with self._applying:
            if self._hardware is not None:
                await self._hardware.apply(desired, self._facts)

    async def settle(self, uuid: str) -> None:
        """Waits for the GPU's daemon; does nothing if GPUs are simulated."""
        if self._hardware is not None:
            await self._hardware.daemons.settle(uuid)
        elif not self._facts.simulated:
            raise DeviceFault(self._facts.fault)

    async def health(self) -> tuple[DeviceHealth, ...]:
        """Of the devices that are watched."""
        return () if self._hardware is None else tuple(self._hardware.monitor.health.values())

    async def way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        """Decides from the engine's facts and, for a local engine, from the files on this machine."""
        return await self._find_access(self._settings.injection, info, version, uuids)

    async def service_way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        """By NVIDIA's runtime, which must be the engine's default one."""
        return await self._find_access(Injection.RUNTIME, info, version, uuids)

    async def _find_access(
        self, setting: str, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        local = None
        if _docker_is_here():
            local = await asyncio.to_thread(read_local, tuple(info.get("CDISpecDirs") or ()))
        facts = engine_facts(info, version, local)
        return find_access(setting, facts, self._facts.simulated, uuids)

    async def processes(self, uuid: str) -> tuple[Process, ...]:
        """From NVML and /proc. Raises DeviceFault."""
        hardware = self._hardware
        if hardware is None:
            raise DeviceFault(self._facts.fault or "NVML is not open")

        def look() -> tuple[Process, ...]:
            table = ProcessTable()
            found = (table.look(each.pid) for each in hardware.inventory.processes(uuid))
            return tuple(process for process in found if process is not None)

        return await self._asking.submit(lambda: self._process_patience.one(uuid, look))

    async def reload_stamp(self) -> int | None:
        """From the folder of systemd. It may change for other reasons, too."""
        return await asyncio.to_thread(reload_stamp)

    async def disks(self, docker_root: str) -> tuple[Disk, ...]:
        """Reads them; Docker's folder only if the engine runs on this machine."""
        root = docker_root if _docker_is_here() else ""
        return await asyncio.to_thread(read_disks, root, str(self._settings.state_dir))

    def labs(self) -> Labs | None:
        """None: the broker's Docker is asked."""
        return None

    def turn_hands(self) -> TurnHands | None:
        """Those of this machine's CUDA driver."""
        turns = None if self._hardware is None else self._hardware.turns
        return None if turns is None else turns.hands

    async def check_turns(self, uuids: Sequence[str]) -> str:
        """Tries the driver once, and records that it passed in the state folder."""
        if self._facts.simulated:
            return ""
        if self._hardware is None or self._hardware.turns is None:
            return self._facts.fault or "The GPUs are not listed yet."
        if self._facts.turns_obstacle or self._facts.driver is None:
            return self._facts.turns_obstacle
        return await self._hardware.turns.check(str(self._facts.driver.driver_version), uuids)

    async def events(self) -> AsyncIterator[NodeEvent]:
        """Ends when the node is closed."""
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        """Stops all readings; calls that hang in NVML are abandoned."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        hardware, self._hardware = self._hardware, None
        if hardware is not None:
            await hardware.close()
        self._nvml.close()
        self._asking.close()
        if self._settings.claim is not None:
            self._settings.claim.release()
        self._events.put_nowait(None)

    # ---- devices

    def _open(self) -> tuple[Inventory, NodeFacts]:
        """Blocks, possibly for ever if NVML hangs. Raises ConfigError, also beside another broker."""
        inventory = self._settings.open_inventory()
        try:
            if self._settings.claim is not None and not inventory.simulated:
                self._settings.claim.take()
            return inventory, self._list(inventory)
        except (ConfigError, DeviceFault):
            inventory.close()
            raise

    def _list(self, inventory: Inventory) -> NodeFacts:
        """The present facts. Blocks. Raises DeviceFault if nothing can be listed."""
        devices = tuple(replace(each, node=self._facts.name) for each in inventory.devices())
        pipes = "" if inventory.simulated else str(pipes_of(self._settings.state_dir))
        driver = self._driver(inventory)
        version = None if driver is None else driver.driver_version
        return replace(
            self._facts,
            simulated=inventory.simulated,
            devices=devices,
            left_out=inventory.left_out,
            fault="",
            compute_modes=modes_of(inventory, devices, self._patience),
            driver=driver,
            mps_pipes=pipes,
            turns_obstacle="" if inventory.simulated else turns_obstacle(version),
            turns_move=inventory.simulated or can_move(version),
        )

    def _driver(self, inventory: Inventory) -> DriverFacts | None:
        """None if the driver doesn't report its versions; its GPUs can still be leased."""
        try:
            return inventory.driver()
        except DeviceFault as fault:
            self._log.warning("The driver doesn't report its versions: %s", fault)
            return None

    def _found(self, inventory: Inventory, facts: NodeFacts) -> None:
        self._facts = facts
        self._hardware = _Hardware(inventory, facts, self._settings, self._events.put_nowait, self._log)

    async def _look_again(
        self, opening: asyncio.Future[tuple[Inventory, NodeFacts]] | None, told: str
    ) -> None:
        """Runs until the node stops: opens NVML if that took too long or failed, and lists missing devices
        again. `told` is the fault that was logged.
        """
        if told and opening is None:
            await asyncio.sleep(self._settings.look_seconds)
        while True:
            try:
                if opening is not None:
                    await self._open_late(await opening)
                    opening = None
                elif self._hardware is None:
                    opening = self._nvml.submit(self._open)
                    continue
                elif self._misses_devices():
                    await self._list_late(self._hardware.inventory)
                told = ""
            except GpuSpawnerError as error:
                if opening is not None:
                    self._facts, opening = replace(self._facts, fault=str(error)), None
                    self._events.put_nowait(self._facts)
                if str(error) != told:
                    self._log.warning("GPUs can't be listed: %s", error)
                told = str(error)
            except Exception:  # the top of this loop
                self._log.exception("Listing the GPUs failed; retrying")
            await asyncio.sleep(self._settings.look_seconds)

    async def _open_late(self, found: tuple[Inventory, NodeFacts]) -> None:
        inventory, facts = found
        if inventory.simulated:
            raise ConfigError("NVML answered late, and there is no GPU: restart the broker")
        self._log.info("NVML answers now: %d devices", len(facts.devices))
        self._found(inventory, facts)
        if self._desired is not None:
            await self.apply(self._desired)
        self._events.put_nowait(facts)

    def _misses_devices(self) -> bool:
        listed = {device.uuid for device in self._facts.devices}
        wanted = self._desired.device_uuids if self._desired is not None else frozenset()
        return self._facts.incomplete or bool(wanted - listed)

    async def _list_late(self, inventory: Inventory) -> None:
        """Devices that were listed once stay in the facts; their health shows whether they answer."""
        fresh = await self._nvml.submit(lambda: self._list(inventory))
        listed = {device.uuid for device in fresh.devices}
        lost = tuple(device for device in self._facts.devices if device.uuid not in listed)
        facts = replace(fresh, devices=(*fresh.devices, *lost))
        late = listed - {device.uuid for device in self._facts.devices}
        changed = late or facts.left_out != self._facts.left_out
        self._facts = facts
        if late and self._desired is not None:
            await self.apply(self._desired)
        if changed:
            self._events.put_nowait(facts)

    # ---- readings

    async def _read(self) -> None:
        while True:
            await asyncio.sleep(self._settings.read_seconds)
            if self._hardware is None:
                continue
            readings = self._hardware.readings()
            if readings != self._readings:
                self._readings = readings
                self._events.put_nowait(readings)


def _docker_is_here() -> bool:
    return os.environ.get("DOCKER_HOST", "unix://").startswith("unix://")


def _is_broken_driver(error: GpuSpawnerError) -> bool:
    """Whether a driver is there but fails, as after an upgrade; not settings or a machine without GPUs."""
    fault = error if isinstance(error, DeviceFault) else error.__cause__
    return isinstance(fault, DeviceFault) and is_broken(fault)


class _Hardware:
    """The parts that use an open inventory: health, guard, use, daemons.

    If GPUs are simulated, only health.
    """

    def __init__(
        self,
        inventory: Inventory,
        facts: NodeFacts,
        settings: LocalSettings,
        post: Callable[[NodeEvent], None],
        log: _Log,
    ) -> None:
        self.inventory = inventory
        self._real = not inventory.simulated
        self._post, self._log = post, log
        self.monitor = HealthMonitor(inventory, self._tell, log=log)
        self._usage = UsageMonitor(inventory, log)
        self.turns = LocalTurns(inventory, settings.state_dir, log) if self._real else None
        self._guard = Guard(inventory, self._tell, settings=settings.guard, log=log)
        self._guarding = False
        tools = DaemonTools(
            inventory, facts.mps.path, settings.state_dir, post, log,
            pace=settings.pace, retry_seconds=settings.retry_seconds,
        )  # fmt: skip
        self.daemons = GpuDaemons(tools)

    async def apply(self, desired: DesiredState, facts: NodeFacts) -> None:
        """Sets quotas first. New devices were checked once when this returns."""
        watched = [device for device in facts.devices if device.uuid in desired.device_uuids]
        if self._real:
            await self._set_quotas(desired)
            await self.daemons.apply(desired)
            self._usage.watch((device.uuid for device in watched), desired.quotas.ours())
        await self.monitor.watch(watched)

    async def _set_quotas(self, desired: DesiredState) -> None:
        if self._guarding:
            self._guard.set_plan(desired.quotas)
            return
        self._guarding = True
        await self._guard.start(desired.quotas)

    def readings(self) -> Readings:
        """The readings for the pages, from memory."""
        blind = self._guard.blind() if self._guarding else {}
        return Readings(self._usage.now(), blind, self.monitor.xids())

    async def close(self) -> None:
        """Ends all of them."""
        await self.monitor.stop()
        await self._usage.stop()
        if self._guarding:
            await self._guard.stop()
        await self.daemons.close()
        if self.turns is not None:
            await self.turns.close()
        closing = DaemonPool("nvml-close", most=1)
        await closing.submit(self.inventory.close)
        closing.close()

    async def _tell(self, event: NodeEvent) -> None:
        self._post(event)
