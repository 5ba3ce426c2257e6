"""Meters and curves: what is known, what is left, and gaps."""

from __future__ import annotations

import pytest
from gpuspawner.broker.observe.sampler import POINTS, Point
from gpuspawner.broker.pages.meters import (
    Curve,
    Meter,
    compute_curve,
    compute_meter,
    memory_curve,
    memory_meter,
    reading,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    ("used", "meter"),
    [
        (0, Meter(0.0, "0 B of 8.0 GiB", "8.0 GiB left")),
        (6 * GIB, Meter(75.0, "6.0 GiB of 8.0 GiB", "2.0 GiB left")),
        (7 * GIB + GIB // 2, Meter(93.75, "7.5 GiB of 8.0 GiB", "512 MiB left", "warning")),
        (8 * GIB, Meter(100.0, "8.0 GiB of 8.0 GiB", "0 B left", "warning")),
        (9 * GIB, Meter(112.5, "9.0 GiB of 8.0 GiB", "over the quota", "danger")),
        (None, Meter(None, "not known now · 8.0 GiB are yours")),
    ],
)
def test_memory(used: int | None, meter: Meter) -> None:
    assert memory_meter(used, 8 * GIB) == meter


def test_a_bar_never_leaves_its_box() -> None:
    assert [Meter(percent, "").width for percent in (None, 0.0, 33.333, 112.5)] == [
        "0",
        "0.0",
        "33.3",
        "100.0",
    ]


def test_a_simulated_gpu_has_nothing_to_measure() -> None:
    assert memory_meter(0, 80 * GIB, simulated=True) == Meter(
        None, "80 GiB; a simulated GPU has nothing to measure"
    )


def test_compute() -> None:
    assert compute_meter(71.4) == Meter(71.4, "71 % busy")
    assert compute_meter(None) == Meter(None, "not known")


def test_what_the_script_writes_into_the_meters() -> None:
    assert reading({"used_bytes": 6 * GIB, "memory_bytes": 8 * GIB, "busy_percent": 50.0}) == {
        "memory": ["6.0 GiB of 8.0 GiB", "75.0", "2.0 GiB left", ""],
        "compute": ["50 % busy", "50.0", "", ""],
    }


def test_the_newest_point_is_at_the_right_edge_and_gaps_stay_open() -> None:
    points = [Point(4 * GIB, 10.0), Point(None, None), Point(8 * GIB, 30.0), Point(6 * GIB, 20.0)]
    left = POINTS - 4
    assert memory_curve(points, 8 * GIB) == Curve(
        line=f"M{left} 50 L{left + 1} 50 M{left + 2} 0 L{left + 3} 25 L{left + 4} 25",
        area=f"M{left} 100 L{left} 50 L{left + 1} 50 L{left + 1} 100 Z "
        f"M{left + 2} 100 L{left + 2} 0 L{left + 3} 25 L{left + 4} 25 L{left + 4} 100 Z",
        words="in the last hour at most 8.0 GiB of 8.0 GiB",
    )
    found = compute_curve(points)
    assert found is not None
    assert found.words == "in the last hour 20 % busy on average"


def test_without_readings_there_is_no_curve() -> None:
    assert memory_curve([Point(None, None)], GIB) is None
    assert memory_curve([], GIB) is None
    assert compute_curve([Point(GIB, None)]) is None
