"""Makes the node hold what the leases say: MPS daemons, compute modes, the guard's quotas, and their news.

An MPS daemon is started when the first slice of its GPU is given out. It runs until nobody has had one for
a while, or the GPU leaves its pool; it and the notebooks on it outlive the broker. The guard goes by the
leases that run, from the moment on at which the ledger was read. Nothing of this is done where GPUs are
simulated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ...core.errors import DeviceFault, GpuSpawnerError
from ...core.model import ContainerPatch, DeviceHealth, Lease, LeaseState, Mode
from ...core.units import format_time
from ...node.compute_mode import ComputeModes
from ...node.daemon_pool import DaemonPool
from ...node.guard.guard import Guard, GuardEvent, GuardSettings
from ...node.guard.judge import Quota, QuotaPlan
from ...node.inventory import Inventory
from ...node.mps.control import MpsLimits
from ...node.mps.daemon import BACK, MpsChange, MpsPace, MpsService
from ..decide.devices import MISSING
from ..decide.pooling import Pooling
from ..observe.journal import Journal, is_of, record_of
from ..observe.metrics import Metrics

RETRY_SECONDS = 30.0
"""How long a GPU whose MPS did not start is out of use before it is tried again."""
IDLE_SECONDS = 300.0
"""How long a GPU's daemon and its compute mode stay after the last slice: the next one need not wait."""
END_SECONDS = 5.0
"""How long the end of the broker may take for those that nobody uses; the next broker ends the rest."""
_USING = (LeaseState.RESERVED, LeaseState.RUNNING, LeaseState.ASLEEP, LeaseState.RELEASING)


class Holders(Protocol):
    """Who holds what, and how they are told: the lease service.

    `ready` is set once Docker was compared with the ledger: before that, a lease may be missing here.
    """

    ready: asyncio.Event

    def leases(self) -> tuple[Lease, ...]:
        """All living leases."""
        ...

    async def tell(self, lease_id: str, sentence: str) -> None:
        """Gives the holder a notice. Raises LedgerFault."""
        ...

    async def set_health(self, health: DeviceHealth) -> None:
        """Withdraws a device or takes it back. Raises LedgerFault."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What the enforcement works with. `mps` is None where no pool uses it."""

    pooling: Pooling
    inventory: Inventory
    state_dir: Path
    program: Path | None
    metrics: Metrics
    journal: Journal
    log: logging.Logger
    guard: GuardSettings = field(default_factory=GuardSettings)
    pace: MpsPace = field(default_factory=MpsPace)
    retry_seconds: float = RETRY_SECONDS
    idle_seconds: float = IDLE_SECONDS


