"""When a budget's day, week or term begins and ends. Pure; days begin at midnight of the period's time zone.

The two ends of a day are found from its date, not by adding 24 hours: a day on which the clocks change has
23 or 25 of them.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from ....core.quota import Period, PeriodKind, Window

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def midnight(day: date, timezone: str) -> datetime:
    """When `day` begins in the time zone, in UTC.

    Where the clocks jump over midnight, it is the first moment of the day. Where midnight comes twice, it
    is the first of the two.
    """
    zone = ZoneInfo(timezone)
    begin = datetime.combine(day, time(), zone).astimezone(UTC)
    if begin.astimezone(zone).date() == day:
        return begin
    # fold=0 in a gap counts with the offset from before it, which may fall on the day before
    # (PEP 495): the day begins where the gap ends.
    low, high = begin, begin + timedelta(hours=3)
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        low, high = (low, middle) if middle.astimezone(zone).date() == day else (middle, high)
    return high.replace(microsecond=0)


def window_at(period: Period, at: datetime) -> Window | None:
    """The run of the period that contains `at` (aware); None outside a term."""
    today = at.astimezone(ZoneInfo(period.timezone)).date()
    match period.kind:
        case PeriodKind.DAY:
            first, following = today, today + timedelta(days=1)
        case PeriodKind.WEEK:
            first = today - timedelta(days=(today.weekday() - period.first_weekday) % 7)
            following = first + timedelta(days=7)
        case PeriodKind.TERM:
            if period.first is None or period.last is None or not period.first <= today <= period.last:
                return None
            first, following = period.first, period.last + timedelta(days=1)
    return Window(midnight(first, period.timezone), midnight(following, period.timezone))


def words(period: Period) -> str:
    """The period as a refusal names it: "today", "this week", "from 2026-10-12 to 2027-02-12"."""
    match period.kind:
        case PeriodKind.DAY:
            return "today"
        case PeriodKind.WEEK:
            return "this week"
        case PeriodKind.TERM:
            return f"from {period.first} to {period.last}"


def format_local(at: datetime, timezone: str, now: datetime) -> str:
    """`at` for people: "Monday 00:00 (Europe/Berlin)" within a week of `now`, else with the date."""
    local = at.astimezone(ZoneInfo(timezone))
    near = timedelta() <= at - now <= timedelta(days=7)
    day = WEEKDAYS[local.weekday()] if near else f"{local:%Y-%m-%d}"
    return f"{day} {local:%H:%M} ({timezone})"
