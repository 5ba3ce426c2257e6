"""Who held which device when, as bars on a day's line: for a drawing that the server makes. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from ....core.text import isolated
from ...ledger import Held

COLOURS = 8
"""So many colours tell users apart; a user has the same one on every page."""
TICK_HOURS = 3
LEAST_PERCENT = 0.2
"""A shorter bar would not be seen: of a day, three minutes."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A lease on a device: where it begins and how long it is, in percent of the line; `lane` from 0."""

    from_percent: float
    width_percent: float
    lane: int
    colour: int
    user: str
    title: str
    open: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One device's day, with as many lanes as it had leases at once (at least one)."""

    uuid: str
    name: str
    lanes: int
    bars: tuple[Bar, ...]
    busy_percent: float
    """For how much of the time somebody held it."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A full hour on the line."""

    percent: float
    label: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The lines of some devices from `start` to `end`."""

    start: datetime
    end: datetime
    timezone: str
    ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """The time that is shown, and on whose clock."""

    start: datetime
    end: datetime
    timezone: str = "UTC"

    def percent(self, at: datetime) -> float:
        """Where a moment is on the line, from 0 to 100."""
        part = (at - self.start) / (self.end - self.start)
        return 100 * min(1.0, max(0.0, part))


def make_timeline(devices: Sequence[tuple[str, str]], held: Iterable[Held], span: Span) -> Timeline:
    """The timeline of these devices (UUID and name), in their order; `held` may have others too."""
    of_device: dict[str, list[Held]] = {uuid: [] for uuid, _ in devices}
    for each in held:
        if each.device_uuid in of_device and _end(each, span) > span.start and each.started_at < span.end:
            of_device[each.device_uuid].append(each)
    lines = tuple(_line(uuid, name, of_device[uuid], span) for uuid, name in devices)
    return Timeline(span.start, span.end, span.timezone, tuple(_ticks(span)), lines)


def colour_of(user: str) -> int:
    """The user's colour, from 0."""
    return zlib.crc32(user.encode()) % COLOURS


def _end(held: Held, span: Span) -> datetime:
    return span.end if held.ended_at is None else min(held.ended_at, span.end)


def _line(uuid: str, name: str, held: Sequence[Held], span: Span) -> Line:
    ends: list[datetime] = []
    bars = []
    for each in sorted(held, key=lambda each: (each.started_at, each.lease_id)):
        lane = next((number for number, end in enumerate(ends) if end <= each.started_at), len(ends))
        ends[lane : lane + 1] = [_end(each, span)]
        bars.append(replace(_bar(each, span), lane=lane))
    return Line(uuid, name, max(1, len(ends)), tuple(bars), _busy(held, span))


def _bar(held: Held, span: Span) -> Bar:
    begin, end = span.percent(held.started_at), span.percent(_end(held, span))
    who = isolated(held.user) + (f", server “{isolated(held.server)}”" if held.server else "")
    zone = ZoneInfo(span.timezone)
    until = "now" if held.ended_at is None else f"{held.ended_at.astimezone(zone):%H:%M}"
    return Bar(
        from_percent=round(min(begin, 100 - LEAST_PERCENT), 3),
        width_percent=round(max(LEAST_PERCENT, end - begin), 3),
        lane=0,
        colour=colour_of(held.user),
        user=held.user,
        title=f"{who}, {isolated(held.tier)}: {held.started_at.astimezone(zone):%a %H:%M} to {until}",
        open=held.ended_at is None,
    )


def _busy(held: Iterable[Held], span: Span) -> float:
    """In percent of the time: somebody held it, whoever and however many."""
    seconds, until = 0.0, span.start
    for each in sorted(held, key=lambda each: each.started_at):
        begin, end = max(each.started_at, until), _end(each, span)
        seconds += max(0.0, (end - begin).total_seconds())
        until = max(until, end)
    return round(100 * seconds / (span.end - span.start).total_seconds(), 1)


def _ticks(span: Span) -> Iterable[Tick]:
    """Every third full hour on the clock of the time zone."""
    zone = ZoneInfo(span.timezone)
    at = span.start.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    while at < span.end:
        local = at.astimezone(zone)
        if local.hour % TICK_HOURS == 0 and local.minute == 0:
            yield Tick(round(span.percent(at), 3), f"{local:%H:%M}")
        at += timedelta(hours=1)
