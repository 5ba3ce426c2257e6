"""A lab session as people type it, on the command line or in a form, to what the API takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from ....core.errors import BadOption
from .timetable import checked_rule, make_rule, parse_when

_MINUTES = {"lead": "lead_seconds", "grace": "grace_seconds", "prestart": "prestart_seconds"}
_TEXTS = ("group", "tier", "timezone", "move_out")
_KEYS = frozenset({*_TEXTS, *_MINUTES, "seats", "when", "from", "until", "rule", "skip", "move"})


def session_document(base: Mapping[str, Any], values: Mapping[str, str], today: date) -> dict[str, Any]:
    """The session of `base` with what was typed over it, as the API takes it. Raises BadOption."""
    session = {**base, **{key: values[key] for key in _TEXTS if key in values}}
    unknown = set(values) - _KEYS
    if unknown:
        raise BadOption(f"A lab session has no {sorted(unknown)[0]!r}: use {', '.join(sorted(_KEYS))}.")
    if "seats" in values:
        session["seats"] = parse_count(values["seats"], "seats")
    for key, field in _MINUTES.items():
        if key in values:
            session[field] = parse_count(values[key], key) * 60
    if "when" in values:
        first = parse_day(values["from"]) if "from" in values else today
        until = parse_day(values["until"]) if "until" in values else None
        when = parse_when(values["when"])
        day, rule = make_rule(when, first, until, session["timezone"])
        session |= {
            "first": day.isoformat(), "begins": f"{when.begins:%H:%M}", "length_seconds": when.length_seconds,
            "rule": rule,
        }  # fmt: skip
    elif "until" in values or "from" in values:
        raise BadOption('from and until belong to when: write all three, like when="Mondays 10-12".')
    if "rule" in values:
        session["rule"] = checked_rule(values["rule"], session["timezone"])
    if "skip" in values:
        days = [parse_day(text).isoformat() for text in values["skip"].split(",")]
        session["exdates"] = sorted({*session.get("exdates", []), *days})
    if "move" in values:
        moved = _moved(values["move"])
        others = (each for each in session.get("changes", []) if each["on"] != moved["on"])
        session["changes"] = [*others, moved]
    return session


def _moved(text: str) -> dict[str, Any]:
    """The change of a day's meeting from "2026-10-26:2026-10-27 14-16"."""
    day, colon, new = text.partition(":")
    when = parse_when(new) if colon else None
    if when is None or when.day is None:
        raise BadOption(f'move is {text!r}: write it like move="2026-10-26:2026-10-27 14-16".')
    begins = datetime.combine(when.day, when.begins)
    return {
        "on": parse_day(day).isoformat(),
        "begins": begins.isoformat(timespec="minutes"),
        "length_seconds": when.length_seconds,
    }


def parse_count(text: str, key: str) -> int:
    """A whole number. Raises BadOption, naming `key`."""
    try:
        return int(text)
    except ValueError:
        raise BadOption(f"{key} is {text!r}: give a whole number.") from None


def parse_day(text: str) -> date:
    """A date. Raises BadOption."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadOption(f"{text!r} is no date: write it like 2026-10-12.") from None
