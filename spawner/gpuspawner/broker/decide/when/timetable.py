"""Converts the time of a class as people write it, "Mondays 10-12", to a rule and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from dateutil.rrule import rrulestr

from ....core.errors import BadOption
from ....core.session import LabSession
from ..allow.period import WEEKDAYS

_CODES = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_TIMES = re.compile(r"^(?P<days>.*?)\s*(?P<from>\d{1,2}(?::\d{2})?)\s*[-–]\s*(?P<to>\d{1,2}(?::\d{2})?)$")
_EXAMPLES = '"Mondays 10-12", "Mon, Wed 14:15-15:45", "daily 9-11" or "2026-12-01 10:00-12:00"'
_LONGEST_NIGHT_MINUTES = 12 * 60
"""A class over midnight is at most this long: an end before the beginning is a slip otherwise ("12-10")."""
_UNTIL = re.compile(r"UNTIL=(\d{8})(T\d{6}(Z?))?", re.IGNORECASE)
_FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")


@dataclass(frozen=True, slots=True)
class When:
    """A parsed time: weekdays (0 is Monday) or one `day`, the time of day, and the length."""

    weekdays: tuple[int, ...]
    day: date | None
    begins: time
    length_seconds: float


def parse_when(text: str) -> When:
    """The time of a class. Raises BadOption, with examples, for text that can't be read.

    An end that isn't after the beginning is on the next day, if the class then lasts 12 hours or less; else
    it is refused. An end of 24 is midnight.
    """
    match = _TIMES.match(" ".join(text.split()))
    if match is None:
        raise BadOption(f"The time {text!r} can't be read: write it like {_EXAMPLES}.")
    try:
        begins, ends = _time(match["from"]), _time(match["to"])
    except ValueError:
        raise BadOption(f"The time {text!r} has no such hour: write it like {_EXAMPLES}.") from None
    minutes = (ends.hour * 60 + ends.minute) - (begins.hour * 60 + begins.minute)
    if match["to"] in ("24", "24:00"):
        minutes += 24 * 60
    elif minutes <= 0:
        minutes += 24 * 60  # over midnight
        if minutes > _LONGEST_NIGHT_MINUTES:
            raise BadOption(
                f"The time {text!r} ends before it begins: write the end after the beginning, like "
                f'{_EXAMPLES}. Over midnight a session lasts up to 12 hours, like "Mondays 22-2".'
            )
    weekdays, day = _days(match["days"].strip(), text)
    return When(weekdays, day, begins, minutes * 60.0)


def make_rule(when: When, first: date, until: date | None, timezone: str) -> tuple[date, str]:
    """The first day, on or after `first`, and the rule of a class that meets at `when`.

    Raises BadOption if it never meets until `until`, the last day.
    """
    if when.day is not None:
        return when.day, ""
    if until is not None and until < first:
        raise BadOption(f"The last day, {until}, is before the first, {first}: choose a later last day.")
    while first.weekday() not in when.weekdays:
        first += timedelta(days=1)
    if until is not None and until < first:
        raise BadOption(
            f"The class would meet on {first} first, after the last day, {until}: choose a later one."
        )
    days = ",".join(_CODES[each] for each in when.weekdays)
    rule = f"FREQ=WEEKLY;BYDAY={days}"
    return first, checked_rule(rule if until is None else f"{rule};UNTIL={until:%Y%m%d}", timezone)


def checked_rule(rule: str, timezone: str) -> str:
    """The rule with its end in local time, as it is expanded, its parts in a fixed order. Raises BadOption.

    An UNTIL that is a date means the whole day, and one in UTC is put into the time zone (RFC 5545, 3.3.10,
    has UTC there; a date is what calendars write by hand).
    """
    text = rule.strip().removeprefix("RRULE:").upper()
    if "\n" in text or "DTSTART" in text or not any(f"FREQ={each}" in text for each in _FREQUENCIES):
        raise BadOption(
            f"The rule {rule!r} can't be used: write it like "
            '"FREQ=WEEKLY;BYDAY=MO;UNTIL=20261218", not more often than daily.'
        )
    text = _UNTIL.sub(lambda match: "UNTIL=" + _local_until(match, timezone), text)
    try:
        rrulestr(text, dtstart=datetime(2026, 1, 1))
    except (ValueError, TypeError) as error:
        raise BadOption(f"The rule {rule!r} can't be used: {error}.") from None
    return ";".join(sorted(text.split(";"), key=lambda part: (not part.startswith("FREQ="), part)))


def until_of(session: LabSession) -> date | None:
    """The last day of a session's rule, if it says one."""
    match = _UNTIL.search(session.rule)
    return None if match is None else datetime.strptime(match[1], "%Y%m%d").date()


def describe(session: LabSession) -> str:
    """In words: "Mondays 10:00–12:00 (Europe/Berlin) until 2026-12-18"; an unusual rule as it stands."""
    begin = datetime.combine(session.first, session.begins)
    end = begin + timedelta(seconds=session.length_seconds)
    times = f"{begin:%H:%M}–{end:%H:%M} ({session.timezone})"
    if not session.rule:
        return f"{session.first} {times}"
    parts = dict(part.split("=", 1) for part in session.rule.split(";"))
    until = until_of(session)
    last = f" until {until}" if until else ""
    codes = parts.get("BYDAY", _CODES[session.first.weekday()]).split(",")
    if parts.keys() <= {"FREQ", "BYDAY", "UNTIL"} and parts["FREQ"] == "WEEKLY" and set(codes) <= set(_CODES):
        days = [f"{WEEKDAYS[_CODES.index(code)]}s" for code in codes]
        return f"{_and(days)} {times}{last}"
    return f"from {session.first}, {times}, {session.rule}"


def _days(text: str, whole: str) -> tuple[tuple[int, ...], date | None]:
    try:
        return (), date.fromisoformat(text)
    except ValueError:
        pass
    if text.lower() in ("daily", "every day"):
        return tuple(range(7)), None
    if text.lower() == "weekdays":
        return tuple(range(5)), None
    names = [name for name in re.split(r"[\s,/&+]+|\band\b", text.lower()) if name]
    numbers = [_weekday(name) for name in names]
    if not names or None in numbers:
        raise BadOption(f"The days of {whole!r} can't be read: write it like {_EXAMPLES}.")
    return tuple(sorted({number for number in numbers if number is not None})), None


def _weekday(name: str) -> int | None:
    """0 for "mon", "monday" and "mondays": at least three letters, or "mo" as calendars write it."""
    for number, day in enumerate(WEEKDAYS):
        full = f"{day.lower()}s"
        if full.startswith(name) and (len(name) >= 3 or name == _CODES[number].lower()):
            return number
    return None


def _time(text: str) -> time:
    hour, _, minute = text.partition(":")
    return time(int(hour) % 24 if int(hour) == 24 else int(hour), int(minute or 0))


def _local_until(match: re.Match[str], timezone: str) -> str:
    if match[2] is None:
        return f"{match[1]}T235959"
    if not match[3]:
        return match[0].upper().removeprefix("UNTIL=")
    at = datetime.strptime(match[1] + match[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return f"{at.astimezone(ZoneInfo(timezone)):%Y%m%dT%H%M%S}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
