"""Makes one node enforce the leases that are on it, and handles the node's reports.

Each lease belongs to a mode (`mode.py`). The desired state consists of the modes' parts and of the quotas of
the leases that have a container; the node establishes it. The node's events change the health of devices;
they are sent to holders and recorded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import GpuSpawnerError
from ...core.model import ContainerPatch, DeviceHealth, Lease, LeaseState, Mode
from ...core.units import format_time
from ...node.api import (
    DaemonPlan,
    DesiredState,
    GuardEvent,
    Node,
    NodeEvent,
    NodeFacts,
    Quota,
    QuotaPlan,
    Readings,
    Usage,
    XidSeen,
)
from ..decide.place.devices import MISSING
from ..decide.place.pooling import Pooling
from ..decide.turns import NO_RANK, Rank
from ..observe.journal import Journal, is_of, record_of
from ..observe.metrics import Metrics
from .mode import Holders, SharingMode, Surroundings
from .slices import IDLE_SECONDS, Slices
from .turn_pools import Pace, Turns
from .whole import Whole

RETRY_SECONDS = 30.0
"""Pause before a failed record is retried."""
END_SECONDS = 5.0
"""Time limit for stopping unused GPUs when the broker ends; the next broker stops the others."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The objects that the enforcement needs. `facts` are those that `node.start` returned."""

    node: Node
    facts: NodeFacts
    pooling: Pooling
    metrics: Metrics
    journal: Journal
    log: logging.Logger
    retry_seconds: float = RETRY_SECONDS
    idle_seconds: float = IDLE_SECONDS
    rank: Callable[[Lease], Rank] = lambda lease: NO_RANK
    """A lease's place by the site's policy among those that want a turn, as it is now."""
    turn_pace: Pace = field(default_factory=Pace)


