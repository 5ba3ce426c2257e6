"""Reports of used GPU-hours by user, group, tier, day or machine. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from ....core.quota import Period, PeriodKind, Window
from .budget import Interval, gpu_seconds_in
from .period import window_at


class By(StrEnum):
    """What a report has a line for."""

    USER = "user"
    GROUP = "group"
    TIER = "tier"
    DAY = "day"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Charged:
    """An interval in which a lease was awake, with what it is counted for."""

    lease_id: str
    user: str
    groups: tuple[str, ...]
    tier: str
    interval: Interval
    node: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """`gpu_seconds` of one user, group, tier, day or machine, with the numbers of leases and users."""

    name: str
    gpu_seconds: float
    lease_count: int
    user_count: int


@dataclass(frozen=True, slots=True)
class Report:
    """The lines, most use first (days in order), and the total of the window.

    A user in several groups counts in each of them, so groups may add up to more than the total.
    """

    by: By
    window: Window
    timezone: str
    lines: tuple[Line, ...]
    total: Line


def make_report(charged: Iterable[Charged], by: By, window: Window, timezone: str) -> Report:
    """The report of a window. Days are days of the time zone; users without a group are in "(no group)"."""
    seconds: dict[str, float] = {}
    leases: dict[str, set[str]] = {}
    users: dict[str, set[str]] = {}
    total, all_leases, all_users = 0.0, set(), set()
    for each in charged:
        whole = gpu_seconds_in(each.interval, window)
        if whole <= 0:
            continue
        total += whole
        all_leases.add(each.lease_id)
        all_users.add(each.user)
        for name, part in _parts(each, by, window, timezone, whole):
            seconds[name] = seconds.get(name, 0.0) + part
            leases.setdefault(name, set()).add(each.lease_id)
            users.setdefault(name, set()).add(each.user)
    lines = [Line(name, part, len(leases[name]), len(users[name])) for name, part in seconds.items()]
    if by is By.DAY:
        lines.sort(key=lambda line: line.name)
    else:
        lines.sort(key=lambda line: (-line.gpu_seconds, line.name))
    return Report(by, window, timezone, tuple(lines), Line("total", total, len(all_leases), len(all_users)))


def _parts(each: Charged, by: By, window: Window, timezone: str, whole: float) -> list[tuple[str, float]]:
    match by:
        case By.USER:
            return [(each.user, whole)]
        case By.TIER:
            return [(each.tier, whole)]
        case By.GROUP:
            return [(name, whole) for name in each.groups or ("(no group)",)]
        case By.NODE:
            return [(each.node or "(not known)", whole)]
        case By.DAY:
            return _days(each.interval, window, timezone)


def _days(interval: Interval, window: Window, timezone: str) -> list[tuple[str, float]]:
    """The parts of the interval by day, as far as they lie in the window."""
    at = max(interval.started_at, window.start)
    end = min(interval.started_at + timedelta(seconds=interval.seconds), window.end)
    period = Period(PeriodKind.DAY, timezone)
    parts = []
    while at < end:
        day = window_at(period, at)
        assert day is not None  # a day is never outside of its period
        clipped = Window(max(day.start, window.start), min(day.end, window.end))
        parts.append(
            (f"{day.start.astimezone(ZoneInfo(timezone)):%Y-%m-%d}", gpu_seconds_in(interval, clipped))
        )
        at = day.end
    return parts
