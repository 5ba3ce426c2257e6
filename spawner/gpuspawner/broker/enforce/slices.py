"""GPUs in slices: an MPS daemon for each GPU in use, and a memory quota for each container.

A daemon starts with the first slice of its GPU. It runs until nobody has used a slice for a while, or the GPU
leaves its pool. A daemon that can't start is retried until it runs, even if all users leave: only then does
its GPU return to service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import PurePath

from ...core.errors import GpuSpawnerError
from ...core.model import ContainerPatch, Lease, LeaseState, Mode
from ...node.api import DaemonPlan, MpsEvent, MpsLimits, MpsState, NodeEvent, Quota
from ...node.mps.patch import patch_for
from .mode import Surroundings, Wishes

IDLE_SECONDS = 300.0
"""How long a GPU's daemon and compute mode stay after the last slice, so that the next one needn't wait."""
_USING = (LeaseState.RESERVED, LeaseState.RUNNING, LeaseState.ASLEEP, LeaseState.RELEASING)


class Daemon(StrEnum):
    """Whether a GPU's daemon should run. UNDECIDED: a daemon of an earlier broker may run, and it isn't known
    yet whether somebody uses it."""

    ON = "on"
    OFF = "off"
    UNDECIDED = "undecided"


@dataclass(slots=True)
class SlicedGpu:
    """One GPU that is shared in slices through MPS.

    `fault`: why its daemon doesn't run although it should; the GPU is out of service meanwhile. `served`:
    leases that use the daemon. `idle`: the timer that runs while nobody uses it.
    """

    uuid: str
    daemon: Daemon = Daemon.UNDECIDED
    fault: str = ""
    served: set[str] = field(default_factory=set)
    idle: asyncio.Task[None] | None = None

    def use(self) -> None:
        """Called when somebody has or gets a slice of it."""
        self.daemon = Daemon.ON
        self.stop_timer()

    def stop_timer(self) -> None:
        """Stops the idle timer."""
        if self.idle is not None:
            self.idle.cancel()
            self.idle = None


class Slices:
    """The mode `slice`. Slices without MPS have only a quota; simulated ones have nothing."""

    def __init__(self, around: Surroundings, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._around = around
        self._idle_seconds = idle_seconds
        self._gpus: dict[str, SlicedGpu] = {}

    # ---- the interface of a mode

    def begin(self) -> None:
        """Keeps the daemons of current leases; others that an earlier broker left end after a while."""
        if self._around.facts.simulated:
            return
        for lease in self._around.holders.leases():
            if _through_mps(lease) and lease.state in _USING:
                self._take_up(lease)
        for uuid in sorted(self._pooled() - self._gpus.keys()):
            self._idle_from_now(self._gpu(uuid))

    async def prepare(self, lease: Lease) -> None:
        """Makes the GPU's daemon run. Raises DeviceFault; the GPU is then out of service."""
        if self._around.facts.simulated or not _through_mps(lease):
            return
        gpu = self._gpu(lease.device_uuids[0])
        gpu.use()
        await self._around.apply()
        try:
            await self._around.node.settle(gpu.uuid)
        except GpuSpawnerError as error:
            await self._set_fault(gpu, str(error))
            raise
        gpu.served.add(lease.id)
        await self._set_fault(gpu, "")

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """Adds the daemon's pipe folder, and the lease's own limits if they are lower than the daemon's."""
        pipes = self._around.facts.mps_pipes
        if not pipes or not _through_mps(lease):
            return patch
        uuid = lease.device_uuids[0]
        own = MpsLimits(lease.compute_percent, lease.memory_bytes)
        extra = patch_for(PurePath(pipes) / uuid, own if own != self._limits(uuid) else None)
        return replace(patch, env={**patch.env, **extra.env}, mounts=(*patch.mounts, *extra.mounts))

    def quotas(self, lease: Lease) -> Iterable[Quota]:
        """The lease's memory on its device."""
        through = _through_mps(lease)
        container, size = str(lease.container_id), lease.memory_bytes
        return [Quota(lease.id, container, uuid, size, mps_required=through) for uuid in lease.device_uuids]

    def follow(self, lease: Lease) -> None:
        """Keeps the daemon of a running lease, also of a lease known only from its container's labels."""
        if self._around.facts.simulated or not _through_mps(lease):
            return
        if lease.state is LeaseState.RUNNING and lease.id not in self._gpu(lease.device_uuids[0]).served:
            self._take_up(lease)

    def leave(self, lease: Lease) -> None:
        """Starts the idle timer when the last lease leaves."""
        gpu = self._gpus.get(lease.device_uuids[0]) if _through_mps(lease) else None
        if gpu is None:
            return
        gpu.served.discard(lease.id)
        if not self._users(gpu.uuid):
            self._idle_from_now(gpu)

    def wishes(self) -> Wishes:
        """A daemon for each GPU in use, and for each GPU where it failed: it is retried until it runs."""
        gpus, managed = self._gpus.values(), self._around.pooling().managed
        daemons = {
            gpu.uuid: DaemonPlan(self._limits(gpu.uuid), gpu.uuid in managed, bool(gpu.served))
            for gpu in gpus
            if gpu.daemon is Daemon.ON
        }
        return Wishes(daemons, frozenset(gpu.uuid for gpu in gpus if gpu.daemon is Daemon.UNDECIDED))

    def obstacle(self, uuid: str) -> str:
        """Why the GPU's MPS doesn't run."""
        gpu = self._gpus.get(uuid)
        return "" if gpu is None else gpu.fault

    async def on_event(self, event: NodeEvent) -> None:
        """Puts a GPU whose daemon doesn't run out of service, and tells its holders."""
        if not isinstance(event, MpsEvent) or (gpu := self._gpus.get(event.uuid)) is None:
            return
        if event.died:
            self._around.metrics.mps_died()
        fault = event.reason if event.state is MpsState.FAILED and gpu.daemon is Daemon.ON else ""
        await self._set_fault(gpu, fault)
        if event.notice:
            for lease in self._users(gpu.uuid):
                await self._around.tell(lease.id, event.notice)

    def end(self) -> frozenset[str]:
        """Keeps only the daemons that running notebooks use."""
        unused = [gpu for gpu in self._gpus.values() if not self._users(gpu.uuid)]
        for gpu in unused:
            gpu.daemon = Daemon.OFF
        return frozenset(gpu.uuid for gpu in unused)

    # ---- private

    def _gpu(self, uuid: str) -> SlicedGpu:
        return self._gpus.setdefault(uuid, SlicedGpu(uuid))

    def _pooled(self) -> set[str]:
        """The GPUs that the settings share through MPS."""
        rules = self._around.pooling().terms
        return {uuid for uuid, each in rules.items() if each.sliced and each.mps}

    def _users(self, uuid: str) -> list[Lease]:
        """The leases that use the GPU's daemon, or will."""
        return [
            lease
            for lease in self._around.holders.leases()
            if lease.state in _USING and uuid in lease.device_uuids and _through_mps(lease)
        ]

    def _limits(self, uuid: str) -> MpsLimits:
        """The daemon's limits: those of the pool's largest slice, or of a larger slice that is still held."""
        pooling, users = self._around.pooling(), self._users(uuid)
        rules = pooling.terms.get(uuid)
        size = next((device.memory_bytes for device in pooling.devices if device.uuid == uuid), 0)
        percents = [lease.compute_percent for lease in users]
        sizes = [lease.memory_bytes for lease in users]
        if rules is not None and rules.sliced and rules.mps:
            percents.append(rules.largest_percent(size))
            sizes.append(rules.largest_bytes(size))
        return MpsLimits(max(percents, default=100.0), max(sizes, default=None))

    def _take_up(self, lease: Lease) -> None:
        """Adopts a GPU in use whose daemon this broker didn't start."""
        gpu = self._gpu(lease.device_uuids[0])
        gpu.use()
        gpu.served.add(lease.id)

    def _idle_from_now(self, gpu: SlicedGpu) -> None:
        gpu.stop_timer()
        gpu.idle = self._around.spawn(self._end_idle(gpu))

    async def _end_idle(self, gpu: SlicedGpu) -> None:
        """Ends an unused GPU's daemon: at once if it has left its pool, else after the idle time."""
        if gpu.uuid in self._pooled():
            await asyncio.sleep(self._idle_seconds)
        await self._around.holders.ready.wait()
        if self._users(gpu.uuid) or gpu.fault:  # a failed one is ended when it runs again
            return
        gpu.daemon, gpu.idle = Daemon.OFF, None
        await self._around.apply()

    async def _set_fault(self, gpu: SlicedGpu, fault: str) -> None:
        failed, gpu.fault = bool(gpu.fault), fault
        if failed or fault:  # also if an event was faster: it is recorded when this returns
            await self._around.report(gpu.uuid)
        if failed and not fault and not self._users(gpu.uuid):
            self._idle_from_now(gpu)


def _through_mps(lease: Lease) -> bool:
    return lease.mode is Mode.SLICE and lease.mps and bool(lease.device_uuids)
