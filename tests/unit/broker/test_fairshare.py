"""Decayed use: against the integral worked out step by step, and what a share counts as."""

from __future__ import annotations

import math

import pytest
from gpuspawner.broker.decide.line.fairshare import PREPAID_SECONDS, FairShare, part_of
from gpuspawner.broker.decide.place.placement import Room, Share
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.core.model import Device
from gpuspawner.core.want import Mode
from hypothesis import given
from hypothesis import strategies as st

DAY, WEEK = 86400.0, 7 * 86400.0


def naive(periods: list[tuple[float, float, float]], now: float) -> float:
    """The integral of devices times 2^(-age / week), in steps of the closed form."""
    rate = math.log(2) / WEEK
    return sum(
        devices * (math.exp(-(now - ended) * rate) - math.exp(-(now - began) * rate)) / rate
        for devices, began, ended in periods
    )


def test_after_a_half_life_use_counts_half() -> None:
    fair = FairShare(WEEK)
    fair.hold("ada", "cs", 2, 0)
    fair.hold("ada", "cs", -2, 60)
    assert fair.user_use("ada", 60) == pytest.approx(120, rel=1e-4)
    assert fair.user_use("ada", 60 + WEEK) == pytest.approx(60, rel=1e-4)
    assert fair.group_use("cs", 60 + 2 * WEEK) == pytest.approx(30, rel=1e-4)
    assert (fair.user_held("ada"), fair.user_use("ben", 60), fair.group_held("math")) == (0, 0, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ada", "ben"]),
            st.sampled_from([0.125, 1.0, 4.0]),
            st.floats(0, 60 * DAY),
            st.floats(0, 20 * DAY),
        ),
        max_size=12,
    )
)
def test_use_is_the_integral(held: list[tuple[str, float, float, float]]) -> None:
    """However the periods of several leases overlap, and whether seen live or read from the ledger."""
    live, read, now = FairShare(WEEK), FairShare(WEEK), 90 * DAY
    events = [(began, user, devices) for user, devices, began, _ in held]
    events += [(began + lasted, user, -devices) for user, devices, began, lasted in held]
    for at, user, devices in sorted(events):
        live.hold(user, "all", devices, at)
    for user, devices, began, lasted in held:
        read.add_past(user, "all", devices, began, began + lasted)
    for user in ("ada", "ben"):
        own = [(devices, began, began + lasted) for who, devices, began, lasted in held if who == user]
        assert live.user_use(user, now) == pytest.approx(naive(own, now), abs=1e-3)
        assert read.user_use(user, now) == pytest.approx(naive(own, now), abs=1e-3)
        assert live.user_held(user) == 0
    everybody = [(devices, began, began + lasted) for _, devices, began, lasted in held]
    assert live.group_use("all", now) == pytest.approx(naive(everybody, now), abs=1e-3)


def test_a_clock_that_goes_back_takes_no_use_away() -> None:
    fair = FairShare(WEEK)
    fair.hold("ada", "", 1, 1000)
    fair.hold("ada", "", -1, 900)
    assert fair.user_use("ada", 1000) == 0.0
    fair.hold("ada", "", 1, 1000)
    assert 0 < fair.user_use("ada", 1010) <= 10


def test_use_is_exact_over_a_thousand_half_lives() -> None:
    """With a half-life of an hour, years pass: the numbers inside are written anew before they overflow."""
    fair = FairShare(3600.0)
    for day in range(1000):
        fair.hold("ada", "", 1, day * DAY)
        fair.hold("ada", "", -1, day * DAY + 3600)
    fair.hold("ben", "", 2, 1000 * DAY)
    now = 1000 * DAY + 3600
    rate = math.log(2) / 3600
    ada = sum(0.5 ** ((now - day * DAY - 3600) / 3600) * 0.5 / rate for day in range(990, 1000))
    assert fair.user_use("ada", now) == pytest.approx(ada, rel=1e-6)
    assert fair.user_use("ben", now) == pytest.approx(2 * 0.5 / rate, rel=1e-9)
    expected = [fair.user_use("ada", now), fair.user_use("ben", now) + 3 * PREPAID_SECONDS]
    assert fair.user_standings(["ada", "ben"], now, {"ben": 1.0}) == pytest.approx(expected)


def test_a_half_life_must_be_positive() -> None:
    with pytest.raises(ValueError, match="the half-life is 0 seconds, and must be more than 0"):
        FairShare(0)


EIGHTHS = SharingRules("eighths", Mode.SLICE, slices=8)


@pytest.mark.parametrize(
    ("room", "memory_bytes", "part"),
    [
        (Room(Device("GPU-0", "H100", 80 << 30)), 80 << 30, 1.0),
        (Room(Device("GPU-0", "H100", 80 << 30), terms=EIGHTHS), 10 << 30, 0.125),
        (Room(Device("GPU-0", "H100", 80 << 30), terms=EIGHTHS), 1 << 30, 0.125),
        (Room(Device("MIG-0", "H100 MIG 3g.40gb", 40 << 30, gpu_fraction=0.5)), 40 << 30, 0.5),
    ],
)
def test_what_a_share_counts_as(room: Room, memory_bytes: int, part: float) -> None:
    assert part_of(Share(room.device.uuid, memory_bytes, 25.0), room) == pytest.approx(part)
