"""What is found out slowly: doctor's findings. Looked for on request, and kept.

Each look runs in a thread of its own, one at a time, and its result stays until somebody asks for a new one:
a page never waits for Docker. `gpuspawner doctor` is a program of its own: the broker knows nothing
of the tools.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ...core.units import Clock, utc_now
from ...node.daemon_pool import DaemonPool

LOOK_SECONDS = 60.0
"""A look that takes longer is reported as failed; its thread ends by itself."""


@dataclass(frozen=True, slots=True)
class Line:
    """A finding: `level` is "ok", "note" or "problem"; `remedy` what to do, "" if nothing."""

    level: str
    subject: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The last look: when, what it found, or why it failed. `running`: another one is under way."""

    at: datetime | None = None
    lines: tuple[Line, ...] = ()
    fault: str = ""
    running: bool = False


Findings = Callable[[], Sequence[Line]]


class Checkup:
    """One a broker, on its event loop. `findings` blocks, and may raise anything."""

    def __init__(self, findings: Findings, clock: Clock = utc_now) -> None:
        self._findings, self._clock = findings, clock
        self._pool = DaemonPool("checkup", most=1)
        self._task: asyncio.Task[None] | None = None
        self._report = Report()

    @property
    def report(self) -> Report:
        """The last look; the first question begins one."""
        if self._report.at is None and self._task is None:
            self.begin()
        found = self._report
        running = self._task is not None
        return replace(found, running=running)

    def begin(self) -> None:
        """Begins a look, unless one is under way."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="checkup")

    def close(self) -> None:
        """Ends the thread."""
        if self._task is not None:
            self._task.cancel()
        self._pool.close()

    async def _run(self) -> None:
        try:
            self._report = await asyncio.wait_for(self._pool.submit(self._look), LOOK_SECONDS)
        except TimeoutError:
            self._report = Report(
                self._clock(), fault=f"The check did not end within {LOOK_SECONDS:.0f} s: try it again."
            )
        except Exception as error:  # the top of this task: a failed check must not break the page
            logging.getLogger(__name__).exception("The machine could not be checked")
            self._report = Report(self._clock(), fault=f"The check failed: {type(error).__name__}: {error}")
        finally:
            self._task = None

    def _look(self) -> Report:
        return Report(self._clock(), tuple(self._findings()))


def ask_doctor(config_file: str) -> tuple[Line, ...]:
    """The findings of `gpuspawner doctor`, the worst first. Blocks; raises OSError or ValueError."""
    command = [sys.executable, "-m", "gpuspawner.tools.cli", "doctor", "--json"]
    if config_file:
        command.append(f"--config={config_file}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_SECONDS, check=False)
    try:
        found = json.loads(done.stdout)["findings"]
    except (ValueError, KeyError):
        raise ValueError(f"doctor said: {(done.stderr or done.stdout).strip()[-300:]}") from None
    lines = [Line(each["level"], each["subject"], each["text"], each["remedy"]) for each in found]
    return tuple(sorted(lines, key=lambda line: _LEVELS.index(line.level)))


_LEVELS = ("problem", "note", "ok")
