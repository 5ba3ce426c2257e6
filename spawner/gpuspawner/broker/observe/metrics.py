"""The broker's metrics: names and label values exist from the start, so that a dashboard shows zeros.

Units are base units. For GPU hardware metrics, use dcgm-exporter.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ...core.disk import Disk
from ...core.errors import all_refusals
from ...core.model import Lease, LeaseState
from ...node.api import Offence

LOOPS = ("reconcile", "events", "hold", "removals", "enforcement", "late", "closures", "reloads", "turns")
TURN_STEPS = ("pause", "sleep", "wake", "end")
STEPS = ("set_running", "charge", "release", "remove", "adopt")
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900)


class Metrics:
    """All metrics of one broker, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._leases = Gauge(
            "gpuspawner_leases", "Leases that have not ended", ["state"], registry=self.registry
        )
        self._devices = Gauge("gpuspawner_devices", "Devices", ["health"], registry=self.registry)
        self._queue = Gauge("gpuspawner_queue_length", "Leases that wait", registry=self.registry)
        self.acquire_seconds = Histogram(
            "gpuspawner_acquire_seconds",
            "From the request to the lease, waiting included",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "gpuspawner_refusals", "Requests refused", ["reason"], registry=self.registry
        )
        self._steps = Counter(
            "gpuspawner_reconcile_steps", "Steps that made ledger and Docker agree", ["step"],
            registry=self.registry,
        )  # fmt: skip
        self._errors = Counter(
            "gpuspawner_loop_errors", "Rounds of a loop that failed", ["loop"], registry=self.registry
        )
        self._ended = Counter(
            "gpuspawner_guard_ended", "Processes that the guard ended", ["offence"], registry=self.registry
        )
        self._mps_deaths = Counter(
            "gpuspawner_mps_deaths", "MPS daemons that ended by themselves", registry=self.registry
        )
        self.guard_blind = Gauge(
            "gpuspawner_guard_blind_devices",
            "Devices whose processes can't be read: no quota is enforced there",
            registry=self.registry,
        )
        self._free = Gauge(
            "gpuspawner_disk_free_bytes", "Free space of a disk that labs or broker fill", ["holds"],
            registry=self.registry,
        )  # fmt: skip
        self._total = Gauge(
            "gpuspawner_disk_total_bytes", "Size of that disk", ["holds"], registry=self.registry
        )
        self.docker_up = Gauge(
            "gpuspawner_docker_up", "Whether the last round could read Docker", registry=self.registry
        )
        self._switches = Counter(
            "gpuspawner_turn_switches", "Leases in turns that were paused, moved to host memory or woken",
            ["step", "done"], registry=self.registry,
        )  # fmt: skip
        self._switch_seconds = Histogram(
            "gpuspawner_turn_switch_seconds", "How long that took", ["step"], buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        for kind in TURN_STEPS:
            self._switch_seconds.labels(kind)
            for done in ("yes", "no"):
                self._switches.labels(kind, done)
        for state in LeaseState:
            if state is not LeaseState.CLOSED:
                self._leases.labels(state.value)
        for health in ("healthy", "withdrawn"):
            self._devices.labels(health)
        for reason in all_refusals():
            self._refusals.labels(reason)
        for step in STEPS:
            self._steps.labels(step)
        for offence in Offence:
            self._ended.labels(offence.value)
        for loop in LOOPS:
            self._errors.labels(loop)

    def refused(self, reason: str) -> None:
        """Counts a refusal."""
        self._refusals.labels(reason).inc()

    def stepped(self, step: str) -> None:
        """Counts a step of the reconciliation."""
        self._steps.labels(step).inc()

    def ended(self, offence: Offence) -> None:
        """Counts a process that the guard ended."""
        self._ended.labels(offence.value).inc()

    def turned(self, step: str, done: bool, seconds: float) -> None:
        """Counts a pause, a move to host memory, a wake or an end; `done` False: it was refused or failed."""
        self._switches.labels(step, "yes" if done else "no").inc()
        if done:
            self._switch_seconds.labels(step).observe(seconds)

    def mps_died(self) -> None:
        """Counts an MPS daemon that ended by itself."""
        self._mps_deaths.inc()

    def failed(self, loop: str) -> None:
        """Counts a failed round of a loop."""
        self._errors.labels(loop).inc()

    def disks(self, disks: Iterable[Disk]) -> None:
        """The last readings of the disks; one that can't be read has no value."""
        self._free.clear()
        self._total.clear()
        for disk in disks:
            self._free.labels(disk.holds).set(disk.free_bytes)
            self._total.labels(disk.holds).set(disk.total_bytes)

    def text(self, leases: Iterable[Lease], healthy: Iterable[bool]) -> bytes:
        """All metrics in Prometheus' text format, with the current leases and devices."""
        states = Tally(lease.state for lease in leases)
        for state in LeaseState:
            if state is not LeaseState.CLOSED:
                self._leases.labels(state.value).set(states[state])
        self._queue.set(states[LeaseState.WAITING])
        healths = Tally(healthy)
        self._devices.labels("healthy").set(healths[True])
        self._devices.labels("withdrawn").set(healths[False])
        return generate_latest(self.registry)
