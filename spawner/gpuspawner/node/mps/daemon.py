"""One MPS control daemon for each GPU of a slice pool: started, watched, restarted, taken over, stopped.

The daemon outlives the broker, so that running notebooks go on; the next broker finds it by its pipe
folder. (Under systemd this takes `KillMode=process` in the broker's unit.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import DeviceFault
from ..daemon_pool import DaemonPool
from ..processes import Process, ProcessTable, wait_ended
from .control import MpsControl, MpsLimits, MpsPlace, find_all, find_daemon, pipes_of, place_of

_MOST_LOOKS = 3
_KILL_SECONDS = 2.0
"""How long a killed process may take to end; one that hangs in the driver takes for ever."""

_Log = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class MpsChange:
    """A GPU's daemon died or is back. `sentence` is for the holders of its leases."""

    uuid: str
    running: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class MpsPace:
    """Time limits and pauses, in seconds.

    A death is noticed at once. Beside that a daemon is asked every `probe_seconds`, and each time writes
    four lines into its log. One that has not answered for `silent_seconds` counts as dead: new programs
    hang in it. That is long, as ending it ends the work of everybody on the GPU.
    """

    command_seconds: float = 5.0
    start_seconds: float = 15.0
    quit_seconds: float = 10.0
    probe_seconds: float = 20.0
    silent_seconds: float = 60.0
    backoff_seconds: float = 1.0
    longest_backoff_seconds: float = 60.0


OnChange = Callable[[MpsChange], Awaitable[object]]

DIED = (
    "The service through which this GPU is shared (MPS) ended, and with it what you computed on the GPU. It "
    "is being started again; then restart your kernel."
)
BACK = "The service through which this GPU is shared (MPS) runs again: restart your kernel to use the GPU."


class MpsDaemon:
    """The daemon of one GPU. All methods on one event loop."""

    def __init__(
        self, place: MpsPlace, program: Path, on_change: OnChange, *, pace: MpsPace, log: _Log
    ) -> None:
        self.place = place
        self.reason = "MPS was not started yet"
        """Why it does not run; "" while it does."""
        self.restarts = 0
        self._control = MpsControl(program, place, seconds=pace.command_seconds)
        self._on_change = on_change
        self._pace = pace
        self._log = log
        self._table = ProcessTable()
        self._disk = DaemonPool("mps-disk", most=1)
        self._lock = asyncio.Lock()
        self._limits: MpsLimits | None = None
        self._daemon: Process | None = None
        self._died = asyncio.Event()
        self._pidfd: int | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether clients can connect, as far as is known."""
        return self._daemon is not None and not self._died.is_set()

    async def ensure(self, limits: MpsLimits) -> bool:
        """Runs with these limits when this returns; they hold for programs started from then on.

        True if it had to be started: what computed through an earlier one has ended. Raises DeviceFault.
        """
        started = False
        async with self._lock:
            if not self.running:
                started = await self._begin(limits)
            elif limits != self._limits:
                await self._control.set_limits(limits)
            self._limits = limits
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch(), name=f"mps-{self.place.uuid}")
        return started

    async def stop(self) -> None:
        """Ends daemon and servers, and with them what runs on them. No error if none runs."""
        await self.leave()
        async with self._lock:
            if find_daemon(self.place, self._table) is not None:
                processes = await self._find_all()
                try:
                    await self._control.quit(self._pace.quit_seconds)
                    await wait_ended(processes, self._pace.quit_seconds)
                except DeviceFault as fault:
                    self._log.warning("%s; it is killed devices=%s", fault, self.place.uuid)
            await self._end_rest()
            await self._disk.submit(self.place.remove)
            self.reason = "MPS was stopped"
        self._disk.close()

    async def leave(self) -> None:
        """Ends the watching alone: the broker ends, and notebooks go on."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        self._let_go()
        self._disk.close()

    # ---- start

    async def _begin(self, limits: MpsLimits) -> bool:
        """Takes over a daemon that runs, else starts one (True). Raises DeviceFault, and then none runs."""
        self.place.make()
        daemon = find_daemon(self.place, self._table)
        if daemon is not None and await self._take(daemon, limits):
            self._log.info("MPS of a former broker goes on devices=%s pid=%d", self.place.uuid, daemon.pid)
            return False
        await self._end_rest()
        await self._disk.submit(self.place.clean)
        try:
            await self._launch(limits)
        except DeviceFault as fault:
            self.reason = str(fault)
            self._let_go()
            await self._end_rest()
            raise
        self._log.info(
            "MPS runs devices=%s percent=%g limit=%s", self.place.uuid, limits.percent, limits.size
        )
        return True

    async def _take(self, daemon: Process, limits: MpsLimits) -> bool:
        """Whether it serves on. It has as long to answer as one that is watched: programs run on it."""
        self._hold(daemon)
        began = time.monotonic()
        while True:
            try:
                await self._control.set_limits(limits)
            except DeviceFault as fault:
                silent = time.monotonic() - began
                self._log.warning(
                    "MPS of a former broker: %s; %.0f s devices=%s", fault, silent, self.place.uuid
                )
                if not self._died.is_set() and silent < self._pace.silent_seconds:
                    await asyncio.sleep(self._pace.backoff_seconds)
                    continue
                self._let_go()
                await self._tell(MpsChange(self.place.uuid, False, DIED))
                return False
            self.reason = ""
            return True

    async def _launch(self, limits: MpsLimits) -> None:
        await self._control.launch(self._pace.start_seconds)
        deadline = time.monotonic() + self._pace.start_seconds
        while True:
            daemon = find_daemon(self.place, self._table)
            try:
                if daemon is None:
                    raise DeviceFault(f"MPS started and ended again: see {self.place.log}")
                await self._control.percent()
                break
            except DeviceFault:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
        self._hold(daemon)
        await self._control.set_limits(limits)
        self.reason = ""

    def _hold(self, daemon: Process) -> None:
        """Is told from now on when it dies, whoever's child it is."""
        self._let_go()
        self._died.clear()
        try:
            self._pidfd = os.pidfd_open(daemon.pid)
        except ProcessLookupError:
            raise DeviceFault("MPS ended while it was started") from None
        asyncio.get_running_loop().add_reader(self._pidfd, self._died.set)
        self._daemon = daemon

    def _let_go(self) -> None:
        self._daemon = None
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    async def _end_rest(self) -> None:
        """Ends what is left of a daemon: it, and servers without one, which nobody can ask any more."""
        for _ in range(_MOST_LOOKS):  # one that is ending may start another
            left = await self._find_all()
            for process in left:
                self._log.info(
                    "Ending a leftover MPS process pid=%d devices=%s", process.pid, self.place.uuid
                )
                self._table.end(process)
            if not left or not await wait_ended(left, _KILL_SECONDS):
                break
        if left:
            self._log.warning("A leftover MPS process doesn't end devices=%s", self.place.uuid)

    async def _find_all(self) -> tuple[Process, ...]:
        """Daemon and servers of this GPU. Looks at all of /proc, so in a thread and as rarely as can be."""
        return await self._disk.submit(lambda: find_all(self.place, ProcessTable()))

    # ---- watching

    async def _watch(self) -> None:
        backoff = self._pace.backoff_seconds
        while True:
            try:
                watched = self._daemon
                lived = await self._until_dead()
                if lived > self._pace.longest_backoff_seconds:
                    backoff = self._pace.backoff_seconds
                await self._bury(watched)
                backoff = await self._restart(backoff)
            except Exception:  # the top of this loop
                self._log.exception("Watching MPS failed; it goes on devices=%s", self.place.uuid)
                await asyncio.sleep(self._pace.probe_seconds)

    async def _until_dead(self) -> float:
        """Returns when the daemon has died or been silent for too long; how long it was watched."""
        began = answered = time.monotonic()
        while not self._died.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.probe_seconds):
                    await self._died.wait()
                    break
            await asyncio.wait({self._disk.submit(self.place.trim_logs)}, timeout=self._pace.command_seconds)
            try:
                await self._control.percent()
                answered = time.monotonic()
            except DeviceFault as fault:
                silent = time.monotonic() - answered
                self._log.warning("%s; silent for %.0f s devices=%s", fault, silent, self.place.uuid)
                if silent >= self._pace.silent_seconds:
                    break
        return time.monotonic() - began

    async def _bury(self, daemon: Process | None) -> None:
        async with self._lock:
            self._log.warning("MPS ended devices=%s", self.place.uuid)
            if self._daemon is daemon:  # `ensure` may have been quicker, and have a new one
                self.reason = "MPS ended and is started again"
                self._let_go()
                await self._end_rest()
        await self._tell(MpsChange(self.place.uuid, False, DIED))

    async def _restart(self, backoff: float) -> float:
        """Starts it again, however often that takes; the pause to begin with the next time."""
        assert self._limits is not None
        while True:
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, self._pace.longest_backoff_seconds)
            try:
                async with self._lock:
                    if not self.running:  # `ensure` may have been quicker
                        await self._begin(self._limits)
            except DeviceFault as fault:
                self._log.warning("MPS can't be started again: %s devices=%s", fault, self.place.uuid)
                continue
            self.restarts += 1
            await self._tell(MpsChange(self.place.uuid, True, BACK))
            return backoff

    async def _tell(self, change: MpsChange) -> None:
        try:
            await self._on_change(change)
        except Exception:  # what the broker does with it must not end the watching
            self._log.exception("Telling of MPS failed devices=%s", self.place.uuid)