class Enforcement:
    """One a node; all methods on the broker's event loop. `holders` has the leases of this node."""

    def __init__(self, tools: Tools, holders: Holders) -> None:
        self._tools = tools
        self._node, self._log = tools.node, tools.log
        self._holders = holders
        self._pooling = tools.pooling
        self._facts = tools.facts
        self._hardware: dict[str, DeviceHealth] = {}
        self._closed: dict[str, DeviceHealth] = {}
        self._away = tools.facts.away
        self._readings = Readings()
        self._applying = asyncio.Lock()
        self._changed = asyncio.Event()
        self._latest: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self.on_facts: Callable[[NodeFacts], None] = lambda _: None
        """Called with the node's new facts, for example when a device appears late."""
        whole = Whole()
        around = Surroundings(
            node=self._node, read_facts=self.node_facts, holders=holders, pooling=lambda: self._pooling,
            apply=self.apply, report=self.report, tell=self._tell, spawn=self._spawn,
            metrics=tools.metrics, log=tools.log, hardware=self._hardware_of, rank=tools.rank,
        )  # fmt: skip
        self.turns = Turns(around, tools.turn_pace)
        """Who has a turn, and what users may ask for."""
        slices = Slices(around, idle_seconds=tools.idle_seconds)
        self._modes: dict[Mode, SharingMode] = {
            Mode.WHOLE: whole, Mode.MIG: whole, Mode.SLICE: slices, Mode.TURNS: self.turns,
        }  # fmt: skip

    # ---- start and end

    async def start(self) -> None:
        """Adopts what an earlier broker left: quotas at once, then daemons and compute modes.

        The health of every device is known when this returns.
        """
        self._started = True
        for mode in self._all_modes():
            mode.begin()
        await self.apply()
        await self.report_health()
        self._spawn(self._listen())
        self._spawn(self._apply_changes())

    async def extend(self, pooling: Pooling) -> None:
        """Adds devices that could not be read at the start: their quotas are enforced from now on."""
        self._pooling = pooling
        if self._started:
            for mode in self._all_modes():
                mode.begin()
            await self.apply()

    async def stop(self) -> None:
        """Called when the broker ends. The node keeps running only what running notebooks need."""
        started, self._started = self._started, False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if started and self._holders.ready.is_set():
            unused = frozenset().union(*(mode.end() for mode in self._all_modes()))
            await self.apply()
            ending = [asyncio.create_task(self._guarded(self._node.settle(uuid))) for uuid in unused]
            if ending:
                await asyncio.wait(ending, timeout=END_SECONDS)

    # ---- a lease

    async def prepare(self, lease: Lease) -> None:
        """Prepares the lease's devices for its container. Raises DeviceFault.

        A device that can't be prepared is out of service until it can.
        """
        await self._modes[lease.mode].prepare(lease)

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """`patch` with what the lease's container needs for its mode; pure."""
        return self._modes[lease.mode].patch(lease, patch)

    def on_lease(self, lease: Lease) -> None:
        """Called when the allocator has committed this lease: updates the desired state."""
        if not self._started:
            return
        if lease.state is LeaseState.CLOSED:
            self._modes[lease.mode].leave(lease)
        elif lease.state.holds_devices:
            self._modes[lease.mode].follow(lease)
        self._changed.set()

    # ---- the desired state

    def desired(self) -> DesiredState:
        """The desired state of the node now; pure."""
        leases = self._holders.leases()
        pooled = frozenset(device.uuid for device in self._pooling.devices)
        held = frozenset(uuid for lease in leases for uuid in lease.device_uuids)
        with_container = [lease for lease in leases if lease.container_id is not None]
        quotas = tuple(quota for lease in with_container for quota in self._quotas(lease, pooled))
        containers = frozenset(str(lease.container_id) for lease in with_container)
        daemons: dict[str, DaemonPlan] = {}
        undecided: frozenset[str] = frozenset()
        for wishes in (mode.wishes() for mode in self._all_modes()):
            daemons |= wishes.daemons
            undecided |= wishes.undecided
        return DesiredState(pooled | held, QuotaPlan(quotas, containers, pooled), daemons, undecided)

    async def apply(self) -> None:
        """Sends the desired state to the node, and waits until the node has accepted it."""
        async with self._applying:
            await self._node.apply(self.desired())

    async def _apply_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self.apply()
            except Exception:  # the top of this loop
                self._tools.metrics.failed("enforcement")
                self._log.exception("The desired state could not be sent to the node; retrying")
                self._changed.set()
                await asyncio.sleep(self._tools.retry_seconds)

    def _quotas(self, lease: Lease, pooled: frozenset[str]) -> Iterable[Quota]:
        """The quotas of all leases with a container, without devices that were not found."""
        return (each for each in self._modes[lease.mode].quotas(lease) if each.device_uuid in pooled)

    def _all_modes(self) -> tuple[SharingMode, ...]:
        return tuple(dict.fromkeys(self._modes.values()))

    # ---- what the node reports

    async def _listen(self) -> None:
        async for event in self._node.events():
            try:
                await self._on_event(event)
            except Exception:  # the top of this loop
                self._tools.metrics.failed("enforcement")
                self._log.exception("An event of the node was lost: %r", event)

    async def _on_event(self, event: NodeEvent) -> None:
        match event:
            case DeviceHealth():
                self._hardware[event.uuid] = event
                await self.report(event.uuid)
            case GuardEvent():
                await self._on_guard(event)
            case Readings():
                self._readings = event
            case NodeFacts():
                self._facts = event
                self.on_facts(event)
            case _:
                for mode in self._all_modes():
                    await mode.on_event(event)

    async def report_health(self) -> None:
        """Updates the health of all devices from the node's current values."""
        found = await self._node.health()
        self._hardware |= {health.uuid: health for health in found}
        await self.report(*(health.uuid for health in found if not health.healthy))

    async def close_to_new(self, closed: Iterable[DeviceHealth]) -> None:
        """The devices that no new container may get, all of them; those that run are left alone."""
        before, self._closed = self._closed, {health.uuid: health for health in closed}
        both = before.keys() | self._closed.keys()
        await self.report(*(uuid for uuid in both if before.get(uuid) != self._closed.get(uuid)))

    async def set_away(self, reason: str) -> None:
        """Why nothing new may start on the machine, which can't be reached; "" once it may again."""
        self._away = reason
        await self.report(*(device.uuid for device in self._pooling.devices))

    async def report(self, *uuids: str) -> None:
        """Puts devices out of service or back into service; retries if that can't be recorded now."""
        if not uuids:
            return
        try:
            await self._holders.set_health(*map(self.health_of, uuids))
        except GpuSpawnerError as error:  # they are out of service anyway, or not back yet
            self._log.warning("%s devices=%s", error, ",".join(uuids))
            self._spawn(self._report_later(*uuids))

    async def _report_later(self, *uuids: str) -> None:
        await asyncio.sleep(self._tools.retry_seconds)
        await self.report(*uuids)

    def health_of(self, uuid: str) -> DeviceHealth:
        """The hardware's health, unless the machine is away, or a mode or `close_to_new` keeps the device out
        of service."""
        if self._away:
            return DeviceHealth(uuid, healthy=False, reason=self._away, machine_away=True)
        hardware = self._hardware_of(uuid)
        reason = next(filter(None, (mode.obstacle(uuid) for mode in self._all_modes())), "")
        if not hardware.healthy:
            return hardware
        if reason:
            return DeviceHealth(uuid, healthy=False, reason=reason)
        return self._closed.get(uuid, hardware)

    def _hardware_of(self, uuid: str) -> DeviceHealth:
        return self._hardware.get(uuid, DeviceHealth(uuid, healthy=True))

    async def _on_guard(self, event: GuardEvent) -> None:
        self._tools.metrics.ended(event.offence)
        lease = next((each for each in self._holders.leases() if is_of(event, each)), None)
        await self._tools.journal.add(record_of(event, lease))
        if lease is not None:
            await self._tell(lease.id, f"{format_time(event.at)}: {event.sentence}")

    # ---- what the pages show

    def node_facts(self) -> NodeFacts:
        """The node's latest facts."""
        return self._facts

    def usage(self) -> Mapping[str, Usage]:
        """The use of each device, by UUID; nothing is known of a machine that can't be reached."""
        return {} if self._away else self._readings.usage

    def xids(self) -> Mapping[str, tuple[XidSeen, ...]]:
        """The newest XIDs of each device, by UUID, the newest first."""
        return self._readings.xids

    def blind(self) -> dict[str, str]:
        """Devices whose processes can't be read now, and why: no quota is enforced there."""
        found = dict(self._readings.blind)
        if self._started and not self._facts.simulated:
            pooled = {device.uuid for device in self._pooling.devices}
            held = (uuid for lease in self._holders.leases() for uuid in lease.device_uuids)
            found |= {uuid: self._away or MISSING for uuid in held if uuid not in pooled}
        if self._away:
            found |= {device.uuid: self._away for device in self._pooling.devices}
        return found

    # ---- notices and tasks

    async def _tell(self, lease_id: str, sentence: str) -> None:
        """Gives a notice; if that fails now (full disk), retries later unless there is a newer one."""
        self._latest[lease_id] = sentence
        try:
            await self._holders.tell(lease_id, sentence)
        except GpuSpawnerError as error:
            self._log.warning("A notice can't be recorded yet, retrying: %s lease=%s", error, lease_id)
            self._spawn(self._tell_later(lease_id, sentence))
        else:
            self._latest.pop(lease_id, None)

    async def _tell_later(self, lease_id: str, sentence: str) -> None:
        await asyncio.sleep(self._tools.retry_seconds)
        if self._latest.get(lease_id) == sentence:
            await self._tell(lease_id, sentence)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before it began
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except GpuSpawnerError as error:
            self._log.warning("%s", error)
        except Exception:  # the top of a background task
            self._tools.metrics.failed("enforcement")
            self._log.exception("A task of the enforcement failed")
