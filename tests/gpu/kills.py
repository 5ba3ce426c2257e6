"""Kills the broker and its helper in a chosen phase of somebody's turn, in tests on real GPUs.

    60 helper, 90 broker sleep, 120 helper wake, 150 broker pause, 180 helper resume

"90 broker sleep": from 90 s on, as soon as somebody's memory is on its way to main memory. Without a phase
the process is killed at its time, whatever is under way.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.running import System
from tests.webclient import Client

VICTIMS = ("helper", "broker")
PHASES = ("pause", "sleep", "wake", "resume")
"""Of a step that is under way: a pause, a move to main memory, one back, a wake of paused memory."""
LONG_SECONDS = 0.5
"""A pause is over by then (measured: at most 0.34 s), a move to main memory is not."""
PHASE_SECONDS = 45.0
"""So long one waits for the phase; then it is killed all the same, and that is said."""
AGAIN_SECONDS = 60.0
Turns = Mapping[str, Mapping[str, Any]]
"""What the API says of each user's turn."""


@dataclass(frozen=True)
class Kill:
    """What is killed, from when on (seconds), and in which phase; "": any."""

    at_seconds: float
    what: str
    phase: str = ""

    @property
    def name(self) -> str:
        """For the results."""
        return f"{self.what} in a {self.phase}" if self.phase else self.what


def parse_kills(text: str) -> list[Kill]:
    """In the order of their times. Raises ValueError for anything else than the words above."""
    found = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        seconds, what, *phase = part.split()
        kill = Kill(float(seconds), what, *phase)
        if kill.what not in VICTIMS:
            raise ValueError(f"{what!r} can't be killed: {', '.join(VICTIMS)}")
        if kill.phase and kill.phase not in PHASES:
            raise ValueError(f"{kill.phase!r} is no phase: {', '.join(PHASES)}")
        found.append(kill)
    return sorted(found, key=lambda kill: kill.at_seconds)


def helper_of(broker_pid: int, proc: Path = Path("/proc")) -> int | None:
    """The process that talks to the driver: a child of the broker."""
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (folder / "cmdline").read_text()
            if parent == broker_pid and ("checkpoint.helper" in command or "checkpoint.standin" in command):
                return int(folder.name)
    return None


class PhaseWatch:
    """Says from looks at everybody's turn whether somebody is in a phase now. Pure: it gets the time."""

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._moves_since: dict[str, float] = {}
        self._waited: set[str] = set()
        """Who had a place in line at the last look."""

    def sees(self, turns: Turns, at: float) -> str | None:
        """Who is in it, at `at` (monotonic seconds)."""
        waited, self._waited = self._waited, {user for user, turn in turns.items() if turn["position"]}
        moving = {user for user, turn in turns.items() if turn["moves"]}
        self._moves_since = {user: self._moves_since.get(user, at) for user in moving}
        return next((user for user in sorted(moving) if self._is_in(turns[user], user, waited, at)), None)

    def _is_in(self, turn: Mapping[str, Any], user: str, waited: set[str], at: float) -> bool:
        lasts = at - self._moves_since[user]
        match self._phase:
            case "wake":
                return bool(turn["turn"] == "asleep" and turn["memory_bytes"])
            case "sleep":
                return turn["turn"] != "asleep" and lasts >= LONG_SECONDS
            case "pause":
                return turn["turn"] == "awake" and lasts < LONG_SECONDS
            case _:
                return turn["turn"] == "paused" and user in waited


@dataclass(frozen=True)
class Killer:
    """Kills what its text says, in one system. `tell` gets the name of each kill and what was seen."""

    system: System
    admin: Client
    tell: Callable[[str, Any], None]

    async def turns(self) -> Turns:
        """Everybody's turn; nothing while a new broker starts."""
        with suppress(AssertionError, aiohttp.ClientError, ValueError, TimeoutError):
            leases = (await self.admin.json("services/gpu/api/status"))["leases"]
            return {each["user"]: each["turn"] for each in leases if each["turn"] is not None}
        with suppress(AssertionError, aiohttp.ClientError, TimeoutError):
            await self.admin.text("services/gpu/")  # logs in again, if the new broker wants it
        return {}

    async def run(self, kills: list[Kill], began: float) -> None:
        """Until all were done. `began` is of time.time()."""
        for kill in kills:
            await asyncio.sleep(max(0.0, began + kill.at_seconds - time.time()))
            pid = await self._pid(kill.what)
            seen = await self._phase_of(kill)
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            await self._until(lambda what=kill.what, pid=pid: self._is_back(what, pid))  # type: ignore[misc]
            again = round(time.monotonic() - killed, 2)
            self.tell(kill.name, {"pid": pid, "seen": seen, "there again after (s)": again})

    async def _phase_of(self, kill: Kill) -> str:
        """Who is in it, once somebody is; after a while without, that nobody is."""
        watch, began = PhaseWatch(kill.phase), time.monotonic()
        while kill.phase and time.monotonic() - began < PHASE_SECONDS:
            turns = await self.turns()
            user = watch.sees(turns, time.monotonic())
            if user is not None:
                return f"{user}, {turns[user]['turn']}, {turns[user]['memory_bytes'] >> 20} MiB"
            await asyncio.sleep(0.002)
        return "nobody in that phase" if kill.phase else "any moment"

    async def _pid(self, what: str) -> int:
        """Its process, as soon as there is one."""
        await self._until(lambda: self._found(what))
        pid = self._now(what)
        assert pid is not None
        return pid

    def _now(self, what: str) -> int | None:
        with suppress(OSError, ValueError):
            broker = self.system.broker_pid()
            return broker if what == "broker" or broker is None else helper_of(broker)
        return None

    async def _found(self, what: str) -> bool:
        return self._now(what) is not None

    async def _is_back(self, what: str, pid: int) -> bool:
        return self._now(what) not in (None, pid) and bool(await self.turns())

    async def _until(self, good: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(AGAIN_SECONDS):
            while not await good():
                await asyncio.sleep(0.02)
