"""The interface of a mode (one way of sharing GPUs), and the objects that a mode may use.

A mode keeps one object for each GPU (or pool) that it shares, and computes its part of the node's desired
state from them. The enforcement combines the parts of all modes, gives them to the node and passes on its
reports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...core.model import ContainerPatch, DeviceHealth, Lease
from ...node.api import DaemonPlan, Node, NodeEvent, NodeFacts, Quota
from ..decide.place.pooling import Pooling
from ..decide.turns import NO_RANK, Rank
from ..observe.metrics import Metrics


class CommonHolders(Protocol):
    """The lease service: the leases, and notices to their holders.

    `ready` is set when Docker has been compared with the ledger: before that, a lease may be missing here.
    """

    ready: asyncio.Event

    def leases(self) -> tuple[Lease, ...]:
        """All leases that have not ended."""
        ...

    def is_drained(self, uuid: str) -> bool:
        """Whether an admin lets nobody new on the device."""
        ...

    async def tell(self, lease_id: str, sentence: str) -> None:
        """Gives the holder a notice. Raises LedgerFault."""
        ...

    async def set_turn(self, lease_id: str, awake: bool, ago_seconds: float) -> None:
        """Records that a lease in turns has a GPU now, or none, since `ago_seconds`. Raises LedgerFault."""
        ...

    async def say_turn(self, lease_id: str, sentence: str) -> None:
        """Shows a line in the lab while a cell waits for a GPU; "" removes it. Raises LedgerFault."""
        ...

    async def set_health(self, *healths: DeviceHealth) -> None:
        """Puts devices out of service or back into service. Raises LedgerFault."""
        ...


class Holders(CommonHolders, Protocol):
    """The leases of one node, and notices to their holders."""

    async def main_pid(self, container_id: str) -> int | None:
        """The container's first process, on the host; None if it doesn't run. Raises EngineFault."""
        ...


@dataclass(frozen=True, slots=True)
class Wishes:
    """One mode's part of the desired state; see `DesiredState` for the two fields."""

    daemons: Mapping[str, DaemonPlan] = field(default_factory=dict)
    undecided: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The objects and functions that a mode may use.

    `read_facts` returns the node's latest facts, `pooling` the current pools. `apply` sends the desired
    state, with the mode's current part, to the node, and returns when the node has accepted it.
    `report(uuid)` updates a device's health after `obstacle` has changed. `tell(lease_id, sentence)` gives a
    holder a notice, now or later. `spawn` runs work in the background; it is cancelled when the broker ends.
    `hardware(uuid)` is the health of a device's hardware, and `rank(lease)` its place among those that want a
    turn.
    """

    node: Node
    read_facts: Callable[[], NodeFacts]
    holders: Holders
    pooling: Callable[[], Pooling]
    apply: Callable[[], Awaitable[None]]
    report: Callable[[str], Awaitable[None]]
    tell: Callable[[str, str], Awaitable[None]]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    metrics: Metrics
    log: logging.Logger
    hardware: Callable[[str], DeviceHealth] = lambda uuid: DeviceHealth(uuid, healthy=True)
    rank: Callable[[Lease], Rank] = lambda lease: NO_RANK

    @property
    def facts(self) -> NodeFacts:
        """The node's latest facts."""
        return self.read_facts()


class SharingMode(Protocol):
    """One way of sharing GPUs. Call all methods on the event loop; the pure ones are fast."""

    def begin(self) -> None:
        """Adopts existing leases when the broker starts. Called again when devices are added to pools."""
        ...

    async def prepare(self, lease: Lease) -> None:
        """Prepares the lease's GPUs for its container. Raises DeviceFault."""
        ...

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """`patch`, with what the lease's container needs besides its devices; pure."""
        ...

    def quotas(self, lease: Lease) -> Iterable[Quota]:
        """The quotas of the lease's container on each of its devices; pure."""
        ...

    def follow(self, lease: Lease) -> None:
        """Called when a lease was committed in a state in which it holds devices."""
        ...

    def leave(self, lease: Lease) -> None:
        """Called when a lease has ended and holds nothing any more."""
        ...

    def wishes(self) -> Wishes:
        """This mode's part of the desired state; pure."""
        ...

    def obstacle(self, uuid: str) -> str:
        """Why this mode keeps a healthy device out of service; "" if it doesn't. Pure."""
        ...

    async def on_event(self, event: NodeEvent) -> None:
        """Handles a node's event that only modes understand, such as an MPS change; for any GPU."""
        ...

    def end(self) -> frozenset[str]:
        """Called when the broker ends: removes unused GPUs from the desired state, and returns them."""
        ...
