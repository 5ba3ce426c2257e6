"""All machines of a broker: which one a lease is on, and what they read together.

With one machine every lease is on it, whatever name it had before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.disk import Disk
from ...core.errors import DeviceFault, Fault
from ...core.finding import Finding
from ...core.machine import MachineView
from ...core.model import ContainerPatch, Lease, LeaseState
from ...core.states import AWAKE
from ...core.units import utc_now
from ...node.api import NodeFacts, Usage
from ...node.engine import Engine
from ...node.homes import HomeFiles
from ...node.labs import Labs
from ..api.turns import TurnService
from ..decide.snapshot import DeviceView, Snapshot
from ..decide.when.gpu_use import GpuUse, gpu_use
from ..enforce.all_turns import AllTurns
from ..leases.folders import Place
from ..leases.leasing import LeaseService
from ..observe.journal import Journal
from ..observe.machine_view import machine_view
from ..observe.use import Use
from ..pages.admin.map import Readings
from .deciding import Deciding
from .ground import Ground
from .machine import FoundNode, Machine

OFTEN = 10
"""Up to so many machines, each is looked at as often as a single one; with more of them the pauses grow, so
that all together cost the broker no more. What happens to a lab is reported by its machine at once."""


class Machines:
    """One a broker, with at least one machine; the first is the broker's own. Others may come and go.

    `connect` comes before anything about leases.
    """

    def __init__(self, ground: Ground, deciding: Deciding, found: Sequence[FoundNode]) -> None:
        self._ground, self._deciding, self._allocator = ground, deciding, deciding.allocator
        self.own_engine = ground.engine_for(found[0].facts.name, ground.engine)
        """What is asked about the labs that run in the broker's Docker."""
        self._all: dict[str, Machine] = {each.facts.name: self._make(each) for each in found}
        deciding.rules.machines = self._all.keys
        self._connect: Callable[[Machine], None] = lambda machine: None
        self._loops: dict[str, list[asyncio.Task[None]]] = {}
        """Those of machines that came later."""
        self.here = self._all[found[0].facts.name]
        self.simulated = self.here.simulated
        self.on_running: Callable[[], None] = lambda: None
        """Called when a running lease was committed."""
        self.turns = AllTurns(lambda: [each.enforcement.turns for each in self._all.values()])
        self.turn_service = TurnService(deciding.allocator, self.turns)

    def _make(self, found: FoundNode) -> Machine:
        machine = Machine(self._ground, found, self._deciding, self.own_engine)
        machine.on_known = self._say_awaited
        machine.is_alone = lambda: len(self._all) == 1
        machine.stretch = lambda: max(1.0, len(self._all) / OFTEN)
        return machine

    async def _say_awaited(self) -> None:
        """Which machines have to come before it is known what can be served at all. Raises LedgerFault."""
        awaited = {name: machine.facts.away for name, machine in self._all.items() if machine.awaited}
        await self._allocator.set_awaited(awaited)

    def connect(self, service: LeaseService, journal: Journal) -> None:
        """Makes what enforces the leases of this service; nothing runs yet."""
        self._connect = lambda machine: machine.connect(service, journal)
        for machine in self._all.values():
            self._connect(machine)
        self._allocator.on_lease = self._on_lease

    async def add(self, found: FoundNode) -> None:
        """A machine that has joined while the broker runs; its devices come when its agent does."""
        machine = self._all[found.facts.name] = self._make(found)
        self._connect(machine)
        await machine.enforcement.start()
        await self._say_awaited()
        self._loops[machine.name] = [
            asyncio.create_task(loop, name=name) for name, loop in machine.loops().items()
        ]

    async def shut(self, name: str) -> None:
        """The machine was forgotten: its devices are out of service, whatever it says from now on."""
        for task in self._loops.pop(name, []):
            task.cancel()
        await self._all[name].enforcement.set_away(f"the machine {name} was forgotten")

    async def remove(self, name: str) -> None:
        """Nothing is enforced there any more; call `shut` first."""
        await self._all[name].enforcement.stop()
        del self._all[name]
        views = self._allocator.snapshot().devices
        await self._allocator.drop(view.device.uuid for view in views if view.device.node == name)
        await self._say_awaited()

    async def start(self) -> None:
        """Each machine enforces the leases that are on it from now on."""
        for machine in self._all.values():
            await machine.enforcement.start()
        await self._say_awaited()

    async def stop(self) -> None:
        """Called when the broker ends; the nodes keep running what running notebooks need."""
        for task in (each for tasks in self._loops.values() for each in tasks):
            task.cancel()
        await asyncio.gather(*(machine.enforcement.stop() for machine in self._all.values()))

    async def probe(self) -> None:
        """Detects how containers get the devices of each machine.

        Raises EngineFault; ConfigError if those of the broker's own get into none. Devices of another machine
        that get into none are closed (`enforce/closures.py`).
        """
        await self.here.way_in.probe()
        for machine in self._all.values():
            if machine is not self.here:
                await machine.way_in.look_again()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs for the machines until the broker ends, by name."""
        return {name: loop for machine in self._all.values() for name, loop in machine.loops().items()}

    # ---- a lease

    def of(self, lease: Lease) -> Machine | None:
        """The machine that the lease is on; None if it is on none, or on one that isn't this broker's."""
        if len(self._all) == 1:
            return self.here
        return self._all.get(self._allocator.node_of(lease))

    def engine_of(self, lease: Lease) -> Engine | None:
        """The Docker of the other machine that the lease is on; None if it is the broker's own."""
        machine = self.of(lease)
        return None if machine is None or machine.labs is None else machine.engine

    def leases_with(self, engine: Engine) -> tuple[Lease, ...]:
        """The living leases on the other machine with this Docker; with the broker's own those on no other
        machine. One on a machine that isn't known counts as on the own: it may have another name since."""
        others = {name: each for name, each in self._all.items() if each.labs is not None}
        name = next((name for name, each in others.items() if each.engine is engine), None)
        return self._allocator.leases_not_on(others) if name is None else self.leases_of(name)

    def place_of(self, lease: Lease) -> Place | None:
        """Where the lease's folder is on another machine; None if it is on the broker's own."""
        machine = self.of(lease)
        return None if machine is None else machine.place()

    def leases_of(self, name: str) -> tuple[Lease, ...]:
        """The living leases on that machine."""
        return self._allocator.leases_on(name)

    def machine(self, name: str) -> Machine:
        """The machine with this name. Raises KeyError."""
        return self._all[name]

    def _on_lease(self, lease: Lease) -> None:
        """The allocator has committed this lease."""
        self._ground.metrics.lease_times.on_lease(lease)
        if (machine := self.of(lease)) is not None:
            machine.enforcement.on_lease(lease)
            if lease.state is LeaseState.RUNNING:
                machine.images.look_soon()
        if lease.state in AWAKE:
            self.on_running()

    async def prepare(self, lease: Lease) -> None:
        """Prepares the lease's devices for its container. Raises DeviceFault."""
        await self._must_have(lease).prepare(lease)

    def patch(self, lease: Lease, folder: Path) -> ContainerPatch:
        """What the lease changes in its container. `folder` is the lease's own. Raises DeviceFault."""
        return self._must_have(lease).patch(lease, folder)

    def _must_have(self, lease: Lease) -> Machine:
        machine = self.of(lease)
        if machine is None:
            raise DeviceFault(f"The machine {lease.node or 'of this lease'} isn't one of this broker's")
        return machine

    async def before_close(self, lease: Lease) -> None:
        """Docker has no container of the lease any more: closes devices on which a process is left."""
        if (machine := self.of(lease)) is not None:
            await machine.before_close(lease)

    async def rest(self, lease: Lease, reason: str) -> bool:
        """In turns, what it has on a GPU moves to main memory; it wakes when its user runs a cell."""
        return self.turns.rest(lease.id)

    def can_rest(self, lease: Lease) -> bool:
        """Whether `rest` can be done, as far as is known."""
        machine = self.of(lease)
        return machine is not None and machine.enforcement.turns.can_rest(lease)

    def gpu_use(self, lease: Lease) -> GpuUse:
        """How busy the lease's devices are."""
        machine = self.of(lease)
        if machine is None:
            return gpu_use(lease, {}, {}, utc_now())
        devices = {device.uuid: device for device in machine.facts.devices}
        return gpu_use(lease, devices, machine.enforcement.usage(), utc_now())

    # ---- what they read

    @property
    def device_count(self) -> int:
        """How many devices can be leased."""
        return sum(machine.device_count for machine in self._all.values())

    def facts(self) -> NodeFacts:
        """Those of the broker's own machine, with the devices of all, and what is wrong with any."""
        if len(self._all) == 1:
            return self.here.facts
        all_facts = [machine.facts for machine in self._all.values()]
        faults = (each.away or (each.fault and f"Machine {each.name}: {each.fault}") for each in all_facts)
        return replace(
            self.here.facts,
            devices=tuple(device for each in all_facts for device in each.devices),
            fault=". ".join(f"{each[:1].upper()}{each[1:].rstrip('.')}" for each in faults if each),
        )

    def views(self, snapshot: Snapshot) -> tuple[MachineView, ...]:
        """The machines at that moment, for people; the broker's own comes first."""
        devices: dict[str, list[DeviceView]] = {}
        for view in snapshot.devices:
            devices.setdefault(view.device.node, []).append(view)
        holding = (lease for lease in snapshot.leases if lease.state.holds_devices)
        leases = Counter(lease.node or self._allocator.node_of(lease) for lease in holding)
        return tuple(
            machine_view(replace(each.known, own=each is self.here), devices.get(name, ()), leases[name])
            for name, each in self._all.items()
        )

    async def check(self, images: Sequence[str]) -> dict[str, tuple[Finding, ...] | str]:
        """What doctor finds on each other machine, or why it could not be looked at."""

        async def look(labs: Labs) -> tuple[Finding, ...] | str:
            try:
                return await labs.doctor.check_machine(images)
            except Fault as fault:
                return str(fault)

        labs = {name: each.labs for name, each in self._all.items() if each.labs is not None}
        found = await asyncio.gather(*map(look, labs.values()))
        return dict(zip(labs, found, strict=True))

    def homes(self) -> dict[str, HomeFiles]:
        """The homes of each other machine, by its name."""
        return {name: each.labs.homes for name, each in self._all.items() if each.labs is not None}

    def usage(self) -> dict[str, Usage]:
        """The use of each device, by UUID."""
        return {uuid: use for each in self._all.values() for uuid, use in each.enforcement.usage().items()}

    def blind(self) -> dict[str, str]:
        """Devices where no quota is enforced now, and why; also updates the gauge."""
        found = {uuid: why for each in self._all.values() for uuid, why in each.enforcement.blind().items()}
        self._ground.metrics.guard_blind.set(len(found))
        return found

    def uses(self) -> Iterator[Mapping[str, Use]]:
        """What each lease that holds devices uses, as its node read it last; one machine after the other."""
        for machine in tuple(self._all.values()):
            yield machine.uses()

    def readings(self) -> Readings:
        """What the admin's map of the devices shows."""
        views = self.turns.views()
        awake_on = {key: view.gpu_uuid for key, view in views.items() if view.gpu_uuid is not None}
        xids = {uuid: seen for each in self._all.values() for uuid, seen in each.enforcement.xids().items()}
        return Readings(self.usage(), xids, self.blind(), awake_on)

    async def disks(self, docker_root: str) -> tuple[Disk, ...]:
        """Of the broker's own machine, and of the others, which name the machine."""
        found = list(await self.here.node.disks(docker_root))
        for name, machine in self._all.items():
            if machine is not self.here and not machine.facts.away:
                disks = await machine.node.disks("")
                found += (replace(disk, holds=f"{disk.holds} of {name}") for disk in disks)
        return tuple(found)
