"""The broker's metrics: names and label values exist from the start, so that a dashboard shows zeros.

Units are base units. For GPU hardware metrics, use dcgm-exporter.
"""

from __future__ import annotations

import itertools
from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ...core.disk import Disk
from ...core.errors import all_refusals
from ...core.machine import MachineState, MachineView
from ...core.model import LeaseState
from ...core.want import Mode
from ...node.api import Offence
from ..decide.snapshot import DeviceView, Snapshot
from ..ledger import Result
from .lease_times import LeaseTimes

LOOPS = (
    "reconcile", "events", "hold", "removals", "enforcement", "late", "closures", "reloads", "turns",
    "presence", "members", "images", "disks", "lab_readings", "sampler", "pruning",
)  # fmt: skip
TURN_STEPS = ("pause", "sleep", "wake", "end")
STEPS = ("set_running", "charge", "release", "remove", "adopt")
_LOST = (MachineState.AWAY, MachineState.REFUSED)
DEVICE_STATES = ("free", "in_use", "drained", "out_of_service")
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900)
_WAIT_BUCKETS = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400)


class Metrics:
    """All metrics of one broker, in their own registry.

    `tiers` are the names of the tiers that need a GPU: their queues exist from the start.
    """

    def __init__(self, tiers: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._tiers = set(tiers)
        self._add_leases()
        self._add_failures()
        self._add_guard()
        self._add_disks()
        self._add_nodes()
        self._add_turns()
        self._fill()
        self.lease_times = LeaseTimes(self._waited, self._used)
        """Needs each committed lease: the queue's waits and the GPU-seconds are counted there."""

    def _add_leases(self) -> None:
        self._leases = Gauge(
            "gpuspawner_leases", "Leases that have not ended", ["state"], registry=self.registry
        )
        self._devices = Gauge(
            "gpuspawner_devices", "GPUs and MIG instances", ["mode", "state"], registry=self.registry
        )
        self._queue = Gauge("gpuspawner_queue_length", "Leases that wait", ["tier"], registry=self.registry)
        self._oldest = Gauge(
            "gpuspawner_queue_oldest_seconds", "How long the lease that waits longest has waited", ["tier"],
            registry=self.registry,
        )  # fmt: skip
        self._queue_wait = Histogram(
            "gpuspawner_queue_wait_seconds", "How long leases waited that got their devices", ["tier"],
            buckets=_WAIT_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._gpu_seconds = Counter(
            "gpuspawner_gpu_seconds",
            "Used GPU-seconds: a slice or MIG instance counts as its part of the GPU",
            ["group"],
            registry=self.registry,
        )
        self.acquire_seconds = Histogram(
            "gpuspawner_acquire_seconds",
            "From the request to the lease, waiting included",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.answer_seconds = Histogram(
            "gpuspawner_answer_seconds",
            "From the request for a GPU to its first answer: a lease, or a place in the queue",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "gpuspawner_refusals", "Requests refused", ["reason"], registry=self.registry
        )

    def _add_failures(self) -> None:
        self._steps = Counter(
            "gpuspawner_reconcile_steps", "Steps that made ledger and Docker agree", ["step"],
            registry=self.registry,
        )  # fmt: skip
        self._errors = Counter(
            "gpuspawner_loop_errors", "Rounds of a loop that failed", ["loop"], registry=self.registry
        )
        self._ledger_errors = Counter(
            "gpuspawner_ledger_errors", "Reads and writes of the ledger that failed", registry=self.registry
        )
        self._audit_writes = Counter(
            "gpuspawner_audit_writes", "Changes that people asked for, as the audit log has them", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.docker_up = Gauge(
            "gpuspawner_docker_up", "Whether the last round could read Docker", registry=self.registry
        )

    def _add_guard(self) -> None:
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

    def _add_disks(self) -> None:
        self._free = Gauge(
            "gpuspawner_disk_free_bytes", "Free space of a disk that labs or broker fill", ["holds"],
            registry=self.registry,
        )  # fmt: skip
        self._total = Gauge(
            "gpuspawner_disk_total_bytes", "Size of that disk", ["holds"], registry=self.registry
        )

    def _add_nodes(self) -> None:
        """Of sites with several machines; with a single one they have no values."""
        self._node_devices = Gauge(
            "gpuspawner_node_devices", "GPUs and MIG instances of a machine, of several", ["node", "state"],
            registry=self.registry,
        )  # fmt: skip
        self._node_leases = Gauge(
            "gpuspawner_node_leases", "Leases that hold devices of a machine, of several", ["node"],
            registry=self.registry,
        )  # fmt: skip
        self._node_ready = Gauge(
            "gpuspawner_node_ready", "Whether new servers start on a machine, of several", ["node"],
            registry=self.registry,
        )  # fmt: skip
        self._node_reachable = Gauge(
            "gpuspawner_node_reachable", "Whether the broker reaches a machine, of several", ["node"],
            registry=self.registry,
        )  # fmt: skip

    def _add_turns(self) -> None:
        self._switches = Counter(
            "gpuspawner_turn_switches", "Leases in turns that were paused, moved to host memory or woken",
            ["step", "done"], registry=self.registry,
        )  # fmt: skip
        self._switch_seconds = Histogram(
            "gpuspawner_turn_switch_seconds", "How long that took", ["step"], buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip

    def _fill(self) -> None:
        """All label values that are known from the start."""
        known: dict[Counter | Gauge | Histogram, Iterable[tuple[str, ...]]] = {
            self._leases: ((state.value,) for state in LeaseState if state is not LeaseState.CLOSED),
            self._devices: itertools.product((mode.value for mode in Mode), DEVICE_STATES),
            self._queue: ((tier,) for tier in self._tiers),
            self._oldest: ((tier,) for tier in self._tiers),
            self._queue_wait: ((tier,) for tier in self._tiers),
            self._refusals: ((reason,) for reason in all_refusals()),
            self._steps: ((step,) for step in STEPS),
            self._errors: ((loop,) for loop in LOOPS),
            self._audit_writes: ((result.value,) for result in Result if result is not Result.BEGUN),
            self._ended: ((offence.value,) for offence in Offence),
            self._switches: itertools.product(TURN_STEPS, ("yes", "no")),
            self._switch_seconds: ((step,) for step in TURN_STEPS),
        }
        for metric, labels in known.items():
            for each in labels:
                metric.labels(*each)

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

    def audited(self, result: Result) -> None:
        """Counts a change that somebody asked for."""
        self._audit_writes.labels(result.value).inc()

    def ledger_failed(self) -> None:
        """Counts a read or write of the ledger that failed."""
        self._ledger_errors.inc()

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

    def text(self, snapshot: Snapshot, now: datetime, machines: Sequence[MachineView] = ()) -> bytes:
        """All metrics in Prometheus' text format, with the current leases, devices, queue and machines."""
        states = Tally(lease.state for lease in snapshot.leases)
        for state in LeaseState:
            if state is not LeaseState.CLOSED:
                self._leases.labels(state.value).set(states[state])
        devices = Tally((view.terms.mode, _condition(view)) for view in snapshot.devices)
        for mode in Mode:
            for condition in DEVICE_STATES:
                self._devices.labels(mode.value, condition).set(devices[mode, condition])
        self._set_queue(snapshot, now)
        self._set_nodes(snapshot, machines)
        self.lease_times.settle()
        return generate_latest(self.registry)

    def _set_queue(self, snapshot: Snapshot, now: datetime) -> None:
        waits: dict[str, list[float]] = {}
        for lease in snapshot.leases:
            if lease.state is LeaseState.WAITING:
                waits.setdefault(lease.tier, []).append((now - lease.created_at).total_seconds())
        self._tiers |= waits.keys()
        for tier in self._tiers:
            seconds = waits.get(tier, [])
            self._queue.labels(tier).set(len(seconds))
            self._oldest.labels(tier).set(max(0.0, *seconds) if seconds else 0.0)

    def _set_nodes(self, snapshot: Snapshot, machines: Sequence[MachineView]) -> None:
        for metric in (self._node_devices, self._node_leases, self._node_ready, self._node_reachable):
            metric.clear()
        if len(machines) < 2:
            return
        devices = Tally((view.device.node, _condition(view)) for view in snapshot.devices)
        for machine in machines:
            self._node_leases.labels(machine.name).set(machine.leases)
            self._node_ready.labels(machine.name).set(machine.state is MachineState.READY)
            self._node_reachable.labels(machine.name).set(machine.state not in _LOST)
            for condition in DEVICE_STATES:
                self._node_devices.labels(machine.name, condition).set(devices[machine.name, condition])

    def _waited(self, tier: str, seconds: float) -> None:
        self._queue_wait.labels(tier).observe(seconds)

    def _used(self, group: str, gpu_seconds: float) -> None:
        self._gpu_seconds.labels(group).inc(gpu_seconds)


def _condition(view: DeviceView) -> str:
    """The state of a device; one that is out of service or drained may still be in use."""
    if not view.health.healthy:
        return "out_of_service"
    if view.drain is not None:
        return "drained"
    return "in_use" if view.holders else "free"
