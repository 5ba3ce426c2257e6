"""Builds what API and pages show, from memory: status, tiers, metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.disk import Disk
from ...core.machine import MachineView
from ...core.model import Tier
from ...core.units import utc_now
from ...node.api import NodeFacts, Usage
from ...protocol.messages import TierDocument, TiersDocument, document
from ..decide.snapshot import Snapshot, TurnView
from ..decide.when.deadline import Deadline
from ..leases.allocator import Allocator
from ..ledger import EndedProcess
from ..observe.metrics import Metrics
from ..observe.use import Use
from .documents import News, Served, driver_document, tier_document
from .remembered import StatusMemory

Document = dict[str, Any]
"""Plain JSON values, as the models of `protocol.messages` describe them."""


@dataclass(frozen=True, slots=True)
class About:
    """Besides the leases: facts that don't change while a broker runs, and functions for those that do.

    `blind` returns the devices where no quota is enforced, and why; it also updates its gauge.
    `node` returns the machine's facts: its driver, and why its GPUs can't be listed. `uses` returns what each
    lease uses, `deadline_of` when it ends. `unknown` returns the leases whose server the hub doesn't know,
    `disks` the last readings of the disks, `machines` the machines at the moment of a snapshot. `turns`
    returns, by lease id, where each lease in turns is.
    """

    tiers: tuple[Tier, ...]
    simulated: bool
    metrics: Metrics
    blind: Callable[[], Mapping[str, str]]
    usage: Callable[[], Mapping[str, Usage]]
    ended: Callable[[], tuple[EndedProcess, ...]]
    node: Callable[[], NodeFacts]
    uses: Callable[[], Mapping[str, Use]] = dict
    deadline_of: Callable[[str], Deadline | None] = lambda lease_id: None
    turns: Callable[[], Mapping[str, TurnView]] = dict
    unknown: Callable[[], Collection[str]] = frozenset
    disks: Callable[[], tuple[Disk, ...]] = tuple
    machines: Callable[[Snapshot], tuple[MachineView, ...]] = lambda snapshot: ()


class View:
    """Answers at once, without Docker, NVML or database."""

    def __init__(self, allocator: Allocator, about: About) -> None:
        self._allocator = allocator
        self._about = about
        self._memory = StatusMemory()
        self._tiers: tuple[object, Document] | None = None

    def status(self) -> Document:
        """The whole status document."""
        snapshot = self._allocator.snapshot()
        return self._memory.status(snapshot, self._about.simulated, self._news(snapshot))

    def stamp(self) -> object:
        """Equal to an earlier one as long as the status document is; much cheaper than the document."""
        snapshot = self._allocator.snapshot()
        news = self._news(snapshot)
        ends = tuple(news.deadline_of(lease.id) for lease in snapshot.leases)
        more = (news.uses, frozenset(news.unknown), news.turns, tuple(news.disks), tuple(news.machines))
        return (snapshot, news.usage, news.blind, news.ended, news.fault, ends, *more)

    def _news(self, snapshot: Snapshot) -> News:
        about = self._about
        return News(
            usage=about.usage(),
            blind=about.blind(),
            ended=about.ended(),
            fault=about.node().fault,
            uses=about.uses(),
            deadline_of=about.deadline_of,
            unknown=about.unknown(),
            turns=about.turns(),
            disks=about.disks(),
            machines=about.machines(snapshot),
        )

    def tiers(self) -> Document:
        """The tiers and how much of each is free; made again when devices, leases or queue have changed."""
        about, snapshot = self._about, self._allocator.snapshot()
        source = (snapshot, about.node().driver)
        if self._tiers is None or self._tiers[0] != source:
            tiers = tuple(self._tier(tier) for tier in about.tiers)
            driver = driver_document(about.node().driver)
            made = TiersDocument(simulated=about.simulated, driver=driver, tiers=tiers)
            self._tiers = (source, document(made))
        return self._tiers[1]

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""
        self._about.blind()
        snapshot = self._allocator.snapshot()
        return self._about.metrics.text(snapshot, utc_now(), self._about.machines(snapshot))

    def _tier(self, tier: Tier) -> TierDocument:
        if not tier.needs_gpu:
            return tier_document(tier, None, self._about.simulated)
        allocator, want = self._allocator, tier.want
        served = Served(allocator.capacity(want), allocator.suiting(want), allocator.example(want))
        return tier_document(tier, served, self._about.simulated)
