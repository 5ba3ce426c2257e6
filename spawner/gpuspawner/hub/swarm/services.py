"""Labs as services of a Swarm: created on the lease's machine, started, ended, and reached by the gateway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import ConfigError, EngineFault, StartConflict, StartFault
from ...core.labels import NODE
from ...protocol.call import NOT_THERE, Call, or_none, unless_gone
from ...protocol.home_places import HomePlaces, check_free
from ..container import ContainerPlan
from ..docker import DockerEngine
from ..docker_answers import log_end
from ..engine import Created
from .document import (
    LANE,
    document_of,
    is_starting,
    may_run,
    newest_task,
    start_fault,
    state_of,
    unplaced,
)
from .gateway import Gateway
from .lanes import Lane, Lanes, alias_of
from .machines import Machine, find_machine, own_machine, read_machines
from .service import Berth, pinned, service_of

LOOK_SECONDS = 0.05
"""How often Swarm is asked for the state of a task that starts or ends."""
ACCEPT_SECONDS = 30.0
"""A machine must have accepted the task by then; after that it may pull the image for as long as it takes."""
END_SECONDS = 30.0
"""So long a stop waits for the machine beyond the grace. A lost one ends the lab when it is back."""
ENSURE_SECONDS = 10.0
"""So often it is looked whether the gateway is there."""
_LOG_LINES = 5
_ACCEPTED = frozenset({"preparing", "ready", "starting"})
_OUTDATED = "update out of sequence"
_ATTEMPTS = 5
_FREE_ATTEMPTS = 20
_FREE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class SwarmParts:
    """What services need: the manager's engine, the labs' networks, the gateway, Swarm's heartbeat."""

    docker: DockerEngine
    lanes: Lanes
    gateway: Gateway
    heartbeat_seconds: int
    shared_homes: bool
    log: logging.Logger


