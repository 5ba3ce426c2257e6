"""The metrics: every name and label value from the start, and what changes them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.decide.snapshot import DeviceView, Snapshot
from gpuspawner.broker.ledger import Result
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.decision import Drain
from gpuspawner.core.errors import all_refusals
from gpuspawner.core.machine import MachineState, MachineView
from gpuspawner.core.model import Device, DeviceHealth, Lease, LeaseState, Mode
from gpuspawner.core.want import Want

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
LEASE = Lease("a" * 32, "hub", "anna", "", "gpu", LeaseState.WAITING, Want(1), NOW, NOW)


def device(
    number: int, mode: Mode = Mode.WHOLE, healthy: bool = True, held: bool = False, drained: bool = False
) -> DeviceView:
    uuid = f"GPU-{number}"
    return DeviceView(
        Device(uuid, "H100", 80 << 30), DeviceHealth(uuid, healthy), (LEASE,) if held else (),
        SharingRules("pool", mode), Drain(NOW, "ines", "fan") if drained else None,
    )  # fmt: skip


def samples(metrics: Metrics, *leases: Lease, devices: tuple[DeviceView, ...] = ()) -> dict[str, float]:
    """The samples but for those that tell when they were made, and the histogram's buckets."""
    found = {}
    text = metrics.text(Snapshot(devices, leases, ()), NOW + timedelta(seconds=90))
    for line in text.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and "_created" not in name and "_bucket" not in name:
            found[name] = float(value)
    return found


def test_everything_is_there_from_the_start() -> None:
    zeros = [
        *(f'gpuspawner_leases{{state="{state}"}}' for state in LeaseState if state != "closed"),
        *(f'gpuspawner_devices{{mode="{mode}",state="{state}"}}' for mode in Mode
          for state in ("free", "in_use", "drained", "out_of_service")),
        *(f'gpuspawner_{name}{{tier="{tier}"}}' for tier in ("gpu", "slice")
          for name in ("queue_length", "queue_oldest_seconds", "queue_wait_seconds_count",
                       "queue_wait_seconds_sum")),
        *(f'gpuspawner_audit_writes_total{{result="{result}"}}' for result in ("done", "refused", "failed")),
        *(f'gpuspawner_refusals_total{{reason="{reason}"}}' for reason in all_refusals()),
        *(f'gpuspawner_reconcile_steps_total{{step="{step}"}}'
          for step in ("set_running", "charge", "release", "remove", "adopt")),
        *(f'gpuspawner_loop_errors_total{{loop="{loop}"}}'
          for loop in ("reconcile", "events", "hold", "removals", "enforcement", "late", "closures",
                       "reloads", "turns", "presence", "members", "images", "disks", "lab_readings",
                       "sampler", "pruning")),
        *(f'gpuspawner_turn_switches_total{{done="{done}",step="{step}"}}'
          for step in ("pause", "sleep", "wake", "end") for done in ("yes", "no")),
        *(f'gpuspawner_turn_switch_seconds_{what}{{step="{step}"}}'
          for step in ("pause", "sleep", "wake", "end") for what in ("count", "sum")),
        *(f'gpuspawner_guard_ended_total{{offence="{offence}"}}'
          for offence in ("memory", "no_lease", "bypassed_mps")),
        "gpuspawner_guard_blind_devices",
        "gpuspawner_mps_deaths_total",
        "gpuspawner_ledger_errors_total",
        "gpuspawner_docker_up",
        "gpuspawner_acquire_seconds_count",
        "gpuspawner_acquire_seconds_sum",
        "gpuspawner_answer_seconds_count",
        "gpuspawner_answer_seconds_sum",
    ]  # fmt: skip
    assert samples(Metrics(["gpu", "slice"])) == dict.fromkeys(zeros, 0.0)


def test_several_machines_are_counted_by_name_and_a_single_one_isn_t() -> None:
    metrics = Metrics([])
    views = tuple(
        replace(each, device=replace(each.device, node=node))
        for node, each in (("a", device(0)), ("b", device(1, healthy=False)))
    )
    machines = (
        MachineView("a", MachineState.READY, leases=3), MachineView("b", MachineState.DRAINING),
    )  # fmt: skip

    def by_node(*machines: MachineView) -> list[str]:
        text = metrics.text(Snapshot(views, (), ()), NOW, machines).decode().splitlines()
        mine = "gpuspawner_node_"
        return sorted(line.removeprefix(mine) for line in text if line.startswith(mine))

    assert by_node(*machines) == [
        'devices{node="a",state="drained"} 0.0', 'devices{node="a",state="free"} 1.0',
        'devices{node="a",state="in_use"} 0.0', 'devices{node="a",state="out_of_service"} 0.0',
        'devices{node="b",state="drained"} 0.0', 'devices{node="b",state="free"} 0.0',
        'devices{node="b",state="in_use"} 0.0', 'devices{node="b",state="out_of_service"} 1.0',
        'leases{node="a"} 3.0', 'leases{node="b"} 0.0', 'reachable{node="a"} 1.0', 'reachable{node="b"} 1.0',
        'ready{node="a"} 1.0', 'ready{node="b"} 0.0',
    ]  # fmt: skip
    assert by_node(machines[0]) == []  # b was forgotten


