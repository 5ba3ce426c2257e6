"""One week of lab sessions: where each stands, what was moved or cancelled, and nights and clocks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, time

from gpuspawner.broker.pages.classes.week import Entry, Kind, Week, make_week
from gpuspawner.core.session import Change, LabSession
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)  # a Thursday, 10:30 in Berlin
LAB = LabSession(
    "cs231n", "cs1", "gpu", 8, date(2026, 11, 5), time(10), 7200.0, "FREQ=WEEKLY;BYDAY=TH", "Europe/Berlin"
)


def week(*sessions: LabSession, day: date = date(2026, 11, 26)) -> Week:
    return make_week(sessions, day, "Europe/Berlin", NOW)


def shown(found: Week) -> list[tuple[str, str, str, str]]:
    return [
        (day.title, entry.kind.value, f"{entry.begins}-{entry.ends}", entry.note)
        for day in found.days
        for entry in day.entries
    ]


def test_a_meeting_with_all_its_values() -> None:
    found = week(LAB)
    assert [(day.title, day.today, len(day.entries)) for day in found.days] == [
        ("Mon 23 Nov", False, 0), ("Tue 24 Nov", False, 0), ("Wed 25 Nov", False, 0), ("Thu 26 Nov", True, 1),
        ("Fri 27 Nov", False, 0), ("Sat 28 Nov", False, 0), ("Sun 29 Nov", False, 0),
    ]  # fmt: skip
    assert found.days[3].entries == (
        Entry(LAB, date(2026, 11, 26), Kind.MEETS, "10:00", "12:00", 600, 720, kept_minutes=60, now=True),
    )
    assert (found.title, found.first_hour, found.last_hour) == ("23 to 29 November 2026", 8, 18)
    assert (found.before, found.after) == (date(2026, 11, 16), date(2026, 11, 30))


def test_a_cancelled_date_stays_visible() -> None:
    assert shown(week(replace(LAB, exdates=(date(2026, 11, 26),)))) == [
        ("Thu 26 Nov", "skipped", "10:00-12:00", "Doesn't meet on this day.")
    ]


def test_a_moved_meeting_is_shown_at_both_places() -> None:
    moved = Change(date(2026, 11, 26), datetime(2026, 11, 27, 14), 5400.0)
    assert shown(week(replace(LAB, changes=(moved,)))) == [
        ("Thu 26 Nov", "away", "10:00-12:00", "Moved to Fri 27 Nov, 14:00."),
        ("Fri 27 Nov", "moved", "14:00-15:30", "Moved here from Thu 26 Nov."),
    ]


def test_a_meeting_that_is_only_longer_is_there_once() -> None:
    longer = Change(date(2026, 11, 26), datetime(2026, 11, 26, 10), 9000.0)
    assert shown(week(replace(LAB, changes=(longer,)))) == [
        ("Thu 26 Nov", "meets", "10:00-12:30", "Not as long as usual, or longer.")
    ]


def test_a_meeting_from_another_week_moves_in() -> None:
    moved = Change(date(2026, 11, 19), datetime(2026, 11, 24, 9), 3600.0)
    assert shown(week(replace(LAB, changes=(moved,)))) == [
        ("Tue 24 Nov", "moved", "09:00-10:00", "Moved here from Thu 19 Nov."),
        ("Thu 26 Nov", "meets", "10:00-12:00", ""),
    ]


def test_what_overlaps_stands_side_by_side() -> None:
    others = [
        replace(LAB, name="b", begins=time(11), length_seconds=7200.0),
        replace(LAB, name="c", begins=time(12), length_seconds=3600.0),
        replace(LAB, name="d", begins=time(15), length_seconds=3600.0),
    ]
    entries = week(LAB, *others).days[3].entries
    assert [(each.session.name, each.lane, each.lanes) for each in entries] == [
        ("cs231n", 0, 2), ("b", 1, 2), ("c", 0, 2), ("d", 0, 1),
    ]  # fmt: skip


def test_a_night_is_in_two_columns_and_the_hours_follow() -> None:
    found = week(replace(LAB, begins=time(22), length_seconds=4 * 3600.0, lead_seconds=0.0))
    assert [
        (day.title, entry.from_minutes, entry.to_minutes, entry.begins, entry.ends)
        for day in found.days
        for entry in day.entries
    ] == [("Thu 26 Nov", 1320, 1440, "22:00", "02:00"), ("Fri 27 Nov", 0, 120, "22:00", "02:00")]
    assert (found.first_hour, found.last_hour) == (0, 24)


def test_a_meeting_in_the_hour_that_comes_twice_is_shown() -> None:
    night = replace(LAB, first=date(2026, 10, 25), begins=time(2, 45), rule="", length_seconds=1800.0)
    found = week(night, day=date(2026, 10, 25))
    assert [(entry.begins, entry.from_minutes, entry.to_minutes) for entry in found.days[6].entries] == [
        ("02:45", 165, 180)
    ]


def test_it_is_on_the_calendar_s_clock() -> None:
    abroad = replace(LAB, timezone="Asia/Tokyo", begins=time(18))
    assert shown(week(abroad)) == [("Thu 26 Nov", "meets", "10:00-12:00", "")]
    moved = Change(date(2026, 11, 26), datetime(2026, 11, 28, 4), 7200.0)
    assert shown(week(replace(abroad, changes=(moved,)))) == [
        ("Thu 26 Nov", "away", "10:00-12:00", "Moved to Fri 27 Nov, 20:00."),
        ("Fri 27 Nov", "moved", "20:00-22:00", "Moved here from Thu 26 Nov."),
    ]


def test_titles_over_months_and_years() -> None:
    assert week(day=date(2026, 12, 2)).title == "30 November to 6 December 2026"
    assert week(day=date(2026, 12, 31)).title == "28 December 2026 to 3 January 2027"


@given(
    st.lists(st.tuples(st.integers(0, 23), st.integers(1, 30), st.integers(0, 6)), max_size=8),
    st.sampled_from([date(2026, 3, 29), date(2026, 10, 25), date(2026, 11, 26)]),
)
def test_nothing_overlaps_in_one_lane(times: list[tuple[int, int, int]], day: date) -> None:
    sessions = [
        replace(LAB, name=f"s{number}", begins=time(hour), length_seconds=halves * 1800.0,
                first=date(2026, 1, 5 + weekday), rule="FREQ=WEEKLY")
        for number, (hour, halves, weekday) in enumerate(times)
    ]  # fmt: skip
    for column in week(*sessions, day=day).days:
        for one in column.entries:
            assert 0 <= one.from_minutes < one.to_minutes <= 24 * 60
            assert 0 <= one.lane < one.lanes
            for other in column.entries:
                apart = one.to_minutes <= other.from_minutes or other.to_minutes <= one.from_minutes
                assert one is other or one.lane != other.lane or apart