@dataclass
class Services:
    """Labs as services: see `LabEngine` for the methods. One object for a hub."""

    parts: SwarmParts
    _freeing: set[asyncio.Task[None]] = field(default_factory=set)
    _ready: asyncio.Lock = field(default_factory=asyncio.Lock)
    _prepared: bool = False
    _left: set[str] = field(default_factory=set)
    """Networks that had no service at the last look."""
    _ensured_seconds: float = float("-inf")

    # ---- the interface

    async def find(self, lab: str) -> dict[str, Any] | None:
        """The service as a container; also sees now and then that the gateway is there."""
        service = await self._inspect(lab)
        if service is None:
            return None
        document = document_of(service, await self._tasks(service["ID"]))
        if time.monotonic() - self._ensured_seconds > ENSURE_SECONDS:
            with suppress(EngineFault, ConfigError):
                await self._ensure()
        return document

    async def create(self, plan: ContainerPlan) -> Created:
        """Creates the service without a task, and the lab's network. Raises StartFault, ConfigError."""
        await self._prepare()
        await self._ensure()
        return await self.parts.docker.run(lambda call: self._create(call, plan))

    async def start(self, lab_id: str) -> None:
        """Gives the service its task, and waits until its program was started. Raises StartFault."""
        service = await self._inspect(lab_id)
        if service is None:
            raise EngineFault("no such service", NOT_THERE)
        connecting = asyncio.create_task(self._connect(service))
        try:
            await self._scale(lab_id, 1)
            await self._come_up(service)
            await connecting
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)

    async def repair(self, fault: EngineFault, lab_id: str) -> str:
        """Nothing that a second attempt would need: the network is made for each lab."""
        return ""

    async def reconnect(self, lab_id: str, address: str | None) -> None:
        """Connects the gateway to the lab's network again."""
        service = await self._inspect(lab_id)
        if service is not None:
            await self._connect(service)

    async def stop(self, lab_id: str, grace_seconds: int) -> None:
        """Takes the service its task, and waits for the end of the program: see END_SECONDS."""
        try:
            await self._scale(lab_id, 0)
        except EngineFault as fault:
            if fault.status != NOT_THERE:
                raise
            return
        deadline = time.monotonic() + grace_seconds + END_SECONDS
        while any(may_run(task) for task in await self._tasks(lab_id)):
            if time.monotonic() > deadline:
                self.parts.log.warning(
                    "The machine of service %s doesn't answer; it ends the server when it is back", lab_id
                )
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def remove(self, lab_id: str) -> None:
        """Removes the service, and in the background the lab's network."""
        service = await self._inspect(lab_id)
        if service is None:
            return
        await self.stop(service["ID"], 0)
        await self.parts.docker.run(lambda call: unless_gone(call, "remove_service", service["ID"]))
        for network in service["Spec"]["TaskTemplate"].get("Networks") or ():
            task = asyncio.create_task(self._free_soon(network["Target"]), name="free a lab's network")
            self._freeing.add(task)
            task.add_done_callback(self._freeing.discard)

    async def home_machine(self, volume: str) -> str:
        """The machine on which the home was written down; "" for a new one, or if homes are shared.

        Raises StartConflict while it is moved.
        """
        if self.parts.shared_homes:
            return ""

        def look(call: Call) -> str:
            check_free(call, volume)
            return HomePlaces(own_machine(call, read_machines(call("nodes"))).name).machine_of(call, volume)

        return await self.parts.docker.run(look)

    async def log_tail(self, lab_id: str, secret: str = "") -> str:
        """The last lines, which Swarm fetches from the machine."""
        with suppress(EngineFault):
            raw = await self.parts.docker.read(
                "service_logs", lab_id, stdout=True, stderr=True, tail=_LOG_LINES
            )
            return log_end(raw, secret)
        return ""

    def address_of(self, lab: dict[str, Any]) -> tuple[str, int]:
        """The gateway's port for the lab."""
        number = str(lab["Config"]["Labels"].get(LANE, ""))
        if not number.isdecimal():
            raise ConfigError(f"the service {lab['Name']} has no number in its label {LANE}: stop the server")
        return self.parts.gateway.place_of(int(number))

    # ---- the Swarm and the gateway

    async def settle(self) -> None:
        """Returns when the networks of removed labs are gone, or are left to the hub's next start."""
        await asyncio.gather(*self._freeing)

    async def machines(self) -> tuple[Machine, ...]:
        """The machines of the Swarm. Raises EngineFault."""
        return read_machines(await self.parts.docker.call("nodes"))

    async def _prepare(self) -> None:
        """Once: sets the Swarm's heartbeat, and removes networks whose lab is gone."""
        async with self._ready:
            if not self._prepared:
                await self.parts.docker.run(self._sweep)
                self._prepared = True

    async def _ensure(self) -> None:
        def work(call: Call) -> bool:
            lanes = self.parts.lanes.all(call)
            made = self.parts.gateway.ensure(call, tuple(lane.network_id for lane in lanes))
            self._free_left(call, lanes)
            return made

        async with self._ready:
            made = await self.parts.docker.run(work)
            self._ensured_seconds = time.monotonic()
        if made:
            self.parts.log.info("Made the gateway %s", self.parts.gateway.name)

    def _sweep(self, call: Call) -> None:
        own_machine(call, read_machines(call("nodes")))
        self._set_heartbeat(call)
        for lane in self.parts.lanes.all(call):
            if or_none(call, "inspect_service", lane.lab) is None:
                with suppress(EngineFault):  # still in use: at the hub's next start
                    self._free(call, lane.network_id)

    def _free_left(self, call: Call, lanes: tuple[Lane, ...]) -> None:
        """Removes networks whose service somebody else has removed, as the broker removes an orphan's.

        Only at the second look: a network is made a moment before its service.
        """
        there = {each["Spec"]["Name"] for each in call("services", filters={"label": LANE})}
        left = {lane.network_id for lane in lanes if lane.lab not in there}
        for network_id in left & self._left:
            with suppress(EngineFault):  # still in use: at the next look
                self._free(call, network_id)
        self._left = left

    def _set_heartbeat(self, call: Call) -> None:
        swarm = call("inspect_swarm")
        wanted = self.parts.heartbeat_seconds * 1_000_000_000
        dispatcher = swarm["Spec"].get("Dispatcher") or {}
        if dispatcher.get("HeartbeatPeriod") != wanted:
            spec = {**swarm["Spec"], "Dispatcher": {**dispatcher, "HeartbeatPeriod": wanted}}
            call("update_swarm", swarm["Version"]["Index"], swarm_spec=spec)

    # ---- one service

    def _create(self, call: Call, plan: ContainerPlan) -> Created:
        machines = read_machines(call("nodes"))
        machine = self._place(call, plan, machines)
        name, reference = str(plan.create["name"]), str(plan.create["image"])
        image = pinned(or_none(call, "inspect_image", reference) or {}, reference)
        lane = self.parts.lanes.create(call, name)
        berth = Berth(machine.id, lane.network_id, alias_of(lane.number))
        try:
            arguments = service_of(plan, berth, image, {LANE: str(lane.number), NODE: machine.name})
            return self._create_service(call, plan, arguments)
        except (EngineFault, ConfigError, StartConflict):
            with suppress(EngineFault):
                self.parts.lanes.remove(call, lane.network_id)
            raise

    def _create_service(self, call: Call, plan: ContainerPlan, arguments: Mapping[str, Any]) -> Created:
        """Creates it, unless the home is moved: `protocol/home_places.py` says why that is asked last."""
        made = str(call("create_service", **arguments)["ID"])
        if not self.parts.shared_homes and plan.docker_home is not None:
            try:
                check_free(call, plan.docker_home)
            except (EngineFault, StartConflict):
                unless_gone(call, "remove_service", made)
                raise
        return Created(made)

    def _place(self, call: Call, plan: ContainerPlan, machines: tuple[Machine, ...]) -> Machine:
        """The lease's machine, or that of the home, or the hub's own. Raises StartFault."""
        own = own_machine(call, machines)
        volume = plan.docker_home
        if self.parts.shared_homes or volume is None:
            return find_machine(machines, plan.node or own.name)
        homes = HomePlaces(own.name)
        known = homes.machine_of(call, volume)
        name = plan.node or known or own.name
        machine = find_machine(machines, name, has_files=name == known)
        homes.claim(call, volume, machine.name)
        return machine

    async def _connect(self, service: dict[str, Any]) -> None:
        """Puts the gateway into the lab's network."""
        network_id = _network_of(service)
        await self.parts.docker.run(lambda call: self.parts.gateway.connect(call, network_id))

    async def _come_up(self, service: dict[str, Any]) -> None:
        labels = service["Spec"]["Labels"]
        machine = str(labels.get(NODE, ""))
        deadline = time.monotonic() + ACCEPT_SECONDS
        while is_starting(task := newest_task(await self._tasks(service["ID"]))):
            if state_of(task) not in _ACCEPTED and time.monotonic() > deadline:
                said = unplaced(task)
                raise StartFault(
                    f"The machine {machine} doesn't start your server. Try again later, or tell an admin."
                    + (f" Admin: Swarm says: {said}" if said else " Admin: see `docker node ls`."),
                    "machine",
                )
            await asyncio.sleep(LOOK_SECONDS)
        assert task is not None
        image = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        if (fault := start_fault(task, machine, image)) is not None:
            raise fault

    async def _scale(self, lab_id: str, replicas: int) -> None:
        """Sets the number of tasks. Swarm refuses a change of what somebody has changed meanwhile."""
        mode = {"Replicated": {"Replicas": replicas}}

        def work(call: Call) -> None:
            for attempt in range(_ATTEMPTS):
                version = call("inspect_service", lab_id)["Version"]["Index"]
                try:
                    call("update_service", lab_id, version, mode=mode, fetch_current_spec=True)
                    return
                except EngineFault as fault:
                    if _OUTDATED not in str(fault) or attempt == _ATTEMPTS - 1:
                        raise

        await self.parts.docker.run(work)

    async def _free_soon(self, network_id: str) -> None:
        """Removes a lab's network once nothing is in it; failing that, the hub's next start does."""
        for _ in range(_FREE_ATTEMPTS):
            with suppress(EngineFault):
                await self.parts.docker.run(lambda call: self._free(call, network_id))
                return
            await asyncio.sleep(_FREE_SECONDS)
        self.parts.log.warning("The network %s of a lab that is gone can't be removed yet", network_id[:12])

    def _free(self, call: Call, network_id: str) -> None:
        self.parts.gateway.disconnect(call, network_id)
        self.parts.lanes.remove(call, network_id)

    async def _inspect(self, lab: str) -> dict[str, Any] | None:
        return await self.parts.docker.run(lambda call: or_none(call, "inspect_service", lab))

    async def _tasks(self, lab_id: str) -> list[dict[str, Any]]:
        """All tasks that Swarm remembers of a service; none if the service is gone."""
        try:
            found: list[dict[str, Any]] = await self.parts.docker.call("tasks", filters={"service": lab_id})
        except EngineFault as fault:
            if fault.status == NOT_THERE:
                return []
            raise
        return found


def _network_of(service: dict[str, Any]) -> str:
    """The lab's own network."""
    return str(service["Spec"]["TaskTemplate"]["Networks"][0]["Target"])
