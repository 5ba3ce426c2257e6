"""Exports lab sessions as an iCalendar (RFC 5545), to subscribe to, and imports them from a timetable. Pure.

Values for which iCalendar has no property are in our own properties, so an export can be imported unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from icalendar import Calendar, Event, vRecur

from ....config.tiers import NAME
from ....core.errors import BadOption
from ....core.session import Change, EndAction, LabSession
from .timetable import checked_rule

PRODUCT = "-//gpuspawner//lab sessions//EN"
_OURS = "X-GPUSPAWNER-"
_AT = "@gpuspawner"
_MAX_EVENTS = 1000
_UNTIL = re.compile(r"UNTIL=(\d{8}T\d{6})(?!Z)")


@dataclass(frozen=True, slots=True)
class Defaults:
    """The defaults for an event without these values: a university's timetable has no tiers."""

    group: str
    tier: str
    seats: int
    timezone: str = "UTC"


def to_ical(sessions: Iterable[LabSession], stamp: datetime) -> bytes:
    """The sessions as a calendar; `stamp` is its creation time, which the format requires on each event."""
    calendar = Calendar()
    calendar.add("prodid", PRODUCT)
    calendar.add("version", "2.0")
    for session in sessions:
        calendar.add_component(_event(session, stamp))
        for change in session.changes:
            calendar.add_component(_changed_event(session, change, stamp))
    calendar.add_missing_timezones()
    _put_onsets_before_changes(calendar)
    return bytes(calendar.to_ical())


def from_ical(data: bytes, defaults: Defaults) -> list[LabSession]:
    """The sessions of a calendar, in its order. Raises BadOption, naming the event that can't be used."""
    try:
        calendar = Calendar.from_ical(data)
        events = list(calendar.walk("VEVENT"))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BadOption(
            f"The calendar can't be read: {error}. Export it again as iCalendar (.ics)."
        ) from None
    if len(events) > _MAX_EVENTS:
        raise BadOption(f"The calendar has {len(events)} events: take at most {_MAX_EVENTS}.")
    sessions: dict[str, LabSession] = {}
    for event in events:
        if "RECURRENCE-ID" not in event:
            session = _session(event, defaults)
            if session.name in {each.name for each in sessions.values()}:
                raise BadOption(f"The calendar has two events called {session.name!r}: rename one of them.")
            sessions[_uid(event, session.name)] = session
    for event in events:
        uid = str(event.get("UID", ""))
        if "RECURRENCE-ID" in event and uid in sessions:
            session = sessions[uid]
            sessions[uid] = replace(session, changes=(*session.changes, _change(event, session)))
    return list(sessions.values())


def _put_onsets_before_changes(calendar: Calendar) -> None:
    """Write when the clocks change as they show it before, as RFC 5545 (3.6.5) has it.

    icalendar (7.3) writes what they show after it: summer time then begins an hour late.
    """
    for zone in calendar.walk("VTIMEZONE"):
        known = ZoneInfo(str(zone["TZID"]))
        for part in zone.subcomponents:
            before, after = part.TZOFFSETFROM, part.TZOFFSETTO
            if before == after or _changes_at(known, part.DTSTART - before, before):
                continue
            part.DTSTART += before - after
            later = [start + before - after for start, _ in part.rdates]
            part.pop("RDATE", None)
            if later:
                part.add("rdate", later)


def _changes_at(zone: ZoneInfo, at: datetime, before: timedelta) -> bool:
    """Whether the clocks showed `before` more than UTC until just before `at` (UTC), and not from it on."""
    moment = at.replace(tzinfo=UTC)
    return (
        (moment - timedelta(seconds=1)).astimezone(zone).utcoffset()
        == before
        != moment.astimezone(zone).utcoffset()
    )


def _event(session: LabSession, stamp: datetime) -> Event:
    event = _common(session, stamp)
    zone = ZoneInfo(session.timezone)
    begin = datetime.combine(session.first, session.begins, zone)
    event.add("dtstart", begin)
    event.add("duration", timedelta(seconds=session.length_seconds))
    if session.rule:
        event.add(
            "rrule", vRecur.from_ical(_UNTIL.sub(lambda found: _utc_until(found[1], zone), session.rule))
        )
    for day in session.exdates:
        event.add("exdate", datetime.combine(day, session.begins, zone))
    return event


def _changed_event(session: LabSession, change: Change, stamp: datetime) -> Event:
    event = _common(session, stamp)
    zone = ZoneInfo(session.timezone)
    event.add("recurrence-id", datetime.combine(change.on, session.begins, zone))
    event.add("dtstart", change.begins.replace(tzinfo=zone))
    event.add("duration", timedelta(seconds=change.length_seconds))
    return event


def _common(session: LabSession, stamp: datetime) -> Event:
    event = Event()
    event.add("uid", session.name + _AT)
    event.add("dtstamp", stamp)
    event.add("summary", session.name)
    event.add("description", f"{session.seats} places of the tier {session.tier} for {session.group}")
    for key in ("group", "tier", "seats", "lead_seconds", "grace_seconds", "prestart_seconds", "move_out"):
        event.add(_OURS + key.upper().replace("_", "-"), str(getattr(session, key)))
    return event