class MpsService:
    """The daemons of all slice pools of the broker of `state_dir`; their logs are in its folder `mps`."""

    def __init__(
        self,
        program: Path,
        state_dir: Path,
        on_change: OnChange,
        *,
        pace: MpsPace | None = None,
        log: _Log | None = None,
    ) -> None:
        self._program = program
        self._state_dir = state_dir
        self._on_change = on_change
        self._pace = pace or MpsPace()
        self._log = log or logging.getLogger(__name__)
        self._daemons: dict[str, MpsDaemon] = {}

    async def ensure(self, uuid: str, limits: MpsLimits) -> bool:
        """The GPU's daemon runs with these limits when this returns. Raises DeviceFault.

        True if it had to be started: what computed through an earlier one has ended.
        """
        return await self._daemon(uuid).ensure(limits)

    async def stop(self, uuid: str) -> None:
        """The GPU leaves its pool: its daemon ends. Give a managed compute mode back after this."""
        await self._daemon(uuid).stop()
        del self._daemons[uuid]

    def left_behind(self) -> frozenset[str]:
        """GPUs that have a pipe folder of this state folder's broker, or of one before it. Reads a folder."""
        pipes = pipes_of(self._state_dir)
        return frozenset(path.name for path in pipes.iterdir()) if pipes.is_dir() else frozenset()

    async def leave(self) -> None:
        """The broker ends: daemons go on without being watched."""
        await asyncio.gather(*(daemon.leave() for daemon in self._daemons.values()))

    def reason(self, uuid: str) -> str:
        """Why the GPU's daemon does not run; "" while it does."""
        return self._daemon(uuid).reason

    def _daemon(self, uuid: str) -> MpsDaemon:
        if uuid not in self._daemons:
            place = place_of(uuid, self._state_dir)
            self._daemons[uuid] = MpsDaemon(
                place, self._program, self._on_change, pace=self._pace, log=self._log
            )
        return self._daemons[uuid]
