"""`c.GpuSite.idle` to values. Pure; every error names the key and what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..core.errors import ConfigError
from ..core.session import EndAction

_SECONDS = ("first_warning", "second_warning", "after")
_KEYS = (*_SECONDS, "action", "only_when_waiting")
_ACTIONS = (EndAction.STOP, EndAction.SLEEP, EndAction.NOTHING)


@dataclass(frozen=True, slots=True)
class IdleRules:
    """After how many seconds of idleness what happens."""

    first_warning_seconds: float = 900.0
    second_warning_seconds: float = 3300.0
    after_seconds: float = 3600.0
    action: EndAction = EndAction.STOP
    only_when_waiting: bool = True


def parse_idle(raw: Mapping[str, object]) -> IdleRules:
    """The rules. Raises ConfigError."""
    where = "c.GpuSite.idle"
    unknown = sorted(str(key) for key in set(raw) - set(_KEYS))
    if unknown:
        close = get_close_matches(unknown[0], _KEYS, 1)
        raise ConfigError(f"{where} has no key {unknown[0]!r}: use {close[0] if close else ', '.join(_KEYS)}")
    default = IdleRules()
    seconds = [_seconds(raw, key, getattr(default, f"{key}_seconds")) for key in _SECONDS]
    if not seconds[0] <= seconds[1] <= seconds[2]:
        raise ConfigError(
            f"{where}: first_warning {seconds[0]:g}, second_warning {seconds[1]:g} and after {seconds[2]:g} "
            'have to follow one another: write them like "first_warning": 900, "second_warning": 3300, '
            '"after": 3600'
        )
    action, waiting = raw.get("action", "stop"), raw.get("only_when_waiting", True)
    if action not in [each.value for each in _ACTIONS]:
        raise ConfigError(f'{where}: action is {action!r}: write "action": "stop", "sleep" or "nothing"')
    if not isinstance(waiting, bool):
        raise ConfigError(f"{where}: only_when_waiting is {waiting!r}: write True or False")
    return IdleRules(seconds[0], seconds[1], seconds[2], EndAction(str(action)), waiting)


def _seconds(raw: Mapping[str, object], key: str, default: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 30 * 86400:
        raise ConfigError(f'c.GpuSite.idle: {key} is {value!r}: give a number of seconds, like "{key}": 3600')
    return float(value)
