"""setup/steps.py: what the terminal shows."""

from __future__ import annotations

import io
import re

import pytest

from setup.steps import SetupError, step


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def without_times(text: str) -> str:
    return re.sub(r"\(\d+\.\d s\)", "(T)", text)


def test_a_step_is_one_line_with_its_note() -> None:
    out = io.StringIO()
    with step("proxy", out) as current:
        current.detail("fetching")
        current.note = "is there"
    assert without_times(out.getvalue()) == "✓ proxy: is there (T)\n"


def test_on_a_terminal_the_line_moves() -> None:
    out = Terminal()
    with step("proxy", out) as current:
        current.detail("fetching")
    assert without_times(out.getvalue()) == (
        "\r\x1b[K… proxy: …\r\x1b[K… proxy: fetching\r\x1b[K✓ proxy (T)\n"
    )


def test_without_a_terminal_a_long_step_says_now_and_then_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([0.0, 0.0, 14.0, 15.0, 16.0, 31.0, 32.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    out = io.StringIO()
    with step("images", out) as current:
        for text in ("one", "two", "three", "four"):
            current.detail(text)
    assert out.getvalue() == "… images: two (15 s)\n… images: four (31 s)\n✓ images (32.0 s)\n"


def test_a_step_that_fails_says_so_and_raises() -> None:
    out = io.StringIO()
    with pytest.raises(SetupError), step("engine", out):
        raise SetupError("it does not run", "start it")
    assert without_times(out.getvalue()) == "✗ engine (T)\n"


def test_an_error_is_one_block_with_its_remedy() -> None:
    assert SetupError("port 8000 is taken", "set GPUSPAWNER_PORT").block() == (
        "\n✗ port 8000 is taken\n  → set GPUSPAWNER_PORT\n"
    )
