"""Converts the keys of a pool of mode `turns` to values. Pure."""

from __future__ import annotations

import math
from typing import Any

from ..core.errors import ConfigError
from ..core.turn import TurnSettings, Unsleepable
from ..core.units import parse_bytes

MOST_SEATS = 1000
_SECONDS = ("pause_after", "sleep_after", "min_turn", "max_turn")
KEYS = ("seats", "sleep_memory", *_SECONDS, "unsleepable")
"""The keys that only such a pool has."""


def parse_turns(raw: dict[str, Any], where: str) -> TurnSettings:
    """The settings of the pool. Raises ConfigError, with what to write, for what can't work."""
    seats, size, policy = raw.get("seats"), raw.get("sleep_memory"), raw.get("unsleepable", Unsleepable.PAUSE)
    if seats is not None and (
        isinstance(seats, bool) or not isinstance(seats, int) or not 1 <= seats <= MOST_SEATS
    ):
        raise ConfigError(f"{where}: seats is {seats!r}: give a whole number from 1 to {MOST_SEATS}")
    if policy not in tuple(Unsleepable):
        raise ConfigError(
            f'{where}: unsleepable is {policy!r}: use "pause" (a program whose memory can\'t leave the GPU '
            'keeps it there) or "end" (it ends after a warning)'
        )
    given = {f"{key}_seconds": _seconds(raw[key], key, where) for key in _SECONDS if key in raw}
    settings = TurnSettings(
        seats=seats,
        sleep_memory_bytes=None if size is None else parse_bytes(size, f"{where}: sleep_memory"),
        unsleepable=Unsleepable(policy),
        **given,
    )
    if settings.min_turn_seconds > settings.max_turn_seconds:
        raise ConfigError(
            f"{where}: min_turn ({settings.min_turn_seconds:g} s) is longer than max_turn "
            f"({settings.max_turn_seconds:g} s): lower min_turn, or raise max_turn"
        )
    return settings


def _seconds(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.5 <= value < math.inf:
        raise ConfigError(f"{where}: {key} is {value!r}: give a number of seconds, 0.5 or more, like 60")
    return float(value)
