"""Bars on a day's line: where they stand, beside each other where a device is shared, and how busy it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gpuspawner.broker.ledger import Held
from gpuspawner.broker.pages.admin.timeline import LEAST_PERCENT, Bar, Span, Tick, colour_of, make_timeline
from hypothesis import given
from hypothesis import strategies as st

START = datetime(2026, 11, 25, 12, tzinfo=UTC)
DAY = Span(START, START + timedelta(days=1), "Europe/Berlin")
GPUS = (("GPU-0", "H100 #0"), ("GPU-1", "H100 #1"))


def held(number: int, begins_hours: float, ends_hours: float | None, uuid: str = "GPU-0") -> Held:
    at = [None if each is None else START + timedelta(hours=each) for each in (begins_hours, ends_hours)]
    assert at[0] is not None
    return Held(uuid, f"{number:032x}", "hub", f"user{number}", "", "gpu", at[0], at[1])


def test_a_bar_with_all_its_values() -> None:
    found = make_timeline(GPUS, [held(1, 6, 12)], DAY)
    assert found.lines[0].bars == (
        Bar(25.0, 25.0, 0, colour_of("user1"), "user1", "user1, gpu: Wed 19:00 to 01:00", False),
    )
    assert [(line.name, line.lanes, line.busy_percent) for line in found.lines] == [
        ("H100 #0", 1, 25.0), ("H100 #1", 1, 0.0),
    ]  # fmt: skip
    assert found.ticks[:2] == (Tick(8.333, "15:00"), Tick(20.833, "18:00"))
    assert len(found.ticks) == 8


def test_what_began_before_and_what_still_goes_on() -> None:
    bars = make_timeline(GPUS, [held(1, -5, 6), held(2, 18, None), held(3, -9, -1)], DAY).lines[0].bars
    assert [(bar.user, bar.from_percent, bar.width_percent, bar.open) for bar in bars] == [
        ("user1", 0.0, 25.0, False), ("user2", 75.0, 25.0, True),
    ]  # fmt: skip
    assert bars[1].title.endswith("07:00 to now")


def test_a_short_one_can_be_seen_also_at_the_end() -> None:
    bars = (
        make_timeline(GPUS, [held(1, 1, 1.001), held(2, 24, None), held(3, 23.999, None)], DAY).lines[0].bars
    )
    assert [bar.user for bar in bars] == ["user1", "user3"]
    for bar in bars:
        assert bar.width_percent == LEAST_PERCENT
        assert bar.from_percent + bar.width_percent <= 100


def test_shares_of_one_device_stand_in_lanes() -> None:
    line = make_timeline(GPUS, [held(1, 0, 8), held(2, 4, 12), held(3, 8, 16)], DAY).lines[0]
    assert [(bar.user, bar.lane) for bar in line.bars] == [("user1", 0), ("user2", 1), ("user3", 0)]
    assert (line.lanes, line.busy_percent) == (2, 66.7)


@given(st.lists(st.tuples(st.floats(-10, 30), st.none() | st.floats(0, 12)), max_size=12))
def test_bars_of_a_lane_don_t_overlap_and_stay_inside(drawn: list[tuple[float, float | None]]) -> None:
    all_held = [
        held(number, begin, None if length is None else begin + length)
        for number, (begin, length) in enumerate(drawn)
    ]
    line = make_timeline(GPUS, all_held, DAY).lines[0]
    assert 0 <= line.busy_percent <= 100
    for bar in line.bars:
        assert bar.from_percent >= 0
        assert bar.from_percent + bar.width_percent <= 100.01
        assert 0 <= bar.lane < line.lanes
    by_lane: dict[int, float] = {}
    for bar in line.bars:
        assert bar.from_percent >= by_lane.get(bar.lane, 0.0) - LEAST_PERCENT - 0.01
        by_lane[bar.lane] = bar.from_percent + bar.width_percent
