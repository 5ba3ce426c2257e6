"""The words of lab sessions: a weekly class that has GPUs kept for it, and each time that it meets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time
from enum import StrEnum


class EndAction(StrEnum):
    """What is done with a server whose time on the GPU is over."""

    NOTHING = "nothing"
    STOP = "stop"
    SLEEP = "sleep"


@dataclass(frozen=True, slots=True)
class Change:
    """One meeting is at another time: that of the day `on` begins at `begins`, local and without a zone."""

    on: date
    begins: datetime
    length_seconds: float


@dataclass(frozen=True, slots=True)
class LabSession:
    """So many places of a tier, kept for a group whenever it meets.

    It meets at `begins`, local time of `timezone`, first on `first`, then as `rule` says (an RRULE of
    RFC 5545 without DTSTART; "" for once), but not on `exdates`. From `lead_seconds` before on, capacity is
    kept free; what nobody took `grace_seconds` after the begin goes back. From `prestart_seconds` before on
    the members' servers are started. `move_out` is what becomes of others' servers that are in the way.
    """

    name: str
    group: str
    tier: str
    seats: int
    first: date
    begins: time
    length_seconds: float
    rule: str = ""
    timezone: str = "UTC"
    lead_seconds: float = 3600.0
    grace_seconds: float = 900.0
    prestart_seconds: float = 0.0
    move_out: EndAction = EndAction.STOP
    exdates: tuple[date, ...] = ()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Meeting:
    """One time that a session meets, in UTC. `on` is the local day that the rule gave it."""

    start: datetime
    end: datetime
    session: str
    on: date
