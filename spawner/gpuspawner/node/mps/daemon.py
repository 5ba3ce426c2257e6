"""The MPS control daemon of each GPU of a slice pool: starts, watches, restarts, adopts and stops it.

The daemon keeps running when the broker ends, so that notebooks continue; the next broker finds it by its
pipe folder. (Under systemd, this needs `KillMode=process` in the broker's unit.)
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
"""How long a killed process may take to end; one that hangs in the driver never ends."""

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

    A death is noticed at once. A daemon is also asked every `probe_seconds`, and writes four log lines each
    time. One that has not answered for `silent_seconds` counts as dead: new programs hang in it. That time is
    long, because ending the daemon ends the work of everybody on the GPU.
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
    "MPS, the service that shares this GPU, ended, and with it your computations on the GPU. It is being "
    "restarted; restart your kernel after that."
)
BACK = "MPS, the service that shares this GPU, runs again: restart your kernel to use the GPU."


class MpsDaemon:
    """The daemon of one GPU. All methods on one event loop."""

    def __init__(
        self, place: MpsPlace, program: Path, on_change: OnChange, *, pace: MpsPace, log: _Log
    ) -> None:
        self.place = place
        self.reason = "MPS was not started yet"
        """Why it does not run; "" while it runs."""
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
        """Whether clients can connect, as far as we know."""
        return self._daemon is not None and not self._died.is_set()

    async def ensure(self, limits: MpsLimits) -> bool:
        """Makes the daemon run with these limits; they apply to programs that start afterwards.

        Returns True if it had to be started: the programs of an earlier one have ended. Raises DeviceFault.
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
        """Ends daemon, servers and their programs. No error if none runs."""
        await self.leave()
        async with self._lock:
            if find_daemon(self.place, self._table) is not None:
                processes = await self._find_all()
                try:
                    await self._control.quit(self._pace.quit_seconds)
                    await wait_ended(processes, self._pace.quit_seconds)
                except DeviceFault as fault:
                    self._log.warning("%s; killing it devices=%s", fault, self.place.uuid)
            await self._end_rest()
            await self._disk.submit(self.place.remove)
            self.reason = "MPS was stopped"
        self._disk.close()

    async def leave(self) -> None:
        """Only stops watching: the broker ends, but notebooks keep running."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        self._let_go()
        self._disk.close()

    # ---- start

    async def _begin(self, limits: MpsLimits) -> bool:
        """Adopts a running daemon, else starts one (returns True). If it raises DeviceFault, none runs."""
        self.place.make()
        daemon = find_daemon(self.place, self._table)
        if daemon is not None and await self._take(daemon, limits):
            self._log.info(
                "Adopted the MPS daemon of an earlier broker devices=%s pid=%d", self.place.uuid, daemon.pid
            )
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
        """Whether it still serves.

        It has as much time to answer as a watched one, because programs use it.
        """
        self._hold(daemon)
        began = time.monotonic()
        while True:
            try:
                await self._control.set_limits(limits)
            except DeviceFault as fault:
                silent = time.monotonic() - began
                self._log.warning(
                    "MPS daemon of an earlier broker: %s; %.0f s devices=%s", fault, silent, self.place.uuid
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
        """Watches for its end, also if it isn't our child."""
        self._let_go()
        self._died.clear()
        try:
            self._pidfd = os.pidfd_open(daemon.pid)
        except ProcessLookupError:
            raise DeviceFault("MPS ended while it was starting") from None
        asyncio.get_running_loop().add_reader(self._pidfd, self._died.set)
        self._daemon = daemon

    def _let_go(self) -> None:
        self._daemon = None
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    async def _end_rest(self) -> None:
        """Ends leftover processes: the daemon, and servers without a daemon, which accept no commands."""
        for _ in range(_MOST_LOOKS):  # a process that is ending may start another one
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
        """Daemon and servers of this GPU. Reads all of /proc, so it runs in a thread and rarely."""
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
                self._log.exception("Watching MPS failed; retrying devices=%s", self.place.uuid)
                await asyncio.sleep(self._pace.probe_seconds)

    async def _until_dead(self) -> float:
        """Waits until the daemon has died or was silent for too long; returns how long it was watched."""
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
            if self._daemon is daemon:  # `ensure` may have started a new one
                self.reason = "MPS ended and is being restarted"
                self._let_go()
                await self._end_rest()
        await self._tell(MpsChange(self.place.uuid, False, DIED))

    async def _restart(self, backoff: float) -> float:
        """Restarts it until that succeeds; returns the first pause for the next time."""
        assert self._limits is not None
        while True:
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, self._pace.longest_backoff_seconds)
            try:
                async with self._lock:
                    if not self.running:  # `ensure` may have started it
                        await self._begin(self._limits)
            except DeviceFault as fault:
                self._log.warning("MPS can't be restarted: %s devices=%s", fault, self.place.uuid)
                continue
            self.restarts += 1
            await self._tell(MpsChange(self.place.uuid, True, BACK))
            return backoff

    async def _tell(self, change: MpsChange) -> None:
        try:
            await self._on_change(change)
        except Exception:  # the broker's callback must not stop the watch
            self._log.exception("Reporting a change of MPS failed devices=%s", self.place.uuid)


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
        """Makes the GPU's daemon run with these limits. Raises DeviceFault.

        Returns True if it had to be started: the programs of an earlier one have ended.
        """
        return await self._daemon(uuid).ensure(limits)

    async def stop(self, uuid: str) -> None:
        """Stops the daemon of a GPU that leaves its pool. Restore a managed compute mode after this."""
        await self._daemon(uuid).stop()
        del self._daemons[uuid]

    def left_behind(self) -> frozenset[str]:
        """GPUs that have a pipe folder from this state folder's brokers, also earlier ones.

        Reads a folder.
        """
        pipes = pipes_of(self._state_dir)
        return frozenset(path.name for path in pipes.iterdir()) if pipes.is_dir() else frozenset()

    async def leave(self) -> None:
        """Stops watching, because the broker ends: daemons keep running."""
        await asyncio.gather(*(daemon.leave() for daemon in self._daemons.values()))

    def reason(self, uuid: str) -> str:
        """Why the GPU's daemon does not run; "" while it runs."""
        return self._daemon(uuid).reason

    def _daemon(self, uuid: str) -> MpsDaemon:
        if uuid not in self._daemons:
            place = place_of(uuid, self._state_dir)
            self._daemons[uuid] = MpsDaemon(
                place, self._program, self._on_change, pace=self._pace, log=self._log
            )
        return self._daemons[uuid]
