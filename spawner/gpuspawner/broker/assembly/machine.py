"""Makes what enforces the leases on the machine with the GPUs."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from ...core.model import ContainerPatch, Lease, Mode
from ...core.units import utc_now
from ...node.api import Node, NodeFacts
from ..api.turns import TurnService
from ..decide.turns import Turn
from ..decide.when.gpu_use import GpuUse, gpu_use
from ..enforce.closures import ClosureParts, Closures
from ..enforce.enforcement import Enforcement, Tools
from ..enforce.late import LateDevices, LateParts
from ..enforce.reloads import ReloadParts, ReloadWatch
from ..enforce.sharing import Sharing
from ..enforce.way_in import WayIn
from ..leases.leasing import LeaseService
from ..observe.journal import Journal
from ..observe.use import Use, use_in_turns, use_of
from ..pages.admin.map import Readings
from .deciding import Deciding
from .ground import Ground


class Machine:
    """One a broker: its node, how the devices are shared, how they get into containers, what enforces it.

    `connect` comes before anything about leases.
    """

    enforcement: Enforcement
    closures: Closures
    late: LateDevices
    reloads: ReloadWatch

    def __init__(
        self, ground: Ground, node: Node, facts: NodeFacts, sharing: Sharing, deciding: Deciding
    ) -> None:
        self._ground, self._deciding = ground, deciding
        self.node, self.simulated = node, facts.simulated
        self._facts, self._sharing = facts, sharing
        self.way_in = WayIn(node, ground.engine, deciding.device_uuids, simulated=facts.simulated)

    def connect(self, service: LeaseService, journal: Journal) -> None:
        """Makes what enforces the leases of this service; nothing runs yet."""
        ground, allocator = self._ground, self._deciding.allocator
        self.enforcement = Enforcement(
            Tools(
                node=self.node,
                facts=self._facts,
                pooling=self._sharing.pooling,
                metrics=ground.metrics,
                journal=journal,
                log=ground.log,
                rank=self._deciding.turn_rank,
            ),
            service,
        )
        allocator.on_lease = self._on_lease
        self.closures = self._make_closures()
        self.late = self._make_late(service)
        self.reloads = self._make_reloads(service)

    def _make_closures(self) -> Closures:
        return Closures(
            ClosureParts(
                node=self.node,
                engine=self._ground.engine,
                way_in=self.way_in,
                devices=lambda: self._sharing.pooling.terms,
                leases=self._deciding.allocator.leases,
                close=self.enforcement.close_to_new,
                metrics=self._ground.metrics,
                log=self._ground.log,
            )
        )

    def _make_late(self, service: LeaseService) -> LateDevices:
        late = LateDevices(
            LateParts(
                sharing=self._sharing,
                service=service,
                enforcement=self.enforcement,
                probe=self.way_in.probe,
                metrics=self._ground.metrics,
                log=self._ground.log,
            )
        )
        self.enforcement.on_facts = late.offer
        return late

    def _make_reloads(self, service: LeaseService) -> ReloadWatch:
        return ReloadWatch(
            ReloadParts(
                engine=self._ground.engine,
                way=lambda: self.way_in.way,
                stamp=self.node.reload_stamp,
                leases=self._deciding.allocator.leases,
                tell=service.tell,
                metrics=self._ground.metrics,
                log=self._ground.log,
            )
        )

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs for the machine until the broker ends, by name."""
        loops = {"late devices": self.late.run()}
        if not self.simulated:
            loops |= {"closures": self.closures.run(), "reloads": self.reloads.run()}
        return loops

    # ---- a lease

    def _on_lease(self, lease: Lease) -> None:
        """The allocator has committed this lease."""
        self._ground.metrics.lease_times.on_lease(lease)
        self.enforcement.on_lease(lease)

    async def prepare(self, lease: Lease) -> None:
        """Prepares the lease's devices for its container. Raises DeviceFault."""
        await self.enforcement.prepare(lease)

    async def before_close(self, lease: Lease) -> None:
        """Docker has no container of the lease any more: closes devices on which a process is left."""
        if not self.simulated:
            await self.closures.before_close(lease)

    def patch(self, lease: Lease, folder: Path) -> ContainerPatch:
        """What the lease changes in its container; pure. `folder` is the lease's own."""
        return self.enforcement.patch(lease, self.way_in.patch(lease, folder))

    async def rest(self, lease: Lease, reason: str) -> bool:
        """In turns, what it has on a GPU moves to main memory; it wakes when its user runs a cell."""
        return self.enforcement.turns.rest(lease.id)

    # ---- what it reads

    @property
    def facts(self) -> NodeFacts:
        """The node's latest facts."""
        return self.enforcement.node_facts()

    @property
    def device_count(self) -> int:
        """How many devices can be leased."""
        return len(self._sharing.pooling.devices)

    @property
    def turns(self) -> TurnService:
        """Who has a turn on its GPUs."""
        return TurnService(self._deciding.allocator, self.enforcement.turns)

    def gpu_use(self, lease: Lease) -> GpuUse:
        """How busy the lease's devices are."""
        devices = {device.uuid: device for device in self.facts.devices}
        return gpu_use(lease, devices, self.enforcement.usage(), utc_now())

    def uses(self) -> dict[str, Use]:
        """What each lease that holds devices uses, as the node read it last."""
        usage = self.enforcement.usage()
        turns = self.enforcement.turns.views()
        held = [lease for lease in self._deciding.allocator.leases() if lease.device_uuids]
        uses = {lease.id: use_of(lease, usage) for lease in held if lease.mode is not Mode.TURNS}
        for lease_id, view in turns.items():
            awake = view.gpu_uuid if view.turn is Turn.AWAKE else None
            uses[lease_id] = use_in_turns(view.memory_bytes, awake, usage)
        return uses

    def readings(self) -> Readings:
        """What the admin's map of the devices shows."""
        views = self.enforcement.turns.views()
        awake_on = {key: view.gpu_uuid for key, view in views.items() if view.gpu_uuid is not None}
        return Readings(self.enforcement.usage(), self.enforcement.xids(), self.enforcement.blind(), awake_on)
