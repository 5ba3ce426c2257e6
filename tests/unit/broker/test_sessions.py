"""Lab sessions: when they meet, what fits, what is kept, who makes room; against naive models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta

import pytest
from gpuspawner.broker.decide.when.sessions import (
    Occupant,
    Reservation,
    TierWords,
    check_dates,
    check_session,
    longest_start,
    make_room,
    meetings,
    prestarts,
    reservations,
    without_room,
)
from gpuspawner.core.errors import BadOption, SessionReserved, SessionUnfit
from gpuspawner.core.quota import UNLIMITED, Window
from gpuspawner.core.session import Change, LabSession, Meeting
from hypothesis import given
from hypothesis import strategies as st

BERLIN = "Europe/Berlin"
CS231N = LabSession(
    "cs231n", "cs231n", "slice", 24, date(2026, 10, 5), time(10), 7200.0,
    "FREQ=WEEKLY;BYDAY=MO;UNTIL=20261218T235959", BERLIN,
)  # fmt: skip
NOW = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)  # a Thursday


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def meeting(name: str, start: str, hours: float, on: str | None = None) -> Meeting:
    begin = utc(start)
    return Meeting(begin, begin + timedelta(hours=hours), name, date.fromisoformat(on or start[:10]))


def between(start: str, end: str) -> Window:
    return Window(utc(start), utc(end))


def places(**most: int) -> object:
    """What fits where each tier has its own devices."""

    def fits(wanted: Mapping[str, int]) -> bool:
        return all(count <= most.get(tier, 0) for tier, count in wanted.items())

    return fits


def test_a_class_stays_at_its_hour_when_the_clocks_change() -> None:
    assert meetings(CS231N, between("2026-10-18T00:00", "2026-10-27T00:00")) == [
        meeting("cs231n", "2026-10-19T08:00", 2),
        meeting("cs231n", "2026-10-26T09:00", 2),
    ]


SUNDAYS = replace(CS231N, first=date(2026, 9, 6), rule="FREQ=WEEKLY;BYDAY=SU")
NIGHTS = replace(
    CS231N, first=date(2026, 9, 5), begins=time(23), length_seconds=5 * 3600.0, rule="FREQ=WEEKLY;BYDAY=SA"
)


@pytest.mark.parametrize(
    ("session", "window", "found"),
    [
        pytest.param(
            SUNDAYS, between("2026-10-18T00:00", "2026-10-26T00:00"),
            [("2026-10-18T08:00", 2, None), ("2026-10-25T09:00", 2, None)], id="Sunday morning, October",
        ),
        pytest.param(
            SUNDAYS, between("2027-03-21T00:00", "2027-03-29T00:00"),
            [("2027-03-21T09:00", 2, None), ("2027-03-28T08:00", 2, None)], id="Sunday morning, March",
        ),
        pytest.param(  # 23:00 to 03:00 on the clock, 5 hours
            NIGHTS, between("2026-10-24T12:00", "2026-10-26T00:00"),
            [("2026-10-24T21:00", 5, None)], id="over the hour that comes twice",
        ),
        pytest.param(  # 23:00 to 05:00 on the clock, 5 hours
            NIGHTS, between("2027-03-27T12:00", "2027-03-29T00:00"),
            [("2027-03-27T22:00", 5, None)], id="over the hour that is left out",
        ),
        pytest.param(
            replace(SUNDAYS, begins=time(2, 30)), between("2026-10-24T12:00", "2026-10-26T00:00"),
            [("2026-10-25T00:30", 2, None)], id="from the first half past two",
        ),
        pytest.param(  # 02:30 doesn't exist: it begins at 03:30, as iCalendar says
            replace(SUNDAYS, begins=time(2, 30)), between("2027-03-27T12:00", "2027-03-29T00:00"),
            [("2027-03-28T01:30", 2, None)], id="at a time that is left out",
        ),
        pytest.param(
            replace(SUNDAYS, changes=(Change(date(2026, 10, 25), datetime(2026, 10, 24, 23), 14400.0),)),
            between("2026-10-24T12:00", "2026-10-26T00:00"),
            [("2026-10-24T21:00", 4, "2026-10-25")], id="moved to the night of the change",
        ),
    ],
)  # fmt: skip
def test_a_class_over_a_change_of_the_clocks_lasts_as_long_as_always(
    session: LabSession, window: Window, found: list[tuple[str, float, str | None]]
) -> None:
    """Europe/Berlin: 25 October 2026 has 25 hours, 28 March 2027 has 23."""
    assert [(each.start, each.end) for each in meetings(session, window)] == [
        (each.start, each.end) for each in (meeting("cs231n", *times) for times in found)
    ]


def test_places_over_a_change_of_the_clocks_are_kept_for_the_whole_lead_and_grace() -> None:
    session = replace(SUNDAYS, begins=time(3, 30), lead_seconds=7200.0, grace_seconds=900.0)
    for day, begins in ("2026-10-25", "02:30"), ("2027-03-28", "01:30"):
        begin = utc(f"{day}T{begins}")
        (kept,) = reservations([session], begin - timedelta(hours=3), begin + timedelta(hours=3))
        assert (kept.keep_from, kept.release_at) == (
            begin - timedelta(hours=2),
            begin + timedelta(minutes=15),
        )


def test_a_class_ends_with_its_last_day() -> None:
    found = meetings(CS231N, between("2026-10-01T00:00", "2027-10-01T00:00"))
    assert (found[0].on, found[-1].on, len(found)) == (date(2026, 10, 5), date(2026, 12, 14), 11)


def test_holidays_and_one_off_changes() -> None:
    session = replace(
        CS231N,
        exdates=(date(2026, 10, 12),),
        changes=(Change(date(2026, 10, 19), datetime(2026, 10, 20, 14, 0), 3600.0),),
    )
    assert meetings(session, between("2026-10-01T00:00", "2026-10-27T00:00")) == [
        meeting("cs231n", "2026-10-05T08:00", 2),
        meeting("cs231n", "2026-10-20T12:00", 1, on="2026-10-19"),
        meeting("cs231n", "2026-10-26T09:00", 2),
    ]


def test_what_touches_the_window_is_in_it() -> None:
    at = "2026-10-05"
    expected = [meeting("cs231n", "2026-10-05T08:00", 2)]
    assert meetings(CS231N, between(f"{at}T09:59", f"{at}T10:30")) == expected
    assert meetings(CS231N, between(f"{at}T10:00", f"{at}T10:30")) == []
    assert meetings(CS231N, between(f"{at}T07:00", f"{at}T08:00")) == []


def test_a_session_without_a_rule_meets_once() -> None:
    assert meetings(replace(CS231N, rule=""), between("2026-01-01T00:00", "2027-01-01T00:00")) == [
        meeting("cs231n", "2026-10-05T08:00", 2)
    ]


OTHER = replace(CS231N, name="ml", group="ml", seats=12, begins=time(11), rule="FREQ=WEEKLY;BYDAY=MO,TH")


def test_sessions_that_fit_beside_one_another_are_taken() -> None:
    check_session(CS231N, [OTHER], places(slice=36), NOW)  # type: ignore[arg-type]
    check_session(CS231N, [replace(OTHER, begins=time(12))], places(slice=24), NOW)  # type: ignore[arg-type]
    check_session(CS231N, [replace(CS231N, seats=20)], places(slice=24), NOW)  # type: ignore[arg-type]


DATES = "(11 of its 11 dates)"
ADVICE = "choose another time or tier."
WORDS = {"slice": TierWords("Slice")}


@pytest.mark.parametrize(
    ("session", "most", "sentence"),
    [
        (CS231N, 32, "needs 24 places of the tier 'Slice' on Monday 10:00 (Europe/Berlin) "
                     f"{DATES}, and beside 'ml' 20 fit: ask for 20, or {ADVICE}"),
        (replace(CS231N, seats=50), 32, "needs 50 places of the tier 'Slice' on Monday 10:00 (Europe/Berlin) "
                     f"{DATES}, and beside 'ml' 20 fit: ask for 20, or {ADVICE}"),
        (replace(CS231N, begins=time(8), rule=""), 16, "needs 24 places of the tier 'Slice' on Monday 08:00 "
                     f"(Europe/Berlin), and 16 fit: ask for 16, or {ADVICE}"),
        (replace(CS231N, tier="gpu", rule=""), 64, "needs 24 places of the tier 'gpu' on Monday 10:00 "
                     f"(Europe/Berlin), and none fits: {ADVICE}"),
        (replace(CS231N, rule="FREQ=WEEKLY;BYDAY=MO;UNTIL=20260901T000000"), 64,
                     "has no date after now: check its first day, its rule and its end."),
        (replace(CS231N, rule="FREQ=DAILY;COUNT=2", length_seconds=86400.0 + 60), 64,
                     "would meet twice at once on 2026-10-05 and 2026-10-06: make it shorter, or change its "
                     "rule."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_does(session: LabSession, most: int, sentence: str) -> None:
    with pytest.raises(SessionUnfit) as caught:
        check_session(session, [OTHER], places(slice=most), NOW, WORDS.get(session.tier))  # type: ignore[arg-type]
    assert caught.value.message == f"The session 'cs231n' {sentence}"


def test_which_sessions_lack_places_where_devices_are_gone() -> None:
    first = replace(CS231N, seats=3, rule="", first=date(2026, 10, 2))
    beside = replace(first, name="beside", seats=2)
    later = replace(first, name="later", first=date(2026, 10, 3))
    both, week = [first, beside, later], timedelta(days=7)

    def short(most: int, ahead: timedelta = week) -> list[str]:
        found = without_room(both, places(**{CS231N.tier: most}), NOW, ahead)  # type: ignore[arg-type]
        return [each.meeting.session for each in found]

    assert short(5) == []
    assert short(4) == ["beside", "cs231n"]
    assert short(2) == ["beside", "cs231n", "later"]
    assert short(2, timedelta(days=1)) == ["beside", "cs231n"]


def test_what_is_kept_from_the_lead_until_the_grace_is_over() -> None:
    (kept,) = reservations([CS231N], utc("2026-10-05T06:30"), utc("2026-10-05T07:30"))
    assert kept == Reservation(
        meeting("cs231n", "2026-10-05T08:00", 2), "cs231n", "slice", 24, BERLIN, utc("2026-10-05T07:00"),
        utc("2026-10-05T08:15"),
    )  # fmt: skip
    times = ("06:59", "07:00", "08:14", "08:15")
    assert [kept.kept(utc(f"2026-10-05T{at}"), 20) for at in times] == [0, 4, 4, 0]
    assert kept.kept(utc("2026-10-05T08:00"), 30) == 0
    assert reservations([CS231N], utc("2026-10-05T06:00"), utc("2026-10-05T07:00")) == []


def kept_at(start: str) -> Reservation:
    (found,) = reservations([CS231N], utc(start), utc(start) + timedelta(minutes=1))
    return found


def test_a_start_that_ends_before_the_session_is_not_touched() -> None:
    kept = kept_at("2026-10-05T07:10")
    assert longest_start(utc("2026-10-05T07:10"), 3000.0, [kept]) == (3000.0, "")
    assert longest_start(utc("2026-10-05T07:10"), UNLIMITED, []) == (UNLIMITED, "")


def test_a_start_that_would_not_is_told_when_it_ends() -> None:
    kept = kept_at("2026-10-05T07:10")
    assert longest_start(utc("2026-10-05T07:10"), UNLIMITED, [kept]) == (
        3000.0,
        "This server ends on Monday 10:00 (Europe/Berlin), when the lab session 'cs231n' needs its GPU.",
    )


@pytest.mark.parametrize(("now", "again"), [("07:50", "12:00"), ("08:05", "10:15")])
def test_a_start_with_too_little_time_left_is_refused(now: str, again: str) -> None:
    with pytest.raises(SessionReserved) as caught:
        longest_start(utc(f"2026-10-05T{now}"), UNLIMITED, [kept_at(f"2026-10-05T{now}")])
    assert caught.value.message == (
        "The lab session 'cs231n' has these GPUs from 10:00 to 12:00 (Europe/Berlin): choose CPU, or start "
        f"after Monday {again} (Europe/Berlin)."
    )


def test_room_is_made_by_who_came_last_and_nobody_in_vain() -> None:
    occupants = [Occupant(name, NOW + timedelta(hours=hour)) for hour, name in enumerate("abcd")]
    useful = {"a", "b", "c"}  # d holds what the session can't use
    assert make_room(occupants, lambda gone: len(gone & useful) >= 2) == ("c", "b")
    assert make_room(occupants, lambda gone: True) == ()
    assert make_room(occupants, lambda gone: False) == ("d", "c", "b", "a")


def test_members_are_started_in_turns_before_the_class() -> None:
    users, at = ["ada", "bob", "cid", "eve"], utc("2026-10-05T07:45")
    assert prestarts(users, {}, (), 2, at) == ["ada", "bob"]
    begun = {"ada": at, "bob": at}
    assert prestarts(users, begun, (), 2, at) == []
    assert prestarts(users, begun, ("bob",), 2, at) == ["cid"]
    assert prestarts(users, begun, ("bob",), 2, at + timedelta(seconds=120)) == ["cid", "eve"]
    assert prestarts(["ada"], begun, (), 9, at) == []


drawn_sessions = st.builds(
    lambda day, hour, length, seats, often, out: replace(
        CS231N,
        seats=seats,
        first=date(2026, 10, 5) + timedelta(days=day),
        begins=time(hour),
        length_seconds=length * 1800.0,
        rule=f"FREQ={often};COUNT=4",
        exdates=(date(2026, 10, 5) + timedelta(days=out),),
    ),
    st.integers(0, 9),
    st.integers(7, 20),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from(["DAILY", "WEEKLY"]),
    st.integers(0, 40),
)


@given(st.lists(drawn_sessions, max_size=8), st.integers(1, 12))
def test_sessions_are_never_oversold(drawn: list[LabSession], most: int) -> None:
    """Every half hour the seats of all that were taken are counted, and what was refused didn't fit."""
    taken: list[LabSession] = []
    for number, session in enumerate(drawn):
        named = replace(session, name=f"s{number}")
        try:
            check_session(named, taken, places(slice=most), NOW)  # type: ignore[arg-type]
        except SessionUnfit:
            assert fullest([*taken, named]) > most
        else:
            taken.append(named)
        assert fullest(taken) <= most


