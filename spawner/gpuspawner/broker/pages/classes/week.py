"""One week of lab sessions as a calendar shows it: columns of days, entries with their places. Pure.

A meeting over midnight is in two columns. A date that was cancelled or moved away stays where the rule put
it, so that everybody sees that it doesn't take place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from ....core.quota import Window
from ....core.session import LabSession, Meeting
from ...decide.allow.period import midnight
from ...decide.when.sessions import meetings

FIRST_HOUR, LAST_HOUR = 8, 18
"""The hours that are always shown; more if something meets earlier or later."""
_DAY_MINUTES = 24 * 60
_LEAST_MINUTES = 15
"""No entry is shown shorter, so that it can be read."""
_SHORT = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip


class Kind(StrEnum):
    """What an entry says about a date. SKIPPED and AWAY: the class doesn't meet there."""

    MEETS = "meets"
    MOVED = "moved"
    SKIPPED = "skipped"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Entry:
    """A meeting, or a date on which there is none, in one day's column.

    `on` is the local day of the session's rule: it names the meeting. `from_minutes` and `to_minutes` count
    from the column's midnight on the clock. For `kept_minutes` before, places are already kept. `lane` of
    `lanes` says where it stands beside others at the same time. `note` is "" or a sentence on a change.
    """

    session: LabSession
    on: date
    kind: Kind
    begins: str
    ends: str
    from_minutes: int
    to_minutes: int
    kept_minutes: int = 0
    now: bool = False
    note: str = ""
    lane: int = 0
    lanes: int = 1

    @property
    def takes_place(self) -> bool:
        """Whether the class meets."""
        return self.kind in (Kind.MEETS, Kind.MOVED)


@dataclass(frozen=True, slots=True)
class Day:
    """One column."""

    day: date
    title: str
    today: bool
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Week:
    """Seven days from `monday` on, with the hours from `first_hour` to `last_hour` (0-24)."""

    monday: date
    title: str
    timezone: str
    days: tuple[Day, ...]
    first_hour: int
    last_hour: int

    @property
    def before(self) -> date:
        """The Monday before."""
        return self.monday - timedelta(days=7)

    @property
    def after(self) -> date:
        """The Monday after."""
        return self.monday + timedelta(days=7)

    @property
    def hours(self) -> tuple[int, ...]:
        """The hours that begin in it."""
        return tuple(range(self.first_hour, self.last_hour))


