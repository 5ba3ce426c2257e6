"""When a running server has to end, why, and which warning is due: at 15 and at 5 minutes before. Pure.

A server has several deadlines: its longest session, GPU-hours that run out, a lab session that needs its GPU.
The earliest counts. Nobody ends without a warning: one that comes late, because a limit was changed or time
was lost, moves the end to five minutes after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from ....core.session import EndAction
from ..allow.period import format_local

WARNINGS_SECONDS = (900.0, 300.0)
"""How long before the end a warning is given, the earliest first."""
LEAST_NOTICE_SECONDS = WARNINGS_SECONDS[-1]


class Cause(StrEnum):
    """Why a server ends; also the lease's reason and a metric's label."""

    SESSION_LIMIT = "session_limit"
    GPU_HOURS = "gpu_hours"
    LAB_SESSION = "lab_session"
    QUOTA_CHANGED = "quota_changed"


_BECAUSE = {
    Cause.SESSION_LIMIT: "the longest time that your quota allows is over then",
    Cause.GPU_HOURS: "your GPU-hours are used up then",
    Cause.LAB_SESSION: "a lab session needs its GPU then",
    Cause.QUOTA_CHANGED: "your quota was changed",
}
_SAVE = "Save your work."
_MINUTES = re.compile(r"^(This server (?:ends|is put to sleep)) in \d+ minutes, on")
_WAS = {
    Cause.SESSION_LIMIT: "the longest time that your quota allows was over",
    Cause.GPU_HOURS: "your GPU-hours were used up",
    Cause.LAB_SESSION: "a lab session needed its GPU",
    Cause.QUOTA_CHANGED: "your quota was changed",
}


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a server has to end, and why; what is done then if the mode allows it."""

    at: datetime
    cause: Cause
    action: EndAction = EndAction.STOP


@dataclass(frozen=True, slots=True)
class Told:
    """Of which deadline the user was warned: how many of the warnings, and when the last was given."""

    deadline: Deadline | None = None
    warnings: int = 0
    last_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """What to do now: tell the user the sentence, end the server, or (neither) remember `told`.

    `withdrawn`: the deadline that the user was warned of no longer exists.
    """

    told: Told
    sentence: str = ""
    ends: bool = False
    withdrawn: bool = False


def earliest(deadlines: Iterable[Deadline | None]) -> Deadline | None:
    """The deadline that counts."""
    there = [each for each in deadlines if each is not None]
    return min(there, key=lambda each: (each.at, each.cause), default=None)


def session_deadline(
    started_at: datetime, session_seconds: float, extended_seconds: float
) -> Deadline | None:
    """When the longest session is over; None where there is no limit."""
    total = session_seconds + extended_seconds
    if total == float("inf"):
        return None
    return Deadline(started_at + timedelta(seconds=total), Cause.SESSION_LIMIT)


def warns_of_end(sentence: str) -> bool:
    """Whether the sentence is a warning that `due` gave, in this broker or in an earlier one."""
    return sentence.startswith("This server ") and sentence.endswith(
        tuple(f": {because}. {_SAVE}" for because in _BECAUSE.values())
    )


def for_a_page(sentence: str) -> str:
    """The notice without "in 15 minutes", which was true when it was given: a page counts down by itself."""
    return _MINUTES.sub(r"\1 on", sentence) if warns_of_end(sentence) else sentence


def due(deadline: Deadline | None, told: Told, now: datetime, timezone: str = "UTC") -> Notice:
    """What is due for a server with this deadline, of which the user was `told` so much.

    A deadline that moved later voids the warnings that it made untrue; one that moved nearer is warned of
    anew. Call it again within half a minute or so.
    """
    if deadline is None:
        gone = told.warnings > 0
        return Notice(Told(), withdrawn=gone)
    left = (deadline.at - now).total_seconds()
    stage = sum(left <= seconds for seconds in WARNINGS_SECONDS)
    if told.deadline is None or stage < told.warnings:
        later = told.warnings > stage
        told = Told(deadline, 0 if later else told.warnings, None if later else told.last_at)
        if later and stage == 0:
            return Notice(told, withdrawn=True)
    told = replace(told, deadline=deadline)
    if stage > told.warnings:
        return Notice(Told(deadline, stage, now), _warning(deadline, now, timezone))
    warned_long_enough = (
        told.last_at is not None and (now - told.last_at).total_seconds() >= LEAST_NOTICE_SECONDS
    )
    if left <= 0 and told.warnings == len(WARNINGS_SECONDS) and warned_long_enough:
        return Notice(told, ended(deadline), ends=True)
    return Notice(told)


def ended(deadline: Deadline) -> str:
    """What was done at the deadline, for the server's user."""
    done = "was put to sleep" if deadline.action is EndAction.SLEEP else "was ended"
    return f"This server {done}: {_WAS[deadline.cause]}."


def ends_at(deadline: Deadline, told: Told) -> datetime:
    """When the server really ends: not sooner than five minutes after its last warning."""
    if told.warnings < len(WARNINGS_SECONDS) or told.last_at is None:
        return deadline.at
    return max(deadline.at, told.last_at + timedelta(seconds=LEAST_NOTICE_SECONDS))


def extension_seconds(allowed_seconds: float, extended_seconds: float, wanted_seconds: float) -> float:
    """By how much a session is made longer now: what was wanted, as far as the quota still allows it."""
    return max(0.0, min(wanted_seconds, allowed_seconds - extended_seconds))


def _warning(deadline: Deadline, now: datetime, timezone: str) -> str:
    left = max((deadline.at - now).total_seconds(), LEAST_NOTICE_SECONDS)
    minutes = max(1, round(left / 60))
    at = format_local(now + timedelta(seconds=left), timezone, now)
    if deadline.action is EndAction.SLEEP and deadline.cause is Cause.GPU_HOURS:
        # It is charged only while it is awake, so nobody knows the time.
        when = f"after {minutes} more minutes on a GPU, on {at} at the earliest"
        return f"This server is put to sleep {when}: {_BECAUSE[deadline.cause]}. {_SAVE}"
    becomes = "is put to sleep" if deadline.action is EndAction.SLEEP else "ends"
    return f"This server {becomes} in {minutes} minutes, on {at}: {_BECAUSE[deadline.cause]}. {_SAVE}"
