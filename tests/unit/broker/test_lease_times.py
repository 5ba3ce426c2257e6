"""Waits and GPU-seconds for the metrics, by example."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from gpuspawner.broker.observe.lease_times import LeaseTimes
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Want

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
WAITING = Lease("a" * 32, "hub", "anna", "", "gpu", LeaseState.WAITING, Want(1), NOW, NOW)
RUNNING = replace(
    WAITING, state=LeaseState.RUNNING, since=NOW + timedelta(seconds=30), device_uuids=("GPU-0",),
    device_fractions=(0.25,), groups=("course", "phd"),
)  # fmt: skip


class Bench:
    """Lease times whose clock the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[tuple[str, float]] = []
        self.used: dict[str, float] = {}
        self.times = LeaseTimes(
            lambda tier, seconds: self.waits.append((tier, seconds)), self._use, lambda: self.now
        )

    def _use(self, group: str, gpu_seconds: float) -> None:
        self.used[group] = self.used.get(group, 0.0) + gpu_seconds


def reserved(seconds: float) -> Lease:
    return replace(WAITING, state=LeaseState.RESERVED, since=NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("seconds", [0.0, 20.0])
def test_a_wait_counts_once_when_the_lease_gets_its_devices(seconds: float) -> None:
    bench = Bench()
    if seconds:
        bench.times.on_lease(WAITING)
    bench.times.on_lease(reserved(seconds))
    bench.times.on_lease(replace(reserved(seconds), notice="The GPU is out of service."))
    bench.times.on_lease(RUNNING)
    assert bench.waits == [("gpu", seconds)]


def test_a_clock_that_was_set_back_makes_no_negative_wait() -> None:
    bench = Bench()
    bench.times.on_lease(reserved(-5.0))
    assert bench.waits == [("gpu", 0.0)]


def test_who_gives_up_did_not_wait_for_devices() -> None:
    bench = Bench()
    bench.times.on_lease(WAITING)
    bench.times.on_lease(replace(WAITING, state=LeaseState.CLOSED))
    assert (bench.waits, bench.used) == ([], {})


def test_gpu_seconds_count_while_the_lease_is_awake_as_its_part_and_for_each_group() -> None:
    bench = Bench()
    bench.times.on_lease(RUNNING)
    bench.now = 8.0
    bench.times.settle()
    assert bench.used == {"course": 2.0, "phd": 2.0}
    bench.now = 12.0
    bench.times.on_lease(replace(RUNNING, state=LeaseState.ASLEEP))
    assert bench.used == {"course": 3.0, "phd": 3.0}
    bench.now = 100.0
    bench.times.settle()
    bench.times.on_lease(RUNNING)
    bench.now = 104.0
    bench.times.on_lease(replace(RUNNING, state=LeaseState.RELEASING))
    bench.times.on_lease(replace(RUNNING, state=LeaseState.CLOSED))
    bench.now = 200.0
    bench.times.settle()
    assert bench.used == {"course": 4.0, "phd": 4.0}


def test_a_broker_that_starts_counts_from_now_on() -> None:
    bench = Bench()
    other = replace(RUNNING, id="b" * 32, groups=(), device_fractions=())
    bench.times.adopt([reserved(20.0), other])
    bench.now = 2.0
    bench.times.on_lease(reserved(20.0))
    bench.times.settle()
    assert (bench.waits, bench.used) == ([], {"(no group)": 2.0})