def make_week(sessions: Iterable[LabSession], day: date, timezone: str, now: datetime) -> Week:
    """The week that contains `day`, on the clocks of `timezone`."""
    monday = day - timedelta(days=day.weekday())
    window = Window(midnight(monday, timezone), midnight(monday + timedelta(days=7), timezone))
    frame = _Frame(ZoneInfo(timezone), monday, now)
    pieces = [
        piece
        for session in sorted(sessions, key=lambda each: each.name)
        for entry in _entries(session, window, frame.zone)
        for piece in frame.pieces(session, *entry)
    ]
    today = now.astimezone(frame.zone).date()
    days = tuple(_day(monday + timedelta(days=number), pieces, today) for number in range(7))
    shown = [entry for each in days for entry in each.entries]
    return Week(
        monday=monday,
        title=_title(monday),
        timezone=timezone,
        days=days,
        first_hour=min([FIRST_HOUR, *((each.from_minutes - each.kept_minutes) // 60 for each in shown)]),
        last_hour=max([LAST_HOUR, *(-(-each.to_minutes // 60) for each in shown)]),
    )


def _entries(session: LabSession, window: Window, shown: ZoneInfo) -> Iterable[tuple[Meeting, Kind, str]]:
    """What a session has in the window: its meetings, and dates that were cancelled or moved away.

    Times in notes are on the clocks of `shown`, as the calendar's own.
    """
    zone = ZoneInfo(session.timezone)
    changed = {change.on: change for change in session.changes}
    by_rule = replace(session, exdates=(), changes=())
    for meeting in meetings(session, window):
        if meeting.on not in changed:
            yield meeting, Kind.MEETS, ""
        elif changed[meeting.on].begins == datetime.combine(meeting.on, session.begins):
            yield meeting, Kind.MEETS, "Not as long as usual, or longer."
        else:
            usual = datetime.combine(meeting.on, session.begins, zone).astimezone(shown)
            yield meeting, Kind.MOVED, f"Moved here from {_day_title(usual.date())}."
    for meeting in meetings(by_rule, window):
        if meeting.on in session.exdates:
            yield meeting, Kind.SKIPPED, "Doesn't meet on this day."
        elif meeting.on in changed:
            begins = changed[meeting.on].begins.replace(tzinfo=zone)
            if begins != meeting.start:
                at = begins.astimezone(shown)
                yield meeting, Kind.AWAY, f"Moved to {_day_title(at.date())}, {at:%H:%M}."


@dataclass(frozen=True, slots=True)
class _Frame:
    zone: ZoneInfo
    monday: date
    now: datetime

    def pieces(
        self, session: LabSession, meeting: Meeting, kind: Kind, note: str
    ) -> Iterable[tuple[date, Entry]]:
        """The parts of a meeting by day: one, or one for each day over midnight."""
        start, end = meeting.start.astimezone(self.zone), meeting.end.astimezone(self.zone)
        takes_place = kind in (Kind.MEETS, Kind.MOVED)
        day = start.date()
        while day <= end.date():
            first, last = day == start.date(), day == end.date()
            from_minutes = start.hour * 60 + start.minute if first else 0
            to_minutes = end.hour * 60 + end.minute if last else _DAY_MINUTES
            if first and last:  # where the clocks go back, an end may be before its beginning
                to_minutes = min(_DAY_MINUTES, max(to_minutes, from_minutes + _LEAST_MINUTES))
            if to_minutes > from_minutes:
                kept = int(session.lead_seconds // 60) if first and takes_place else 0
                yield (
                    day,
                    Entry(
                        session=session,
                        on=meeting.on,
                        kind=kind,
                        begins=f"{start:%H:%M}",
                        ends=f"{end:%H:%M}",
                        from_minutes=from_minutes,
                        to_minutes=to_minutes,
                        kept_minutes=min(kept, from_minutes),
                        now=takes_place and meeting.start <= self.now < meeting.end,
                        note=note,
                    ),
                )
            day += timedelta(days=1)


def _day(day: date, pieces: Iterable[tuple[date, Entry]], today: date) -> Day:
    entries = sorted(
        (entry for on, entry in pieces if on == day),
        key=lambda each: (each.from_minutes, each.to_minutes, each.session.name),
    )
    return Day(day, _day_title(day), day == today, tuple(_beside(entries)))


def _beside(entries: Sequence[Entry]) -> Iterable[Entry]:
    """The entries with their lanes: those that overlap stand beside each other."""
    group: list[Entry] = []
    ends: list[int] = []
    for entry in entries:
        if group and entry.from_minutes >= max(ends):
            yield from (replace(each, lanes=len(ends)) for each in group)
            group, ends = [], []
        lane = next((number for number, end in enumerate(ends) if end <= entry.from_minutes), len(ends))
        ends[lane : lane + 1] = [entry.to_minutes]
        group.append(replace(entry, lane=lane))
    yield from (replace(each, lanes=len(ends)) for each in group)


def _day_title(day: date) -> str:
    return f"{_SHORT[day.weekday()]} {day.day} {_MONTHS[day.month - 1][:3]}"


def _title(monday: date) -> str:
    """For example "23 to 29 November 2026", "30 November to 6 December 2026"."""
    last = monday + timedelta(days=6)
    end = f"{last.day} {_MONTHS[last.month - 1]} {last.year}"
    if monday.month == last.month:
        return f"{monday.day} to {end}"
    year = "" if monday.year == last.year else f" {monday.year}"
    return f"{monday.day} {_MONTHS[monday.month - 1]}{year} to {end}"
