"""Converts text to bytes and back, and times and ordinals to text. Other code uses only bytes and UTC."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

from .errors import ConfigError

Clock = Callable[[], datetime]
"""Returns the current time, timezone-aware and in UTC; injected, so that tests can set the time."""

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*$", re.IGNORECASE)
_FACTOR = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def format_time(at: datetime) -> str:
    """`at` as text for people, with the date, as they may read it days later: "2026-03-01 12:30 UTC"."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def parse_bytes(text: str | int, what: str = "a size") -> int:
    """Bytes of `text`: "8G", "512M", "80GiB" (powers of 1024, as Docker and JupyterHub), or a number.

    Raises ConfigError, naming `what`, for anything else and for zero.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        match = _SIZE.match(str(text))
        size = int(float(match[1]) * _FACTOR[match[2].upper()]) if match else 0
    if size <= 0:
        raise ConfigError(f'{what} is {text!r}: write it like "8G", "512M" or a number of bytes')
    return size


def format_bytes(size: int | None) -> str:
    """`size` for people, in powers of 1024: "80 GiB", "7.9 GiB", "not available" for None."""
    if size is None:
        return "not available"
    power = min(4, max(0, (size.bit_length() - 1) // 10)) if size > 0 else 0
    value = size / (1 << 10 * power)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{value:.0f} {unit}" if value >= 10 or power == 0 else f"{value:.1f} {unit}"


def ordinal(number: int) -> str:
    """1 → "1st", 2 → "2nd", 11 → "11th"."""
    if 10 <= number % 100 <= 20:
        return f"{number}th"
    return str(number) + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
