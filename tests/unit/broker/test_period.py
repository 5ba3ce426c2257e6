"""Days, weeks and terms, also where the clocks change."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from gpuspawner.broker.decide.allow.period import format_local, midnight, window_at, words
from gpuspawner.core.quota import Period, PeriodKind, Window
from hypothesis import given
from hypothesis import strategies as st

BERLIN = "Europe/Berlin"
ZONES = (
    "UTC",
    BERLIN,
    "America/New_York",
    "Asia/Kolkata",
    "America/Sao_Paulo",
    "Africa/Cairo",
    "Pacific/Apia",
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_day_is_a_day_of_the_zone() -> None:
    day = Period(PeriodKind.DAY, BERLIN)
    assert window_at(day, utc("2026-11-25T23:30")) == Window(utc("2026-11-25T23:00"), utc("2026-11-26T23:00"))
    assert window_at(day, utc("2026-11-25T22:59")) == Window(utc("2026-11-24T23:00"), utc("2026-11-25T23:00"))


@pytest.mark.parametrize(("at", "hours"), [("2026-03-29T12:00", 23), ("2026-10-25T12:00", 25)])
def test_a_day_on_which_the_clocks_change_is_as_long_as_it_is(at: str, hours: int) -> None:
    window = window_at(Period(PeriodKind.DAY, BERLIN), utc(at))
    assert window is not None
    assert window.end - window.start == timedelta(hours=hours)


def test_a_week_begins_on_its_weekday() -> None:
    thursday = utc("2026-11-26T12:00")
    monday = window_at(Period(PeriodKind.WEEK, BERLIN), thursday)
    sunday = window_at(Period(PeriodKind.WEEK, BERLIN, first_weekday=6), thursday)
    friday = window_at(Period(PeriodKind.WEEK, BERLIN, first_weekday=4), thursday)
    assert monday == Window(utc("2026-11-22T23:00"), utc("2026-11-29T23:00"))
    assert sunday == Window(utc("2026-11-21T23:00"), utc("2026-11-28T23:00"))
    assert friday == Window(utc("2026-11-19T23:00"), utc("2026-11-26T23:00"))


def test_a_term_has_both_its_days_and_none_beside() -> None:
    term = Period(PeriodKind.TERM, BERLIN, first=date(2026, 10, 12), last=date(2027, 2, 12))
    whole = Window(utc("2026-10-11T22:00"), utc("2027-02-12T23:00"))
    assert window_at(term, whole.start) == whole
    assert window_at(term, whole.end - timedelta(microseconds=1)) == whole
    assert window_at(term, whole.start - timedelta(microseconds=1)) is None
    assert window_at(term, whole.end) is None


def test_a_midnight_that_does_not_exist_is_the_first_moment_of_its_day() -> None:
    # On 4 November 2018 São Paulo's clocks went from 00:00 to 01:00; Apia had no 30 December 2011.
    assert midnight(date(2018, 11, 4), "America/Sao_Paulo") == utc("2018-11-04T03:00")
    assert midnight(date(2011, 12, 31), "Pacific/Apia") == utc("2011-12-30T10:00")


@given(
    st.sampled_from(ZONES),
    st.sampled_from([PeriodKind.DAY, PeriodKind.WEEK]),
    st.integers(0, 6),
    st.datetimes(datetime(2012, 1, 2), datetime(2030, 1, 1)),
)
def test_windows_follow_one_another_without_a_gap(
    zone: str, kind: PeriodKind, weekday: int, at: datetime
) -> None:
    period = Period(kind, zone, weekday)
    now = at.replace(tzinfo=UTC)
    window = window_at(period, now)
    assert window is not None
    assert window.start <= now < window.end
    following = window_at(period, window.end)
    assert following is not None
    assert following.start == window.end
    first = window.start.astimezone(ZoneInfo(zone))
    before = (window.start - timedelta(seconds=1)).astimezone(ZoneInfo(zone))
    assert before.date() < first.date()
    if kind is PeriodKind.WEEK:
        assert first.weekday() == weekday


def test_words_for_people() -> None:
    now = utc("2026-11-26T12:00")
    assert format_local(utc("2026-11-29T23:00"), BERLIN, now) == "Monday 00:00 (Europe/Berlin)"
    assert format_local(utc("2026-12-24T23:00"), BERLIN, now) == "2026-12-25 00:00 (Europe/Berlin)"
    term = Period(PeriodKind.TERM, BERLIN, first=date(2026, 10, 12), last=date(2027, 2, 12))
    assert [words(Period(PeriodKind.DAY)), words(Period(PeriodKind.WEEK)), words(term)] == [
        "today", "this week", "from 2026-10-12 to 2027-02-12",
    ]  # fmt: skip
