"""What API and pages show of the broker, from memory: status, tiers, metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..model import Tier
from ..node.inventory import DriverFacts
from .allocator import Allocator
from .documents import Document, driver_document, status_document, tier_document
from .metrics import Metrics
from .placement import want_of_tier


@dataclass(frozen=True, slots=True)
class About:
    """What doesn't change while a broker runs. `measure` brings gauges up to date that nothing else sets.

    `driver` has the versions of the driver; None where devices are simulated.
    """

    tiers: tuple[Tier, ...]
    simulated: bool
    metrics: Metrics
    measure: Callable[[], object]
    driver: DriverFacts | None = None


class View:
    """Answers at once, without Docker, NVML or database."""

    def __init__(self, allocator: Allocator, about: About) -> None:
        self._allocator = allocator
        self._about = about

    def status(self) -> Document:
        """The whole status document."""
        return status_document(self._allocator.snapshot(), self._about.simulated)

    def tiers(self) -> Document:
        """The tiers with what is free of each."""
        return {
            "simulated": self._about.simulated,
            "driver": driver_document(self._about.driver),
            "tiers": [self._tier(tier) for tier in self._about.tiers],
        }

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""
        self._about.measure()
        healthy = (view.health.healthy for view in self._allocator.snapshot().devices)
        return self._about.metrics.text(self._allocator.leases(), healthy)

    def _tier(self, tier: Tier) -> Document:
        if not tier.needs_gpu:
            return tier_document(tier, None, self._about.simulated)
        want = want_of_tier(tier)
        capacity, share = self._allocator.capacity(want), self._allocator.example(want)
        return tier_document(tier, capacity, self._about.simulated, share)
