"""GPU-seconds in a period: exact sums, grants, and when nothing is left."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from gpuspawner.broker.decide.allow.budget import (
    Entry,
    Interval,
    Spent,
    applying,
    best,
    describe_spent,
    gpu_seconds_in,
    runs_out_at,
    spend,
)
from gpuspawner.broker.decide.allow.period import window_at
from gpuspawner.core.quota import (
    EVERYBODY,
    UNLIMITED,
    Budget,
    Period,
    PeriodKind,
    Subject,
    SubjectKind,
    Window,
)
from hypothesis import given
from hypothesis import strategies as st

BERLIN = "Europe/Berlin"
WEEK = Period(PeriodKind.WEEK, BERLIN)
DAY = Period(PeriodKind.DAY, BERLIN)
TERM = Period(PeriodKind.TERM, BERLIN, first=date(2026, 10, 12), last=date(2027, 2, 12))
NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)  # a Thursday
THIS_WEEK = Window(datetime(2026, 11, 22, 23, tzinfo=UTC), datetime(2026, 11, 29, 23, tzinfo=UTC))
HOUR = 3600.0


def ago(hours: float) -> datetime:
    return NOW - timedelta(hours=hours)


def test_what_lies_in_the_window_counts_by_what_was_held() -> None:
    begun_before = Interval(THIS_WEEK.start - timedelta(hours=2), 3 * HOUR, 2.0)
    over_the_end = Interval(THIS_WEEK.end - timedelta(hours=1), 3 * HOUR, 0.125)
    outside = Interval(THIS_WEEK.end, HOUR, 1.0)
    found = [gpu_seconds_in(each, THIS_WEEK) for each in (begun_before, over_the_end, outside)]
    assert found == [2 * HOUR, HOUR / 8, 0.0]


def test_grants_count_in_the_run_in_which_they_were_made() -> None:
    budget = Budget(10 * HOUR, WEEK)
    ada = Subject(SubjectKind.USER, "ada")
    entries = [
        Entry(ada, 2 * HOUR, ago(1), "noether", "deadline"),
        Entry(ada, -HOUR, ago(1), "noether", "was too much"),
        Entry(ada, 5 * HOUR, ago(24 * 7), "noether", "last week"),
    ]
    assert spend(budget, [Interval(ago(4), 4 * HOUR, 1.0)], entries, NOW) == Spent(
        budget, THIS_WEEK, 4 * HOUR, HOUR
    )
    assert spend(budget, [], entries, NOW).left_gpu_seconds == 11 * HOUR


def test_entries_of_the_user_their_groups_and_everybody_apply() -> None:
    subjects = [
        EVERYBODY,
        Subject(SubjectKind.USER, "ada"),
        Subject(SubjectKind.USER, "bob"),
        Subject(SubjectKind.GROUP, "phd"),
        Subject(SubjectKind.GROUP, "ada"),
    ]
    entries = [Entry(each, 1.0, NOW, "noether", "") for each in subjects]
    assert applying(entries, "ada", ["phd"]) == [entries[0], entries[1], entries[3]]


def test_outside_of_a_term_nothing_may_be_used() -> None:
    spent = spend(Budget(10 * HOUR, TERM), [], [], datetime(2027, 3, 1, tzinfo=UTC))
    assert (spent.window, spent.left_gpu_seconds) == (None, 0.0)
    assert describe_spent(spent, NOW) == (
        "Your GPU-hours are from 2026-10-12 to 2027-02-12 (Europe/Berlin), and today is not in it: choose "
        "CPU, or ask for a quota."
    )


def test_the_budget_with_the_most_left_decides() -> None:
    week, day = Spent(Budget(10 * HOUR, WEEK), THIS_WEEK, 9 * HOUR), Spent(Budget(3 * HOUR, DAY), THIS_WEEK)
    assert best([week, day]) == day
    assert best([]) is None
    assert best([week, Spent(Budget(UNLIMITED, DAY), THIS_WEEK)]) is None


def test_when_it_runs_out() -> None:
    spent = [Spent(Budget(10 * HOUR, WEEK), THIS_WEEK, 8 * HOUR)]
    assert runs_out_at(spent, 1.0, NOW) == NOW + timedelta(hours=2)
    assert runs_out_at(spent, 4.0, NOW) == NOW + timedelta(minutes=30)
    assert runs_out_at(spent, 0.0, NOW) is None
    assert runs_out_at([], 1.0, NOW) is None
    late = THIS_WEEK.end - timedelta(hours=1)  # the new week comes first
    assert runs_out_at(spent, 1.0, late) is None
    used = [Spent(Budget(10 * HOUR, WEEK), THIS_WEEK, 11 * HOUR)]
    assert runs_out_at(used, 1.0, NOW) == NOW
    term = spend(Budget(9000 * HOUR, TERM), [], [], NOW)
    assert term.window is not None
    assert runs_out_at([term], 1.0, NOW) == term.window.end


@pytest.mark.parametrize(
    ("period", "sentence"),
    [
        (WEEK, "You have used 10.0 of 10 GPU-hours this week; new ones from Monday 00:00 (Europe/Berlin)."),
        (DAY, "You have used 10.0 of 10 GPU-hours today; new ones from Friday 00:00 (Europe/Berlin)."),
        (
            TERM,
            "You have used 10.0 of 10 GPU-hours from 2026-10-12 to 2027-02-12: choose CPU, or ask for more.",
        ),
    ],
)
def test_the_sentence_says_limit_use_and_when_there_is_more(period: Period, sentence: str) -> None:
    spent = Spent(Budget(10 * HOUR, period), window_at(period, NOW), 10 * HOUR)
    assert describe_spent(spent, NOW) == sentence


@given(
    st.datetimes(datetime(2026, 3, 1), datetime(2026, 11, 30)),
    st.lists(st.tuples(st.integers(0, 40 * 86400), st.integers(0, 3 * 86400), st.integers(1, 8)), max_size=8),
    st.sampled_from([BERLIN, "America/New_York", "Pacific/Apia"]),
)
def test_the_sum_over_all_days_is_the_sum_of_the_intervals(
    begin: datetime, drawn: list[tuple[int, int, int]], zone: str
) -> None:
    """A naive model: no second is lost or counted twice at midnight, whatever the clocks do."""
    start = begin.replace(tzinfo=UTC)
    intervals = [
        Interval(start + timedelta(seconds=after), float(length), part / 8) for after, length, part in drawn
    ]
    period, at, total = Period(PeriodKind.DAY, zone), start, 0.0
    while at < start + timedelta(days=45):
        window = window_at(period, at)
        assert window is not None
        total += spend(Budget(1.0, period), intervals, [], at).used_gpu_seconds
        at = window.end
    assert total == pytest.approx(sum(each.seconds * each.charge for each in intervals), abs=1e-6)