def fullest(sessions: list[LabSession]) -> int:
    """The most seats at any half hour of the two months."""
    whole = between("2026-10-01T00:00", "2026-12-01T00:00")
    booked = [(each, session.seats) for session in sessions for each in meetings(session, whole)]
    moments = {each.start for each, _ in booked}
    return max(
        (sum(seats for each, seats in booked if each.start <= at < each.end) for at in moments), default=0
    )


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 180), st.one_of(st.integers(10, 300), st.none())), max_size=20),
)
def test_the_group_finds_its_places_when_the_class_begins(
    total: int, seats: int, starts: list[tuple[int, int | None]]
) -> None:
    """Outsiders come in the three hours before; who is in the way at ten is moved out, as few as can be."""
    seats = min(seats, total)
    kept = replace(reservations([CS231N], utc("2026-10-05T07:30"), utc("2026-10-05T08:00"))[0], seats=seats)
    start = kept.meeting.start
    running: dict[str, tuple[datetime, float]] = {}
    for number, (minute, length) in enumerate(sorted(starts, key=lambda each: each[0])):
        now = start - timedelta(hours=3) + timedelta(minutes=minute)
        if now >= start:
            continue
        alive = {k: v for k, v in running.items() if v[0] + timedelta(seconds=min(v[1], 1e9)) > now}
        if len(alive) >= total:
            continue
        wanted = UNLIMITED if length is None else length * 60.0
        stays = [v for v in alive.values() if v[0] + timedelta(seconds=min(v[1], 1e9)) > start]
        lacks = total - len(stays) - 1 < kept.kept(now, 0)
        try:
            seconds, _ = longest_start(now, wanted, [kept] if lacks else [])
        except SessionReserved:
            continue
        running[f"l{number}"] = (now, seconds)
    left = {k for k, v in running.items() if v[0] + timedelta(seconds=min(v[1], 1e9)) > start}
    before_lead = {k for k in left if running[k][0] < kept.keep_from}
    occupants = [Occupant(k, running[k][0]) for k in left]
    gone = make_room(occupants, lambda leaving: total - len(left - leaving) >= seats)
    assert total - len(left - set(gone)) >= seats
    assert len(gone) == max(0, len(left) - (total - seats))
    assert len(gone) <= len(before_lead)


