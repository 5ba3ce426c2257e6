"""Conversion at the edge: sizes to bytes and back, ordinals, the clock."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.units import format_bytes, format_time, ordinal, parse_bytes, utc_now
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("1", 1), ("1B", 1), ("1k", 1024), ("8G", 8 << 30), ("8GB", 8 << 30), ("8GiB", 8 << 30),
        (" 512 M ", 512 << 20), ("1.5T", 3 << 39), ("0.5K", 512), (85_520_809_984, 85_520_809_984),
    ],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0G", 0, -1, "-1G", "1e3", "G", "1 2", "1GG", "1.G", True, False, "1P"]
)
def test_what_is_no_size_is_refused_by_name(text: str | int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes(text, "tier 'gpu': mem_limit")
    assert str(caught.value) == (
        f'tier \'gpu\': mem_limit is {text!r}: write it like "8G", "512M" or a number of bytes'
    )


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_bytes(text) > 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "not available"), (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"),
        (80 << 30, "80 GiB"), (85_520_809_984, "80 GiB"), (8_439_791_616, "7.9 GiB"), (3 << 39, "1.5 TiB"),
        (1 << 50, "1024 TiB"),
    ],
)  # fmt: skip
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(1, 1 << 55))
def test_what_is_shown_is_within_its_last_digit(size: int) -> None:
    number, unit = format_bytes(size).split()
    factor = 1 << 10 * ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert abs(float(number) * factor - size) <= factor * (0.051 if float(number) < 10 else 0.5)


def test_ordinals() -> None:
    numbers = [1, 2, 3, 4, 10, 11, 12, 13, 20, 21, 22, 23, 101, 111, 112]
    assert [ordinal(number) for number in numbers] == [
        "1st", "2nd", "3rd", "4th", "10th", "11th", "12th", "13th", "20th", "21st", "22nd", "23rd", "101st",
        "111th", "112th",
    ]  # fmt: skip


def test_a_time_is_told_with_its_date_and_in_utc() -> None:
    berlin = timezone(timedelta(hours=2))
    assert format_time(datetime(2026, 6, 1, 0, 30, tzinfo=berlin)) == "2026-05-31 22:30 UTC"


def test_the_clock_is_utc() -> None:
    now = utc_now()
    assert now.tzinfo is UTC
    assert utc_now() - now < timedelta(seconds=5)
