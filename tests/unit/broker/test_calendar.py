"""Lab sessions as an iCalendar: what goes out comes back, and what others export comes in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from gpuspawner.broker.decide.when.calendar import Defaults, from_ical, to_ical
from gpuspawner.broker.decide.when.sessions import meetings
from gpuspawner.core.errors import BadOption
from gpuspawner.core.quota import Window
from gpuspawner.core.session import Change, EndAction, LabSession
from hypothesis import given
from hypothesis import strategies as st
from icalendar import Calendar

BERLIN = "Europe/Berlin"
STAMP = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
DEFAULTS = Defaults("students", "gpu", 10, BERLIN)
YEAR = Window(STAMP, STAMP + timedelta(days=366))
CS231N = LabSession(
    "cs_231.n", "cs231n", "slice", 24, date(2026, 10, 5), time(10), 7200.0,
    "FREQ=WEEKLY;BYDAY=MO;UNTIL=20261218T235959", BERLIN, 1800.0, 600.0, 300.0, EndAction.NOTHING,
    (date(2026, 10, 12),), (Change(date(2026, 10, 26), datetime(2026, 10, 27, 14, 0), 3600.0),),
)  # fmt: skip

TIMETABLE = b"""\
BEGIN:VCALENDAR\r
VERSION:2.0\r
PRODID:-//University//Timetable//EN\r
BEGIN:VTIMEZONE\r
TZID:Europe/Berlin\r
BEGIN:STANDARD\r
DTSTART:19701025T030000\r
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10\r
TZOFFSETFROM:+0200\r
TZOFFSETTO:+0100\r
END:STANDARD\r
BEGIN:DAYLIGHT\r
DTSTART:19700329T020000\r
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3\r
TZOFFSETFROM:+0100\r
TZOFFSETTO:+0200\r
END:DAYLIGHT\r
END:VTIMEZONE\r
BEGIN:VEVENT\r
UID:4711@university\r
SUMMARY:Deep Learning (Lab)\r
DTSTAMP:20260901T000000Z\r
DTSTART;TZID=Europe/Berlin:20261006T141500\r
DTEND;TZID=Europe/Berlin:20261006T154500\r
RRULE:FREQ=WEEKLY;UNTIL=20261222T225959Z\r
EXDATE;TZID=Europe/Berlin:20261013T141500,20261020T141500\r
EXDATE;TZID=Europe/Berlin:20261110T141500\r
END:VEVENT\r
BEGIN:VEVENT\r
UID:4711@university\r
SUMMARY:Deep Learning (Lab)\r
DTSTAMP:20260901T000000Z\r
RECURRENCE-ID;TZID=Europe/Berlin:20261103T141500\r
DTSTART:20261104T090000Z\r
DTEND:20261104T100000Z\r
END:VEVENT\r
BEGIN:VEVENT\r
UID:once\r
SUMMARY:Exam\r
DTSTAMP:20260901T000000Z\r
DTSTART:20270201T080000Z\r
DURATION:PT3H\r
END:VEVENT\r
END:VCALENDAR\r
"""


def test_what_goes_out_comes_back() -> None:
    once = LabSession("exam", "phd", "gpu", 2, date(2027, 2, 1), time(8, 30), 5400.0)
    assert from_ical(to_ical([CS231N, once], STAMP), DEFAULTS) == [CS231N, once]


def test_the_calendar_is_one_that_others_read() -> None:
    text = to_ical([CS231N], STAMP).decode()
    lines = text.split("\r\n")
    for line in (
        "BEGIN:VCALENDAR",
        "TZID:Europe/Berlin",
        "DTSTART;TZID=Europe/Berlin:20261005T100000",
        "DURATION:PT2H",
        "EXDATE;TZID=Europe/Berlin:20261012T100000",
        "RECURRENCE-ID;TZID=Europe/Berlin:20261026T100000",
        "X-GPUSPAWNER-SEATS:24",
    ):
        assert line in lines
    (rule,) = [line for line in lines if line.startswith("RRULE:FREQ=WEEKLY")]
    # UNTIL is in UTC where the begin has a time zone (RFC 5545, 3.3.10).
    assert sorted(rule.removeprefix("RRULE:").split(";")) == [
        "BYDAY=MO", "FREQ=WEEKLY", "UNTIL=20261218T225959Z",
    ]  # fmt: skip


@pytest.mark.parametrize("zone", [BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"])
def test_clocks_change_when_they_do(zone: str) -> None:
    """RFC 5545, 3.6.5: an onset is in local time before the change, TZOFFSETFROM."""
    text = to_ical([replace(CS231N, timezone=zone)], STAMP)
    parts = [
        part for each in Calendar.from_ical(text).walk("VTIMEZONE") for part in each.subcomponents
        if part.TZOFFSETFROM != part.TZOFFSETTO
    ]  # fmt: skip
    assert (parts == []) == (zone == "UTC")
    for part in parts:
        for local in (part.DTSTART, *(start for start, _ in part.rdates)):
            at = (local - part.TZOFFSETFROM).replace(tzinfo=UTC)
            just_before = (at - timedelta(seconds=1)).astimezone(ZoneInfo(zone)).utcoffset()
            assert (just_before, at.astimezone(ZoneInfo(zone)).utcoffset()) == (
                part.TZOFFSETFROM, part.TZOFFSETTO,
            )  # fmt: skip
    if zone == BERLIN:
        lines = text.decode().split("\r\n")
        summer = lines[lines.index("BEGIN:DAYLIGHT") : lines.index("END:DAYLIGHT")]
        assert next(line for line in summer if line.startswith("DTSTART:")).endswith("T020000")


def test_a_timetable_of_others_comes_in_with_what_it_does_not_say() -> None:
    assert from_ical(TIMETABLE, DEFAULTS) == [
        LabSession(
            "deep-learning-lab", "students", "gpu", 10, date(2026, 10, 6), time(14, 15), 5400.0,
            "FREQ=WEEKLY;UNTIL=20261222T235959", BERLIN,
            exdates=(date(2026, 10, 13), date(2026, 10, 20), date(2026, 11, 10)),
            changes=(Change(date(2026, 11, 3), datetime(2026, 11, 4, 10, 0), 3600.0),),
        ),
        LabSession("exam", "students", "gpu", 10, date(2027, 2, 1), time(8), 10800.0, timezone="UTC"),
    ]  # fmt: skip


def event(*lines: str) -> bytes:
    body = ["BEGIN:VCALENDAR", "BEGIN:VEVENT", "SUMMARY:Lab", *lines, "END:VEVENT", "END:VCALENDAR", ""]
    return "\r\n".join(body).encode()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"nonsense", "The calendar can't be read"),
        (event("DTSTART;VALUE=DATE:20261005"), "The event 'lab' has no time of day"),
        (event("DTSTART:20261005T100000"), "The event 'lab' lasts 0 minutes: give it 1 minute to a day."),
        (event("DTSTART:20261005T100000", "DURATION:P2D"), "The event 'lab' lasts 2880 minutes"),
        (
            event("DTSTART:20261005T100000", "DURATION:PT1H", "RRULE:FREQ=HOURLY"),
            "The rule 'FREQ=HOURLY' can't",
        ),
        (event("DTSTART:20261005T100000", "DURATION:PT1H", "RDATE:20261006T100000"), "has RDATE"),
        (event("DTSTART:20261005T100000", "DURATION:PT1H", "X-GPUSPAWNER-SEATS:many"), "give a number"),
        (
            event("DTSTART:20261005T100000", "DURATION:PT1H", "X-GPUSPAWNER-MOVE-OUT:kill"),
            "take one of nothing",
        ),
        (event("DTSTART;TZID=Nowhere/City:20261005T100000", "DURATION:PT1H"), "no name that is known"),
        (event("DTSTART:20261005T100000", "DURATION:PT1H").replace(b":Lab", b":!!"), "makes no name"),
    ],
)
def test_what_cannot_be_used_is_named(data: bytes, sentence: str) -> None:
    with pytest.raises(BadOption) as caught:
        from_ical(data, DEFAULTS)
    assert sentence in caught.value.message


def test_two_events_of_one_name_are_refused() -> None:
    data = to_ical([CS231N, replace(CS231N, seats=1)], STAMP).replace(b"UID:cs_231.n", b"UID:cs_231.n", 1)
    with pytest.raises(BadOption, match=r"two events called 'cs_231\.n'"):
        from_ical(data, DEFAULTS)


@given(
    st.dates(date(2026, 10, 5), date(2027, 3, 1)),
    st.times(time(0), time(23, 59)).map(lambda at: at.replace(second=0, microsecond=0)),
    st.integers(1, 24 * 60),
    st.sampled_from(["", "FREQ=DAILY;COUNT=9", "FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR"]),
    st.sampled_from([BERLIN, "UTC", "America/New_York", "Asia/Kolkata"]),
    st.sets(st.integers(0, 30), max_size=4),
)
def test_a_session_meets_at_the_same_times_after_the_round_trip(
    first: date, begins: time, minutes: int, rule: str, zone: str, out: set[int]
) -> None:
    exdates = tuple(sorted(first + timedelta(days=day) for day in out))
    session = replace(
        CS231N, first=first, begins=begins, length_seconds=minutes * 60.0, rule=rule, timezone=zone,
        exdates=exdates, changes=(),
    )  # fmt: skip
    (back,) = from_ical(to_ical([session], STAMP), DEFAULTS)
    assert meetings(back, YEAR) == meetings(session, YEAR)
    assert back.exdates == exdates