@pytest.mark.parametrize(
    ("day", "sentence"),
    [
        ("2026-10-20", "cs231n doesn't meet on 2026-10-20: the nearest dates are 2026-10-19 and 2026-11-02."),
        ("2026-12-21", "cs231n doesn't meet on 2026-12-21: the nearest date is 2026-12-14."),
        ("2026-09-28", "cs231n doesn't meet on 2026-09-28: the nearest date is 2026-10-05."),
        ("2030-10-07", "cs231n doesn't meet on 2030-10-07: the nearest date is 2026-10-05."),
        (
            "2026-11-10",
            "cs231n doesn't meet on 2026-11-10 by its rule; that is its meeting of 2026-11-09: "
            "name 2026-11-09.",
        ),
    ],
)
def test_a_date_on_which_nothing_meets_is_not_cancelled_or_moved(day: str, sentence: str) -> None:
    moved = Change(date(2026, 11, 9), datetime(2026, 11, 10, 14), 7200.0)
    before = replace(CS231N, exdates=(date(2026, 10, 26),), changes=(moved,))
    on = date.fromisoformat(day)
    with pytest.raises(BadOption) as refused:
        check_dates(replace(before, exdates=(*before.exdates, on)), before)
    assert str(refused.value) == sentence
    with pytest.raises(BadOption):
        check_dates(replace(before, changes=(moved, Change(on, datetime(2026, 11, 11, 14), 7200.0))), before)


def test_a_date_on_which_it_meets_is_cancelled_and_older_ones_are_not_looked_at() -> None:
    odd = replace(CS231N, exdates=(date(2026, 10, 20),))  # of a calendar, say
    check_dates(replace(odd, exdates=(*odd.exdates, date(2026, 11, 9))), odd)
    check_dates(replace(CS231N, exdates=(date(2026, 10, 26),)), None)
    once = replace(CS231N, rule="")
    check_dates(replace(once, exdates=(once.first,)), once)
    with pytest.raises(BadOption, match="doesn't meet on 2026-10-20: the nearest dates are 2026-10-19"):
        check_dates(odd, None)
