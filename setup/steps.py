"""The output on the terminal while things are set up: one line for each step, one block for an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

DETAIL_SECONDS = 15.0  # without a terminal: a long step says where it is this often


class SetupError(Exception):
    """Setting up can't go on. `problem` and `remedy` are sentences for the person who typed the command."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem = problem
        self.remedy = remedy

    def block(self) -> str:
        """The error as it is printed: one clear block."""
        return f"\n✗ {self.problem}\n  → {self.remedy}\n"


class Step:
    """One line on the terminal while a step runs; see `step`."""

    def __init__(self, title: str, out: TextIO) -> None:
        self.note = ""
        self.mark = "✓"  # or "–" for what was left out
        self._title = title
        self._out = out
        self._live = out.isatty()
        self._started = self._last = time.monotonic()

    def detail(self, text: str) -> None:
        """What the step is doing right now: replaces the line, or is printed now and then."""
        now = time.monotonic()
        if self._live:
            self._out.write(f"\r\x1b[K… {self._title}: {text[:100]}")
            self._out.flush()
        elif now - self._last >= DETAIL_SECONDS:
            self._last = now
            print(f"… {self._title}: {text[:200]} ({now - self._started:.0f} s)", file=self._out, flush=True)

    def finish(self, mark: str) -> None:
        """Ends the line with the result and how long it took."""
        seconds = time.monotonic() - self._started
        note = f": {self.note}" if self.note else ""
        clear = "\r\x1b[K" if self._live else ""
        print(f"{clear}{mark} {self._title}{note} ({seconds:.1f} s)", file=self._out, flush=True)


@contextmanager
def step(title: str, out: TextIO | None = None) -> Iterator[Step]:
    """Shows `title` while the block runs, then the block's `mark` (a tick) and `note`, or a cross."""
    current = Step(title, out or sys.stdout)
    current.detail("…")
    try:
        yield current
    except BaseException:
        current.finish("✗")
        raise
    current.finish(current.mark)
