"""Lab sessions from and to JSON: what the API takes, what the ledger keeps. Pure; every key is checked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time
from difflib import get_close_matches
from typing import Any

from ..core.errors import BadOption, ConfigError
from ..core.session import Change, EndAction, LabSession
from ..core.text import printable
from .quotas import Known, check_timezone
from .tiers import NAME

_KEYS = (
    "name", "group", "tier", "seats", "first", "begins", "length_seconds", "rule", "timezone",
    "lead_seconds", "grace_seconds", "prestart_seconds", "move_out", "exdates", "changes",
)  # fmt: skip
_REQUIRED = ("name", "group", "tier", "seats", "first", "begins", "length_seconds")
_LONGEST_SECONDS = 24 * 3600.0
_MAX_SEATS = 10_000
_MAX_DATES = 1000


def session_to_json(session: LabSession) -> dict[str, Any]:
    """Every field, dates and times as ISO 8601 text; what `session_from_json` reads."""
    return {
        "name": session.name,
        "group": session.group,
        "tier": session.tier,
        "seats": session.seats,
        "first": session.first.isoformat(),
        "begins": f"{session.begins:%H:%M}",
        "length_seconds": session.length_seconds,
        "rule": session.rule,
        "timezone": session.timezone,
        "lead_seconds": session.lead_seconds,
        "grace_seconds": session.grace_seconds,
        "prestart_seconds": session.prestart_seconds,
        "move_out": session.move_out.value,
        "exdates": [day.isoformat() for day in session.exdates],
        "changes": [
            {
                "on": change.on.isoformat(),
                "begins": change.begins.isoformat(timespec="minutes"),
                "length_seconds": change.length_seconds,
            }
            for change in session.changes
        ],
    }


def session_from_json(body: object, known: Known) -> LabSession:
    """The session that a JSON object describes. Raises BadOption, naming the key and what would be right.

    The rule is not looked at here: `broker.decide.timetable` knows them.
    """
    if not isinstance(body, Mapping):
        raise BadOption("A lab session is a JSON object.")
    unknown = sorted(str(key) for key in set(body) - set(_KEYS))
    if unknown:
        raise BadOption(f"A lab session has no key {unknown[0][:40]!r}: use {', '.join(_KEYS)}.")
    missing = [key for key in _REQUIRED if key not in body]
    if missing:
        raise BadOption(f"The lab session lacks {missing[0]!r}: add it.")
    zone = body.get("timezone", known.timezone)
    try:
        check_timezone(zone, "timezone")
    except ConfigError as error:
        raise BadOption(f"{error}.") from None
    defaults = {"lead_seconds": 3600.0, "grace_seconds": 900.0, "prestart_seconds": 0.0}
    return LabSession(
        name=_name(body["name"]),
        group=_text(body["group"], "group"),
        tier=_tier(body["tier"], known),
        seats=_seats(body["seats"]),
        first=_date(body["first"], "first"),
        begins=_clock(body["begins"]),
        length_seconds=_seconds(body["length_seconds"], "length_seconds", least=60.0),
        rule=_rule(body.get("rule", "")),
        timezone=str(zone),
        **{key: _seconds(body.get(key, value), key) for key, value in defaults.items()},
        move_out=_action(body.get("move_out", EndAction.STOP.value)),
        exdates=tuple(sorted({_date(day, "exdates") for day in _list(body.get("exdates", []), "exdates")})),
        changes=tuple(_change(each) for each in _list(body.get("changes", []), "changes")),
    )


def _name(value: object) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise BadOption(
            f"The name {value!r} can't be used: take lower-case letters, digits, '-', '_', like \"cs231n\"."
        )
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 255 or not printable(value):
        raise BadOption(f"{key} is {value!r}: give a name of the hub.")
    return value


def _tier(value: object, known: Known) -> str:
    names = [tier.name for tier in known.tiers if tier.needs_gpu]
    if value not in names:
        close = get_close_matches(str(value), names, 1)
        advice = f"take {close[0]!r}" if close else f"there are {', '.join(map(repr, names)) or 'none'}"
        raise BadOption(f"There is no tier with a GPU called {value!r}: {advice}.")
    return str(value)


def _seats(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SEATS:
        raise BadOption(f"seats is {value!r}: give a whole number from 1 to {_MAX_SEATS}.")
    return value


def _seconds(value: object, key: str, *, least: float = 0.0) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not least <= value <= _LONGEST_SECONDS:  # type: ignore[operator]
        raise BadOption(
            f"{key} is {value!r}: give a number of seconds from {least:g} to {_LONGEST_SECONDS:g} (a day)."
        )
    return float(value)  # type: ignore[arg-type]


def _date(value: object, key: str) -> date:
    try:
        day = date.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        day = None
    if day is None or not 2000 <= day.year <= 2200:
        raise BadOption(f'{key} has {value!r}: write a date like "2026-10-12".')
    return day


def _clock(value: object) -> time:
    try:
        at = time.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is not None or at.second or at.microsecond:
        raise BadOption(f'begins is {value!r}: write a time of day like "10:00".')
    return at


def _rule(value: object) -> str:
    if not isinstance(value, str) or len(value) > 500:
        raise BadOption(f'rule is {str(value)[:40]!r}: write it like "FREQ=WEEKLY;BYDAY=MO;UNTIL=20261218".')
    return value


def _action(value: object) -> EndAction:
    if value == EndAction.SLEEP:
        raise BadOption(
            "move_out is 'sleep': a server that sleeps keeps its seat, so that makes no room. Take 'stop', "
            "which warns 15 and 5 minutes before, or 'nothing'."
        )
    if not isinstance(value, str) or value not in list(EndAction):
        raise BadOption(f"move_out is {value!r}: take 'stop' or 'nothing'.")
    return EndAction(value)


def _list(value: object, key: str) -> list[object]:
    if not isinstance(value, list) or len(value) > _MAX_DATES:
        raise BadOption(f"{key} must be a list of at most {_MAX_DATES}.")
    return value


def _change(value: object) -> Change:
    if not isinstance(value, Mapping) or set(value) != {"on", "begins", "length_seconds"}:
        raise BadOption('A change has "on", "begins" and "length_seconds".')
    begins = value["begins"]
    try:
        at = datetime.fromisoformat(begins) if isinstance(begins, str) else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is not None:
        raise BadOption(f'A change begins at {begins!r}: write it like "2026-11-03T14:00", local time.')
    length = _seconds(value["length_seconds"], "length_seconds", least=60.0)
    return Change(_date(value["on"], "on"), at, length)
