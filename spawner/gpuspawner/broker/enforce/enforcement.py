"""Makes the node hold what the leases say, and passes on what the node reports.

Each lease belongs to a mode (`mode.py`). From what the modes wish and the quotas of the leases that have a
container, one document is made of all that should hold; the node makes it true. Its events change the health
of devices, are told to holders and are recorded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
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
)
from ..decide.devices import MISSING
from ..decide.pooling import Pooling
from ..observe.journal import Journal, is_of, record_of
from ..observe.metrics import Metrics
from .mode import Holders, SharingMode, Surroundings
from .slices import IDLE_SECONDS, Slices
from .whole import Whole

RETRY_SECONDS = 30.0
"""Pause before what could not be recorded is tried again."""
END_SECONDS = 5.0
"""How long the end of the broker may take for the GPUs that nobody uses; the next broker ends the rest."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the enforcement works with. `facts` are those that `node.start` returned."""

    node: Node
    facts: NodeFacts
    pooling: Pooling
    metrics: Metrics
    journal: Journal
    log: logging.Logger
    retry_seconds: float = RETRY_SECONDS
    idle_seconds: float = IDLE_SECONDS


class Enforcement:
    """One a broker; all methods on its event loop."""

    def __init__(self, tools: Tools, holders: Holders) -> None:
        self._tools = tools
        self._node, self._log = tools.node, tools.log
        self._holders = holders
        self._pooling = tools.pooling
        self._facts = tools.facts
        self._hardware: dict[str, DeviceHealth] = {}
        self._readings = Readings()
        self._applying = asyncio.Lock()
        self._changed = asyncio.Event()
        self._latest: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self.on_facts: Callable[[NodeFacts], None] = lambda _: None
        """Called with the node's new facts, as when a device appears late."""
        whole = Whole()
        around = Surroundings(
            node=self._node, facts=tools.facts, holders=holders, pooling=lambda: self._pooling,
            apply=self.apply, report=self.report, tell=self._tell, spawn=self._spawn,
            metrics=tools.metrics, log=tools.log,
        )  # fmt: skip
        slices = Slices(around, idle_seconds=tools.idle_seconds)
        self._modes: dict[Mode, SharingMode] = {Mode.WHOLE: whole, Mode.MIG: whole, Mode.SLICE: slices}

    # ---- start and end

    async def start(self) -> None:
        """Adopts what a former broker left: quotas at once, then daemons and compute modes.

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
        """Devices that could not be read at the start are there: from now on quotas hold there too."""
        self._pooling = pooling
        if self._started:
            for mode in self._all_modes():
                mode.begin()
            await self.apply()

    async def stop(self) -> None:
        """The broker ends. What runs on the node stays for the notebooks that go on, and only for them."""
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
        """The devices of the lease are ready for its container when this returns. Raises DeviceFault.

        A device that can't be made ready is out of use until it can.
        """
        await self._modes[lease.mode].prepare(lease)

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """`patch` with what the lease's container needs for its mode; pure."""
        return self._modes[lease.mode].patch(lease, patch)

    def on_lease(self, lease: Lease) -> None:
        """The allocator has committed this lease: what should hold follows."""
        if not self._started:
            return
        if lease.state is LeaseState.CLOSED:
            self._modes[lease.mode].leave(lease)
        elif lease.state.holds_devices:
            self._modes[lease.mode].follow(lease)
        self._changed.set()

    # ---- what should hold

    def desired(self) -> DesiredState:
        """All that should hold on the node now; pure."""
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
        """Gives the node what should hold now; it has taken that over when this returns."""
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
                self._log.exception("What should hold could not be given to the node; it is tried again")
                self._changed.set()
                await asyncio.sleep(self._tools.retry_seconds)

    def _quotas(self, lease: Lease, pooled: frozenset[str]) -> Iterable[Quota]:
        """Of a device that was not found there is nothing to look at."""
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
        """Brings the health of all devices up to date from what the node knows now."""
        for health in await self._node.health():
            self._hardware[health.uuid] = health
            if not health.healthy:
                await self.report(health.uuid)

    async def report(self, uuid: str) -> None:
        """Withdraws a device or takes it back; what can't be recorded now is tried again."""
        try:
            await self._holders.set_health(self._health(uuid))
        except GpuSpawnerError as error:  # it is withdrawn all the same, or not back yet
            self._log.warning("%s devices=%s", error, uuid)
            self._spawn(self._report_later(uuid))

    async def _report_later(self, uuid: str) -> None:
        await asyncio.sleep(self._tools.retry_seconds)
        await self.report(uuid)

    def _health(self, uuid: str) -> DeviceHealth:
        """The hardware's own, unless a mode keeps the device out of use."""
        hardware = self._hardware.get(uuid, DeviceHealth(uuid, healthy=True))
        reason = next(filter(None, (mode.obstacle(uuid) for mode in self._all_modes())), "")
        if not reason or not hardware.healthy:
            return hardware
        return DeviceHealth(uuid, healthy=False, reason=reason)

    async def _on_guard(self, event: GuardEvent) -> None:
        self._tools.metrics.ended(event.offence)
        lease = next((each for each in self._holders.leases() if is_of(event, each)), None)
        await self._tools.journal.add(record_of(event, lease))
        if lease is not None:
            await self._tell(lease.id, f"{format_time(event.at)}: {event.sentence}")

    # ---- what the pages show

    def node_facts(self) -> NodeFacts:
        """What the node has, as it said last."""
        return self._facts

    def usage(self) -> Mapping[str, Usage]:
        """What of each device is in use, by UUID."""
        return self._readings.usage

    def blind(self) -> dict[str, str]:
        """Devices whose processes can't be read now, and why: there no quota is held."""
        found = dict(self._readings.blind)
        if self._started and not self._tools.facts.simulated:
            pooled = {device.uuid for device in self._pooling.devices}
            held = (uuid for lease in self._holders.leases() for uuid in lease.device_uuids)
            found |= {uuid: MISSING for uuid in held if uuid not in pooled}
        self._tools.metrics.guard_blind.set(len(found))
        return found

    # ---- notices and tasks

    async def _tell(self, lease_id: str, sentence: str) -> None:
        """What can't be recorded now, as on a full disk, is told later, unless there is newer."""
        self._latest[lease_id] = sentence
        try:
            await self._holders.tell(lease_id, sentence)
        except GpuSpawnerError as error:
            self._log.warning("A notice is given later: %s lease=%s", error, lease_id)
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
        task.add_done_callback(lambda _: work.close())  # one that was cancelled before it began
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except GpuSpawnerError as error:
            self._log.warning("%s", error)
        except Exception:  # the top of a background task
            self._tools.metrics.failed("enforcement")
            self._log.exception("A task of the enforcement failed")
