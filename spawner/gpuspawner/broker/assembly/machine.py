"""Makes what enforces the leases on one machine with GPUs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from ... import __version__
from ...core.model import ContainerPatch, Lease, Mode
from ...node.api import Node, NodeFacts
from ...node.engine import ContainerEvent, Engine, EventsConnected
from ..decide.turns import Turn
from ..enforce.closures import ClosureParts, Closures
from ..enforce.enforcement import Enforcement, Tools
from ..enforce.late import LateDevices, LateParts
from ..enforce.on_node import OnNode
from ..enforce.presence import Presence, PresenceParts
from ..enforce.reloads import ReloadParts, ReloadWatch
from ..enforce.sharing import Sharing
from ..enforce.twice import Twice
from ..enforce.way_in import WayIn
from ..leases.folders import Place
from ..leases.leasing import LeaseService
from ..leases.services import enter_swarm
from ..observe.journal import Journal
from ..observe.machine_images import ImageParts, MachineImages
from ..observe.machine_view import Known
from ..observe.use import Use, use_in_turns, use_of
from .deciding import Deciding
from .ground import Ground

_path = cache(Path)
"""The folder of a machine is asked for with each text that goes there, and making a path takes long."""


@dataclass(frozen=True, slots=True)
class FoundNode:
    """A node that has started, what it has, and how that is shared."""

    node: Node
    facts: NodeFacts
    sharing: Sharing


class Machine:
    """One a node: how its devices are shared, how they get into containers, what enforces that.

    `own_engine` is asked about the labs of machines that use the broker's Docker.

    `connect` comes before anything about leases.
    """

    enforcement: Enforcement
    closures: Closures
    images: MachineImages
    late: LateDevices
    presence: Presence
    reloads: ReloadWatch

    def __init__(
        self,
        ground: Ground,
        found: FoundNode,
        deciding: Deciding,
        own_engine: Engine,
    ) -> None:
        self._ground, self._deciding = ground, deciding
        self.node, self.simulated, self.name = found.node, found.facts.simulated, found.facts.name
        self._facts, self._sharing = found.facts, found.sharing
        labels = ground.settings.site.parsed_node_labels()
        self._labels = tuple(sorted(labels.get(self.name, ())))
        self.twice = Twice(self.name, deciding.allocator.node_with, ground.log)
        self.awaited = bool(found.facts.away)
        """Whether it has been away since the broker began: then nobody knows what it has."""
        self.on_known: Callable[[], Awaitable[None]]
        """Called when that is known."""
        self.stretch: Callable[[], float] = lambda: 1.0
        """So many times as long are the pauses between looks at this machine, as there are many of them."""
        self.is_alone: Callable[[], bool] = lambda: False
        """Whether there is no other machine: then every lease is on it, whatever name it had before."""
        self.labs = found.node.labs()
        """Its own Docker and lease folders; None if it uses those of the broker's machine."""
        self.engine = own_engine
        if self.labs is not None:
            self.engine = ground.engine_for(self.name, self.labs.engine)
        enter = None if ground.swarm is None else partial(enter_swarm, ground.swarm, self.name)
        self.way_in = WayIn(self.node, self.engine, self._device_uuids, lambda: self.facts, enter)

    def _device_uuids(self) -> tuple[str, ...]:
        """Of the devices that can be leased, or are, those that this machine has or had."""
        held = (uuid for lease in self._leases() for uuid in lease.device_uuids)
        pooled = (device.uuid for device in self._sharing.pooling.devices)
        return tuple(dict.fromkeys((*pooled, *held)))

    def _leases(self) -> tuple[Lease, ...]:
        allocator = self._deciding.allocator
        return allocator.leases() if self.is_alone() else allocator.leases_on(self.name)

    def connect(self, service: LeaseService, journal: Journal) -> None:
        """Makes what enforces the leases of this service; nothing runs yet."""
        ground = self._ground
        self.enforcement = Enforcement(
            Tools(
                node=self.node,
                facts=self._facts,
                pooling=self._sharing.pooling,
                metrics=ground.metrics,
                journal=journal,
                log=ground.log,
                rank=self._deciding.allocator.turn_rank,
            ),
            OnNode(service, self._leases, self.engine),
        )
        self.closures = self._make_closures()
        self.images = MachineImages(
            ImageParts(
                read=lambda: self.engine.images(),
                note=partial(self._deciding.allocator.note_machine_images, self.name),
                is_needed=lambda: not self.is_alone() and not self.simulated,
                stretch=self._stretched,
            )
        )
        self.late = self._make_late(service)
        self.presence = self._make_presence(service)
        self.reloads = self._make_reloads(service)
        if self.labs is not None:
            self.labs.engine.watch_events(partial(self._on_docker, service))

    def _stretched(self) -> float:
        """The broker's own machine is looked at as often as ever: that costs no message. The others, which
        begin together, would else all be looked at in the same moment."""
        return 1.0 if self.labs is None else self.stretch() * random.uniform(0.8, 1.2)

    def _make_closures(self) -> Closures:
        return Closures(
            ClosureParts(
                node=self.node,
                engine=self.engine,
                way_in=self.way_in,
                devices=lambda: self._sharing.pooling.terms,
                leases=self._leases,
                close=self.enforcement.close_to_new,
                metrics=self._ground.metrics,
                log=self._ground.log,
                stretch=self._stretched,
            )
        )

    def _make_late(self, service: LeaseService) -> LateDevices:
        return LateDevices(
            LateParts(
                sharing=self._sharing,
                service=service,
                enforcement=self.enforcement,
                probe=self.way_in.probe if self.labs is None else self._probe_late,
                metrics=self._ground.metrics,
                log=self._ground.log,
            )
        )

    async def _probe_late(self, uuids: Iterable[str]) -> None:
        """What keeps the late devices of another machine out of use is known before they are."""
        await self.way_in.probe_late(uuids)
        await self.closures.report()

    def _make_presence(self, service: LeaseService) -> Presence:
        own_docker = self.labs is not None
        parts = PresenceParts(
            node=self.name,
            set_away=self.enforcement.set_away,
            take_up=partial(self._take_up, service),
            compare=partial(service.reconcile, self.engine),
            offer=lambda facts: self.late.offer(self.twice.without(facts)),
            metrics=self._ground.metrics,
            log=self._ground.log,
            round_seconds=self._ground.settings.reconcile_seconds if own_docker else None,
            stretch=self._stretched,
        )
        presence = Presence(parts, self._facts)
        self.enforcement.on_facts = presence.on_facts
        return presence

    async def _take_up(self, service: LeaseService, facts: NodeFacts) -> None:
        """The machine is there (again): its devices become known, and the folders of its leases agree."""
        await self.late.take(self.twice.without(facts))
        self.awaited = False
        await self.on_known()
        self.images.look_soon()
        if self.labs is not None:
            leases = self._leases()
            await self.labs.folders.keep_only([lease.id for lease in leases])
            await asyncio.gather(*map(service.refresh, leases))

    def _on_docker(self, service: LeaseService, item: ContainerEvent | EventsConnected) -> None:
        """Its own Docker has reported something. Before the machine serves, that can't be judged."""
        if self.presence.is_taken_up:
            service.on_event(item, self.engine)

    def _make_reloads(self, service: LeaseService) -> ReloadWatch:
        return ReloadWatch(
            ReloadParts(
                engine=self.engine,
                way=lambda: self.way_in.way,
                stamp=self.node.reload_stamp,
                leases=self._leases,
                tell=service.tell,
                metrics=self._ground.metrics,
                log=self._ground.log,
                stretch=self._stretched,
            )
        )

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs for the machine until the broker ends, by name."""
        loops = {
            "late devices": self.late.run(), "presence": self.presence.run(), "images": self.images.run(),
        }  # fmt: skip
        if not self.simulated:
            loops |= {"closures": self.closures.run(), "reloads": self.reloads.run()}
        return {f"{name} of {self.name}": loop for name, loop in loops.items()}

    # ---- a lease

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

    def place(self) -> Place | None:
        """Where the folders of its leases are; None on the broker's own machine."""
        if self.labs is None:
            return None
        facts = self.facts
        return Place(self.labs.folders, _path(facts.lease_folders), facts.simulated, away=bool(facts.away))

    # ---- what it reads

    @property
    def facts(self) -> NodeFacts:
        """The node's latest facts."""
        return self.enforcement.node_facts()

    @property
    def known(self) -> Known:
        """What the list of machines says of it, besides its devices."""
        presence, facts = self.presence, self.facts
        return Known(
            facts,
            presence.obstacle,
            presence.since,
            problem=self.late.problem,
            twice=self.twice.sentences,
            release=facts.contact.release or (__version__ if self.labs is None else ""),
            labels=self._labels,
        )

    @property
    def device_count(self) -> int:
        """How many devices can be leased."""
        return len(self._sharing.pooling.devices)

    def uses(self) -> dict[str, Use]:
        """What each lease that holds devices uses, as the node read it last."""
        usage = self.enforcement.usage()
        turns = self.enforcement.turns.views()
        held = [lease for lease in self._leases() if lease.device_uuids]
        uses = {lease.id: use_of(lease, usage) for lease in held if lease.mode is not Mode.TURNS}
        for lease_id, view in turns.items():
            awake = view.gpu_uuid if view.turn is Turn.AWAKE else None
            uses[lease_id] = use_in_turns(view.memory_bytes, awake, usage)
        return uses
