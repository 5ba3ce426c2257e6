"""What hub and broker really serve under `metrics`, for the tests that hold documents to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import jupyterhub.metrics as jupyterhub_metrics
from gpuspawner.broker.decide.snapshot import Snapshot
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.disk import Disk
from gpuspawner.core.machine import MachineState, MachineView
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.hub.metrics import phase_passed
from gpuspawner.hub.progress import Step
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric as Prometheus knows it: a counter has its "_total", a histogram its "le" in the buckets."""

    name: str
    kind: str
    labels: frozenset[str]


def broker_text() -> str:
    """What a broker serves that has one of everything whose label values come with time."""
    metrics = Metrics(["gpu"])
    metrics.disks([Disk("labs", "/var/lib/docker", 100 << 30, 200 << 30)])
    lease = Lease("a" * 32, "hub", "anna", "", "gpu", LeaseState.RUNNING, Want(1), NOW, NOW)
    metrics.lease_times.on_lease(lease)
    metrics.lease_times.on_lease(replace(lease, state=LeaseState.CLOSED))
    machines = (MachineView("a", MachineState.READY), MachineView("b", MachineState.AWAY))
    return metrics.text(Snapshot((), (lease,), ()), NOW, machines).decode()


def hub_text() -> str:
    """What the hub serves: JupyterHub's handler prints the same registry."""
    phase_passed(Step.IMAGE, 1.0)
    jupyterhub_metrics.SERVER_SPAWN_DURATION_SECONDS.labels("failure", "no_capacity").observe(1.0)
    return generate_latest(REGISTRY).decode()


def families(text: str) -> list[Family]:
    """The metrics of a text, but for the times at which they were created."""
    return sorted(_families(text), key=lambda family: family.name)


def _families(text: str) -> Iterator[Family]:
    for found in text_string_to_metric_families(text):
        if not found.name.endswith("_created"):
            name = f"{found.name}_total" if found.type == "counter" else found.name
            yield Family(name, found.type, frozenset(_labels(found)))


def _labels(found: Metric) -> set[str]:
    assert found.samples or not found.name.startswith("gpuspawner_"), f"let this file fill {found.name}"
    return {label for sample in found.samples for label in sample.labels} - {"le"}


Series = Mapping[str, Mapping[str, Collection[str]]]
"""By the name that an expression asks for: the labels, and of each the values that were seen."""


def series() -> Series:
    """Everything that an expression may ask for."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(broker_text() + hub_text()):
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found
