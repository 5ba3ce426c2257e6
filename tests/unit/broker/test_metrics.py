"""The metrics: every name and label value from the start, and what changes them."""

from __future__ import annotations

from datetime import UTC, datetime

from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.errors import all_refusals
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Want

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def samples(metrics: Metrics, *leases: Lease, healthy: tuple[bool, ...] = ()) -> dict[str, float]:
    """The samples but for those that tell when they were made, and the histogram's buckets."""
    found = {}
    for line in metrics.text(leases, healthy).decode().splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and "_created" not in name and "_bucket" not in name:
            found[name] = float(value)
    return found


def test_everything_is_there_from_the_start() -> None:
    zeros = [
        *(f'gpuspawner_leases{{state="{state}"}}' for state in LeaseState if state != "closed"),
        *(f'gpuspawner_devices{{health="{health}"}}' for health in ("healthy", "withdrawn")),
        *(f'gpuspawner_refusals_total{{reason="{reason}"}}' for reason in all_refusals()),
        *(f'gpuspawner_reconcile_steps_total{{step="{step}"}}'
          for step in ("set_running", "charge", "release", "remove", "adopt")),
        *(f'gpuspawner_loop_errors_total{{loop="{loop}"}}'
          for loop in ("reconcile", "events", "hold", "removals", "enforcement", "late", "closures",
                       "reloads", "turns")),
        *(f'gpuspawner_turn_switches_total{{done="{done}",step="{step}"}}'
          for step in ("pause", "sleep", "wake", "end") for done in ("yes", "no")),
        *(f'gpuspawner_turn_switch_seconds_{what}{{step="{step}"}}'
          for step in ("pause", "sleep", "wake", "end") for what in ("count", "sum")),
        *(f'gpuspawner_guard_ended_total{{offence="{offence}"}}'
          for offence in ("memory", "no_lease", "bypassed_mps")),
        "gpuspawner_guard_blind_devices",
        "gpuspawner_mps_deaths_total",
        "gpuspawner_queue_length",
        "gpuspawner_docker_up",
        "gpuspawner_acquire_seconds_count",
        "gpuspawner_acquire_seconds_sum",
    ]  # fmt: skip
    assert samples(Metrics()) == dict.fromkeys(zeros, 0.0)


def test_what_changes_them() -> None:
    metrics = Metrics()
    before = samples(metrics)
    metrics.refused("no_capacity")
    metrics.stepped("adopt")
    metrics.failed("events")
    metrics.docker_up.set(1)
    metrics.acquire_seconds.observe(0.5)
    metrics.turned("wake", True, 1.5)
    metrics.turned("sleep", False, 2.0)
    lease = Lease("a" * 32, "hub", "anna", "", "gpu", LeaseState.WAITING, Want(1), NOW, NOW)
    after = samples(metrics, lease, healthy=(True, False, True))
    assert {name: value for name, value in after.items() if value != before[name]} == {
        'gpuspawner_leases{state="waiting"}': 1.0,
        'gpuspawner_devices{health="healthy"}': 2.0,
        'gpuspawner_devices{health="withdrawn"}': 1.0,
        'gpuspawner_refusals_total{reason="no_capacity"}': 1.0,
        'gpuspawner_reconcile_steps_total{step="adopt"}': 1.0,
        'gpuspawner_loop_errors_total{loop="events"}': 1.0,
        "gpuspawner_queue_length": 1.0,
        "gpuspawner_docker_up": 1.0,
        "gpuspawner_acquire_seconds_count": 1.0,
        "gpuspawner_acquire_seconds_sum": 0.5,
        'gpuspawner_turn_switches_total{done="yes",step="wake"}': 1.0,
        'gpuspawner_turn_switches_total{done="no",step="sleep"}': 1.0,
        'gpuspawner_turn_switch_seconds_count{step="wake"}': 1.0,
        'gpuspawner_turn_switch_seconds_sum{step="wake"}': 1.5,
    }
    assert samples(metrics)['gpuspawner_leases{state="waiting"}'] == 0.0
