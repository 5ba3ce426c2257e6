"""Values as words for people: when, how long, how many. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Moment:
    """When something began: `span` ("3 minutes") to read, `exact` for the title, `iso` for the machine."""

    iso: str
    exact: str
    span: str


def moment(iso: str | None, now: datetime) -> Moment | None:
    """`iso` (ISO 8601 UTC) for people: how long ago it was, with the exact time. None stays None."""
    if iso is None:
        return None
    at = datetime.fromisoformat(iso).astimezone(UTC)
    exact = at.strftime("since %Y-%m-%d %H:%M:%S UTC")
    return Moment(iso=iso, exact=exact, span=span((now - at).total_seconds()))


def span(seconds: float) -> str:
    """A length of time in its largest unit: "3 minutes"."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = int(seconds // size)
        if count >= 1:
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "less than a minute"


def length(seconds: float) -> str:
    """A length of time to the minute: "1 h 22 min", "22 minutes", "1 minute", "less than a minute"."""
    hours, minutes = divmod(int(seconds // 60), 60)
    if hours < 1:
        return span(seconds)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def count_of(free: int, total: int, noun: str) -> str:
    """For example "1 of 4 GPUs"."""
    return f"{free} of {total} {noun}{'' if total == 1 else 's'}"
