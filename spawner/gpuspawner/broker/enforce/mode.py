"""The interface of a mode: what one way of sharing GPUs does for its leases, and what it may use for that.

A mode keeps one object for each GPU (or pool) that it shares, and says from these what should hold on the
node. The enforcement adds up what all modes say, gives it to the node and passes on what the node reports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...core.model import ContainerPatch, DeviceHealth, Lease
from ...node.api import DaemonPlan, Node, NodeEvent, NodeFacts, Quota
from ..decide.pooling import Pooling
from ..observe.metrics import Metrics


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
class Wishes:
    """What one mode wants to hold on the node; see `DesiredState` for the two."""

    daemons: Mapping[str, DaemonPlan] = field(default_factory=dict)
    undecided: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a mode may use.

    `pooling` gives the present pools. `apply` gives the node what should hold, with what the mode wishes now;
    it returns when the node has taken it over. `report(uuid)` brings a device's health up to date after
    `obstacle` has changed. `tell(lease_id, sentence)` gives a holder a notice, now or later. `spawn` runs
    work in the background; it is cancelled when the broker ends.
    """

    node: Node
    facts: NodeFacts
    holders: Holders
    pooling: Callable[[], Pooling]
    apply: Callable[[], Awaitable[None]]
    report: Callable[[str], Awaitable[None]]
    tell: Callable[[str, str], Awaitable[None]]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    metrics: Metrics
    log: logging.Logger


class SharingMode(Protocol):
    """One way of sharing GPUs. All methods on the event loop; the pure ones are fast."""

    def begin(self) -> None:
        """The broker has started: adopts the leases that exist. Called again when pools were extended."""
        ...

    async def prepare(self, lease: Lease) -> None:
        """The lease's GPUs are ready for its container when this returns. Raises DeviceFault."""
        ...

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """`patch` with what the lease's container needs beside its devices; pure."""
        ...

    def quotas(self, lease: Lease) -> Iterable[Quota]:
        """What the container of the lease may use of each of its devices; pure."""
        ...

    def follow(self, lease: Lease) -> None:
        """The lease was committed in a state in which it holds devices."""
        ...

    def leave(self, lease: Lease) -> None:
        """The lease has ended and holds nothing any more."""
        ...

    def wishes(self) -> Wishes:
        """What should hold on the node for this mode; pure."""
        ...

    def obstacle(self, uuid: str) -> str:
        """Why this mode keeps a healthy device out of use; "" if it doesn't. Pure."""
        ...

    async def on_event(self, event: NodeEvent) -> None:
        """Something on the node has changed that only modes know about, as an MPS daemon; of any GPU."""
        ...

    def end(self) -> frozenset[str]:
        """The broker ends: wishes nothing more for what nobody uses, and says which GPUs these are."""
        ...