class Enforcement:
    """One a broker; all methods on its event loop."""

    def __init__(self, tools: Tools, holders: Holders) -> None:
        self._tools = tools
        self._holders = holders
        self._pooling = tools.pooling
        self._active = not tools.inventory.simulated
        self._sizes = {device.uuid: device.memory_bytes for device in tools.pooling.devices}
        self._guard = Guard(tools.inventory, self._on_guard, settings=tools.guard, log=tools.log)
        self._mps: MpsService | None = None
        if tools.program is not None:
            self._mps = MpsService(
                tools.program, tools.state_dir, self._on_mps, pace=tools.pace, log=tools.log
            )
        self._modes = ComputeModes(tools.inventory, tools.state_dir, log=tools.log)
        self._pool = DaemonPool("compute-mode")
        self._hardware: dict[str, DeviceHealth] = {}
        self._without_mps: dict[str, str] = {}
        self._cared_for: set[str] = set()
        self._idle: dict[str, object] = {}
        self._latest: dict[str, str] = {}
        self._locks = {uuid: asyncio.Lock() for uuid in self._sizes}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False

    # ---- start and end

    async def start(self) -> None:
        """Takes up what a former broker left: quotas at once, then daemons and compute modes."""
        if not self._active:
            return
        await self._guard.start(self._orders())
        self._started = True
        leases = self._holders.leases()
        needed = {lease.device_uuids[0] for lease in leases if _through_mps(lease)}
        keep = self._sliced() | needed
        try:
            await self._pool.submit(lambda: self._modes.restore(self._pooling.managed | needed))
            if self._mps is not None:
                await self._mps.stop_others(keep)
        except GpuSpawnerError as error:
            self._tools.log.warning("%s", error)
        for uuid in sorted(needed):
            self._spawn(self._take_up(uuid))
        for uuid in sorted(self._sliced() - needed):
            self._spawn(self._leave(uuid))

    def extend(self, pooling: Pooling) -> None:
        """Devices that could not be read at the start are there: from now on quotas hold there too."""
        self._pooling = pooling
        self._sizes = {device.uuid: device.memory_bytes for device in pooling.devices}
        if not self._started:
            return
        self._guard.set_plan(self._orders())
        for uuid in sorted(self._sizes.keys() - self._cared_for):
            if self._users(uuid):
                self._spawn(self._take_up(uuid))

    async def stop(self) -> None:
        """The broker ends. Daemons and compute modes stay for the notebooks that go on, and only for them."""
        started, self._started = self._started, False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if started:
            await self._guard.stop()
        if started and self._holders.ready.is_set():
            unused = [uuid for uuid in self._sliced() | self._cared_for if not self._users(uuid)]
            ending = [asyncio.create_task(self._guarded(self._end_mps(uuid))) for uuid in unused]
            if ending:
                await asyncio.wait(ending, timeout=END_SECONDS)
        if self._mps is not None:
            await self._mps.leave()
        self._pool.close()

    # ---- a lease

    async def prepare(self, lease: Lease) -> None:
        """The GPU of a slice is ready for its container when this returns.

        Raises DeviceFault if MPS does not run; the GPU is out of use then until it does.
        """
        if not self._active or not _through_mps(lease):
            return
        uuid = lease.device_uuids[0]
        known = uuid in self._without_mps
        try:
            await self._ensure(uuid)
        except GpuSpawnerError as error:
            await self._lose_mps(uuid, str(error))
            if not known:
                self._spawn(self._retry(uuid))
            raise
        await self._have_mps(uuid)

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """`patch` with what the lease's container needs to compute through MPS; pure."""
        if not self._active or not _through_mps(lease) or self._mps is None:
            return patch
        uuid = lease.device_uuids[0]
        own = MpsLimits(lease.compute_percent, lease.memory_bytes)
        smaller = own != self._limits(uuid)
        extra = self._mps.patch_for(uuid, own if smaller else None)
        return replace(patch, env={**patch.env, **extra.env}, mounts=(*patch.mounts, *extra.mounts))

    def on_lease(self, lease: Lease) -> None:
        """The allocator has committed this lease: the guard's quotas follow; a daemon may not be needed."""
        if not self._started:
            return
        if lease.container_id is not None or lease.state is LeaseState.CLOSED:
            self._guard.set_plan(self._orders())
        if not _through_mps(lease):
            return
        uuid = lease.device_uuids[0]
        if lease.state is LeaseState.RUNNING and uuid not in self._cared_for:
            self._cared_for.add(uuid)
            self._spawn(self._take_up(uuid))  # it was taken up from its container's labels
        if lease.state is LeaseState.CLOSED and not self._users(uuid):
            self._spawn(self._leave(uuid))

    async def set_health(self, health: DeviceHealth) -> None:
        """What the health monitor found of a device; one whose MPS doesn't run stays out of use."""
        self._hardware[health.uuid] = health
        await self._holders.set_health(self._health(health.uuid))

    def blind(self) -> dict[str, str]:
        """Devices whose processes can't be read now, and why: there no quota is held."""
        found = self._guard.blind() if self._started else {}
        if self._started:
            held = (uuid for lease in self._holders.leases() for uuid in lease.device_uuids)
            found |= {uuid: MISSING for uuid in held if uuid not in self._sizes}
        self._tools.metrics.guard_blind.set(len(found))
        return found

    # ---- the guard

    def _orders(self) -> QuotaPlan:
        """Quotas of the leases that have a container, for every device that is leased here."""
        with_container = [lease for lease in self._holders.leases() if lease.container_id is not None]
        quotas = [quota for lease in with_container for quota in self._quotas(lease)]
        containers = frozenset(str(lease.container_id) for lease in with_container)
        return QuotaPlan(tuple(quotas), containers, frozenset(self._sizes))

    def _quotas(self, lease: Lease) -> Iterable[Quota]:
        for uuid in lease.device_uuids:
            if uuid not in self._sizes:
                continue  # it was not found: there is nothing to look at
            size = lease.memory_bytes if lease.mode is Mode.SLICE else None
            yield Quota(lease.id, str(lease.container_id), uuid, size, mps_required=_through_mps(lease))

    async def _on_guard(self, event: GuardEvent) -> None:
        self._tools.metrics.ended(event.offence)
        lease = next((each for each in self._holders.leases() if is_of(event, each)), None)
        await self._tools.journal.add(record_of(event, lease))
        if lease is not None:
            await self._tell(lease.id, f"{format_time(event.at)}: {event.sentence}")

    async def _tell(self, lease_id: str, sentence: str) -> None:
        """What can't be recorded now, as on a full disk, is told later, unless there is newer."""
        self._latest[lease_id] = sentence
        try:
            await self._holders.tell(lease_id, sentence)
        except GpuSpawnerError as error:
            self._tools.log.warning("A notice is given later: %s lease=%s", error, lease_id)
            self._spawn(self._tell_later(lease_id, sentence))
        else:
            self._latest.pop(lease_id, None)

    async def _tell_later(self, lease_id: str, sentence: str) -> None:
        await asyncio.sleep(self._tools.retry_seconds)
        if self._latest.get(lease_id) == sentence:
            await self._tell(lease_id, sentence)

    # ---- MPS

    def _sliced(self) -> set[str]:
        return {uuid for uuid, terms in self._pooling.terms.items() if terms.sliced and terms.mps}

    def _users(self, uuid: str) -> list[Lease]:
        """The leases that compute through the GPU's daemon, or will."""
        return [
            lease
            for lease in self._holders.leases()
            if lease.state in _USING and uuid in lease.device_uuids and _through_mps(lease)
        ]

    def _limits(self, uuid: str) -> MpsLimits:
        """The daemon's: those of the pool's largest slice, or of a larger one that is held from before."""
        terms, size = self._pooling.terms.get(uuid), self._sizes.get(uuid, 0)
        percents = [lease.compute_percent for lease in self._users(uuid)]
        sizes = [lease.memory_bytes for lease in self._users(uuid)]
        if terms is not None and terms.sliced and terms.mps:
            percents.append(terms.largest_percent(size))
            sizes.append(terms.largest_bytes(size))
        return MpsLimits(max(percents, default=100.0), max(sizes, default=None))

    async def _ensure(self, uuid: str) -> bool:
        """The GPU's daemon runs when this returns; True if it had to be started. Raises DeviceFault."""
        if self._mps is None:
            raise DeviceFault("MPS is not installed, and this GPU is shared through it")
        async with self._locks.setdefault(uuid, asyncio.Lock()):
            if uuid in self._pooling.managed:
                await self._pool.submit(lambda: self._modes.take(uuid))
            self._cared_for.add(uuid)
            return await self._mps.ensure(uuid, self._limits(uuid))

    async def _take_up(self, uuid: str) -> None:
        """After a start: the daemon of leases that are held."""
        try:
            anew = await self._ensure(uuid)
        except GpuSpawnerError as error:
            self._tools.log.error("MPS does not run: %s devices=%s", error, uuid)
            await self._lose_mps(uuid, str(error))
            await self._retry(uuid)
        else:
            await self._runs_again(uuid, anew)

    async def _retry(self, uuid: str) -> None:
        while uuid in self._without_mps:
            await asyncio.sleep(self._tools.retry_seconds)
            try:
                anew = await self._ensure(uuid)
            except GpuSpawnerError as error:
                self._tools.log.warning("MPS still does not run: %s devices=%s", error, uuid)
                self._tools.metrics.failed("enforcement")
                continue
            await self._runs_again(uuid, anew)
            break
        if not self._users(uuid):
            await self._leave(uuid)  # nobody waited for it

    async def _runs_again(self, uuid: str, anew: bool) -> None:
        """Without this broker's having watched: if `anew`, what computed through its predecessor ended."""
        await self._have_mps(uuid)
        if anew:
            await self._tell_users(uuid, BACK)

    async def _on_mps(self, change: MpsChange) -> None:
        """The GPU's daemon died or is back: nothing new goes there meanwhile, and its holders are told."""
        if change.running:
            await self._have_mps(change.uuid)
        else:
            self._tools.metrics.mps_died()
            await self._lose_mps(change.uuid, "the service through which it is shared (MPS) ended")
        await self._tell_users(change.uuid, change.sentence)

    async def _tell_users(self, uuid: str, sentence: str) -> None:
        for lease in self._users(uuid):
            await self._tell(lease.id, sentence)

    async def _lose_mps(self, uuid: str, reason: str) -> None:
        self._without_mps[uuid] = reason
        try:
            await self._holders.set_health(self._health(uuid))
        except GpuSpawnerError as error:  # it is withdrawn all the same
            self._tools.log.warning("%s", error)

    async def _have_mps(self, uuid: str) -> None:
        reason = self._without_mps.pop(uuid, None)
        if reason is None:
            return
        try:
            await self._holders.set_health(self._health(uuid))
        except GpuSpawnerError as error:  # not recorded, not back: it is tried again
            self._tools.log.warning("%s", error)
            self._without_mps[uuid] = reason
            self._spawn(self._retry(uuid))

    def _health(self, uuid: str) -> DeviceHealth:
        hardware = self._hardware.get(uuid, DeviceHealth(uuid, healthy=True))
        reason = self._without_mps.get(uuid)
        if reason is None or not hardware.healthy:
            return hardware
        return DeviceHealth(uuid, healthy=False, reason=reason)

    async def _leave(self, uuid: str) -> None:
        """Nobody has a slice of the GPU: at once if it has left its pool, else if that stays so."""
        self._idle[uuid] = idle = object()
        if uuid in self._sliced():
            await asyncio.sleep(self._tools.idle_seconds)
        await self._holders.ready.wait()
        if self._idle.get(uuid) is idle:
            del self._idle[uuid]
            await self._end_mps(uuid)

    async def _end_mps(self, uuid: str) -> None:
        """Ends the GPU's daemon and gives its compute mode back, if nobody uses them."""
        async with self._locks.setdefault(uuid, asyncio.Lock()):
            if self._users(uuid):
                return
            if self._mps is not None:
                await self._mps.stop(uuid)
            self._cared_for.discard(uuid)
            await self._pool.submit(lambda: self._modes.give_back(uuid))

    # ---- tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # one that was cancelled before it began

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # the top of a background task
            self._tools.metrics.failed("enforcement")
            self._tools.log.exception("A task of the enforcement failed")


def _through_mps(lease: Lease) -> bool:
    return lease.mode is Mode.SLICE and lease.mps and bool(lease.device_uuids)