def test_what_changes_them() -> None:
    metrics = Metrics(["gpu"])
    before = samples(metrics)
    metrics.refused("no_capacity")
    metrics.stepped("adopt")
    metrics.audited(Result.REFUSED)
    metrics.ledger_failed()
    metrics.failed("events")
    metrics.docker_up.set(1)
    metrics.acquire_seconds.observe(0.5)
    metrics.turned("wake", True, 1.5)
    metrics.turned("sleep", False, 2.0)
    later = replace(LEASE, id="b" * 32, created_at=NOW + timedelta(seconds=60))
    other = replace(LEASE, id="c" * 32, tier="new", created_at=NOW + timedelta(seconds=120))
    devices = (
        device(0), device(1, held=True), device(2, Mode.SLICE, held=True), device(3, Mode.SLICE, held=True),
        device(4, healthy=False, held=True, drained=True), device(5, Mode.MIG, held=True, drained=True),
    )  # fmt: skip
    after = samples(metrics, LEASE, later, other, devices=devices)
    assert {name: value for name, value in after.items() if value != before.get(name)} == {
        'gpuspawner_leases{state="waiting"}': 3.0,
        'gpuspawner_devices{mode="whole",state="free"}': 1.0,
        'gpuspawner_devices{mode="whole",state="in_use"}': 1.0,
        'gpuspawner_devices{mode="slice",state="in_use"}': 2.0,
        'gpuspawner_devices{mode="whole",state="out_of_service"}': 1.0,
        'gpuspawner_devices{mode="mig",state="drained"}': 1.0,
        'gpuspawner_refusals_total{reason="no_capacity"}': 1.0,
        'gpuspawner_reconcile_steps_total{step="adopt"}': 1.0,
        'gpuspawner_loop_errors_total{loop="events"}': 1.0,
        'gpuspawner_queue_length{tier="gpu"}': 2.0,
        'gpuspawner_queue_oldest_seconds{tier="gpu"}': 90.0,
        'gpuspawner_queue_length{tier="new"}': 1.0,
        'gpuspawner_queue_oldest_seconds{tier="new"}': 0.0,  # its clock is ahead
        'gpuspawner_audit_writes_total{result="refused"}': 1.0,
        "gpuspawner_ledger_errors_total": 1.0,
        "gpuspawner_docker_up": 1.0,
        "gpuspawner_acquire_seconds_count": 1.0,
        "gpuspawner_acquire_seconds_sum": 0.5,
        'gpuspawner_turn_switches_total{done="yes",step="wake"}': 1.0,
        'gpuspawner_turn_switches_total{done="no",step="sleep"}': 1.0,
        'gpuspawner_turn_switch_seconds_count{step="wake"}': 1.0,
        'gpuspawner_turn_switch_seconds_sum{step="wake"}': 1.5,
    }
    again = samples(metrics)
    assert again['gpuspawner_leases{state="waiting"}'] == 0.0
    assert again['gpuspawner_queue_length{tier="new"}'] == 0.0
    assert again['gpuspawner_queue_oldest_seconds{tier="gpu"}'] == 0.0


def test_a_wait_and_gpu_seconds_get_their_labels() -> None:
    metrics = Metrics(["gpu"])
    granted = replace(LEASE, state=LeaseState.RESERVED, since=NOW + timedelta(seconds=70))
    metrics.lease_times.on_lease(LEASE)
    metrics.lease_times.on_lease(granted)
    running = replace(granted, state=LeaseState.RUNNING, device_uuids=("GPU-0",), groups=("course",))
    metrics.lease_times.on_lease(running)
    found = samples(metrics, running)
    assert found['gpuspawner_queue_wait_seconds_count{tier="gpu"}'] == 1.0
    assert found['gpuspawner_queue_wait_seconds_sum{tier="gpu"}'] == 70.0
    assert found['gpuspawner_gpu_seconds_total{group="course"}'] > 0.0
    assert (
        samples(metrics, running)['gpuspawner_gpu_seconds_total{group="course"}']
        > (found['gpuspawner_gpu_seconds_total{group="course"}'])
    )