def _utc_until(local: str, zone: ZoneInfo) -> str:
    at = datetime.strptime(local, "%Y%m%dT%H%M%S").replace(tzinfo=zone)
    return f"UNTIL={at.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def _session(event: Any, defaults: Defaults) -> LabSession:
    name = _name(event)
    for unusable in ("RDATE", "EXRULE"):
        if unusable in event:
            raise BadOption(
                f"The event {name!r} has {unusable}, which is not understood: use RRULE and EXDATE."
            )
    begin, zone = _begin(event, name, defaults.timezone)
    rule = event.get("RRULE")
    if isinstance(rule, list):
        raise BadOption(f"The event {name!r} has several rules: make an event of each.")
    return LabSession(
        name=name,
        group=str(event.get(_OURS + "GROUP", defaults.group)),
        tier=str(event.get(_OURS + "TIER", defaults.tier)),
        seats=int(_number(event, name, "SEATS", defaults.seats)),
        first=begin.date(),
        begins=begin.time(),
        length_seconds=_length(event, name, begin, zone),
        rule="" if rule is None else checked_rule(rule.to_ical().decode(), zone),
        timezone=zone,
        lead_seconds=_number(event, name, "LEAD-SECONDS", 3600.0),
        grace_seconds=_number(event, name, "GRACE-SECONDS", 900.0),
        prestart_seconds=_number(event, name, "PRESTART-SECONDS", 0.0),
        move_out=_action(event, name),
        exdates=tuple(sorted(_days(event.get("EXDATE"), zone))),
    )


def _begin(event: Any, name: str, timezone: str) -> tuple[datetime, str]:
    """When the event begins, local and without a zone, and the zone's name."""
    value = getattr(event.get("DTSTART"), "dt", None)
    if not isinstance(value, datetime):
        raise BadOption(f"The event {name!r} has no time of day: give it a begin and an end.")
    if value.tzinfo is None and "TZID" not in event["DTSTART"].params:
        return value, timezone
    zone = "UTC" if value.utcoffset() == timedelta() and value.tzinfo is UTC else _zone(value, name)
    return value.replace(tzinfo=None), zone


def _zone(value: datetime, name: str) -> str:
    zone = getattr(value.tzinfo, "key", None)
    if not isinstance(zone, str):
        raise BadOption(
            f"The time zone of the event {name!r} has no name that is known: export the calendar with names "
            'like "Europe/Berlin".'
        )
    return zone


def _length(event: Any, name: str, begin: datetime, zone: str) -> float:
    duration, end = getattr(event.get("DURATION"), "dt", None), getattr(event.get("DTEND"), "dt", None)
    seconds = 0.0
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(end, datetime):
        seconds = (_local(end, zone) - begin).total_seconds()
    if not 60 <= seconds <= 86400:
        raise BadOption(f"The event {name!r} lasts {seconds / 60:.0f} minutes: give it 1 minute to a day.")
    return seconds


def _change(event: Any, session: LabSession) -> Change:
    begin, zone = _begin(event, session.name, session.timezone)
    local = _local(begin.replace(tzinfo=ZoneInfo(zone)), session.timezone)
    on = _day(event.get("RECURRENCE-ID").dt, session.timezone)
    return Change(on, local, _length(event, session.name, begin, zone))


def _days(value: Any, zone: str) -> set[date]:
    listed: Sequence[Any] = value if isinstance(value, list) else [] if value is None else [value]
    return {_day(each.dt, zone) for dates in listed for each in dates.dts}


def _day(value: date | datetime, zone: str) -> date:
    return _local(value, zone).date() if isinstance(value, datetime) else value


def _local(value: datetime, zone: str) -> datetime:
    return value if value.tzinfo is None else value.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def _number(event: Any, name: str, key: str, default: float) -> float:
    text = str(event.get(_OURS + key, default))
    try:
        return float(text)
    except ValueError:
        raise BadOption(f"The event {name!r} has {_OURS}{key}:{text}: give a number.") from None


def _action(event: Any, name: str) -> EndAction:
    text = str(event.get(_OURS + "MOVE-OUT", EndAction.STOP.value))
    if text not in list(EndAction):
        raise BadOption(f"The event {name!r} has {_OURS}MOVE-OUT:{text}: take one of {', '.join(EndAction)}.")
    return EndAction(text)


def _name(event: Any) -> str:
    """Its name in our own property, else its title in lower case with hyphens for other characters."""
    ours, at, _ = str(event.get("UID", "")).rpartition(_AT)
    if at and NAME.fullmatch(ours):
        return ours
    summary = str(event.get("SUMMARY", ""))
    slug = re.sub(r"[^a-z0-9]+", "-", summary.lower()).strip("-")[:60]
    if not slug:
        raise BadOption(f"An event's title {summary!r} makes no name: give it letters or digits.")
    return slug


def _uid(event: Any, name: str) -> str:
    return str(event.get("UID", name))
