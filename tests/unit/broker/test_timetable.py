"""Times of a class as people write them, and back to words."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, time

import pytest
from gpuspawner.broker.decide.when.timetable import (
    When,
    checked_rule,
    describe,
    make_rule,
    parse_when,
    until_of,
)
from gpuspawner.core.errors import BadOption
from gpuspawner.core.session import LabSession

BERLIN = "Europe/Berlin"
TEN = time(10)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("Mondays 10-12", When((0,), None, TEN, 7200.0)),
        ("mon 10:00–12:00", When((0,), None, TEN, 7200.0)),
        ("Wed, Mon and friday 14:15 - 15:45", When((0, 2, 4), None, time(14, 15), 5400.0)),
        ("mo/tu 9-10", When((0, 1), None, time(9), 3600.0)),
        ("daily 22-2", When((0, 1, 2, 3, 4, 5, 6), None, time(22), 14400.0)),
        ("daily 21-9", When((0, 1, 2, 3, 4, 5, 6), None, time(21), 43200.0)),
        ("daily 0-24", When((0, 1, 2, 3, 4, 5, 6), None, time(0), 86400.0)),
        ("weekdays 8-24", When((0, 1, 2, 3, 4), None, time(8), 57600.0)),
        ("2026-12-01 10:00-12:00", When((), date(2026, 12, 1), TEN, 7200.0)),
    ],
)
def test_what_people_write(text: str, when: When) -> None:
    assert parse_when(text) == when


@pytest.mark.parametrize(
    "text", ["", "Mondays", "Mondays 10", "Mondays 25-26", "Mondags 10-12", "10-12", "m 1-2"]
)
def test_what_cannot_be_read_is_answered_with_examples(text: str) -> None:
    with pytest.raises(BadOption, match=r'"Mondays 10-12"'):
        parse_when(text)


@pytest.mark.parametrize("text", ["Mon 12-10", "Mon 10-10", "2026-12-01 21-9:01", "Mon 0-0"])
def test_an_end_before_the_beginning_is_a_night_of_at_most_12_hours(text: str) -> None:
    sentence = f"The time {text!r} ends before it begins: write the end after the beginning, like "
    with pytest.raises(BadOption, match=re.escape(sentence)):
        parse_when(text)


def test_the_first_day_is_the_first_that_the_rule_has() -> None:
    when = parse_when("Mon, Thu 10-12")
    assert make_rule(when, date(2026, 10, 6), date(2026, 12, 18), BERLIN) == (
        date(2026, 10, 8),
        "FREQ=WEEKLY;BYDAY=MO,TH;UNTIL=20261218T235959",
    )
    assert make_rule(when, date(2026, 10, 5), None, BERLIN) == (date(2026, 10, 5), "FREQ=WEEKLY;BYDAY=MO,TH")
    once = parse_when("2026-12-01 10-12")
    assert make_rule(once, date(2026, 10, 6), None, BERLIN) == (date(2026, 12, 1), "")


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (
            date(2026, 10, 5),
            "The last day, 2026-10-05, is before the first, 2026-10-06: choose a later last day.",
        ),
        (
            date(2026, 10, 7),
            "The class would meet on 2026-10-08 first, after the last day, 2026-10-07: choose a later one.",
        ),
    ],
)
def test_a_class_that_ends_before_it_meets_is_refused(last: date, sentence: str) -> None:
    with pytest.raises(BadOption, match=re.escape(sentence)):
        make_rule(parse_when("Thu 10-12"), date(2026, 10, 6), last, BERLIN)


def test_the_end_of_a_rule_is_put_into_local_time() -> None:
    rules = ["RRULE:FREQ=DAILY;UNTIL=20261218", "freq=daily;until=20261218T225959Z", "FREQ=DAILY;COUNT=3"]
    assert [checked_rule(rule, BERLIN) for rule in rules] == [
        "FREQ=DAILY;UNTIL=20261218T235959",
        "FREQ=DAILY;UNTIL=20261218T235959",
        "FREQ=DAILY;COUNT=3",
    ]


@pytest.mark.parametrize(
    "rule", ["", "FREQ=HOURLY", "FREQ=SECONDLY;INTERVAL=1", "FREQ=DAILY\nFREQ=DAILY", "FREQ=DAILY;BYDAY=XX"]
)
def test_a_rule_that_cannot_be_used_is_refused(rule: str) -> None:
    with pytest.raises(BadOption, match="can't be used"):
        checked_rule(rule, BERLIN)


def test_a_class_in_words() -> None:
    session = LabSession("a", "a", "gpu", 1, date(2026, 10, 5), TEN, 7200.0, timezone=BERLIN)
    weekly = replace(session, rule="FREQ=WEEKLY;BYDAY=MO,TH;UNTIL=20261218T235959")
    odd = replace(session, rule="FREQ=MONTHLY;BYDAY=1MO")
    assert [describe(each) for each in (session, weekly, odd)] == [
        "2026-10-05 10:00–12:00 (Europe/Berlin)",
        "Mondays and Thursdays 10:00–12:00 (Europe/Berlin) until 2026-12-18",
        "from 2026-10-05, 10:00–12:00 (Europe/Berlin), FREQ=MONTHLY;BYDAY=1MO",
    ]
    assert [until_of(each) for each in (session, weekly)] == [None, date(2026, 12, 18)]
