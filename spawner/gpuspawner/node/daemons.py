"""Brings MPS daemons and compute modes to the state that the broker wants: one object for each GPU.

A failed attempt is repeated until it succeeds or the broker wants another state, so that a GPU works again
when the cause is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DeviceFault, GpuSpawnerError
from .api import DaemonPlan, DesiredState, MpsEvent, MpsState
from .compute_mode import ComputeModes
from .daemon_pool import DaemonPool
from .inventory import Inventory
from .mps.daemon import BACK, DIED, MpsChange, MpsPace, MpsService

RETRY_SECONDS = 30.0
"""Pause after an attempt that failed."""
SETTLE_SECONDS = 90.0
"""Longest wait for one attempt: a daemon is silent for 60 s and replaced in 15 s; some reserve is added."""
ENDED = "MPS, the service that shares it, ended"

_Log = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class DaemonTools:
    """What the daemons need. `program` None: MPS is not installed."""

    inventory: Inventory
    program: Path | None
    state_dir: Path
    post: Callable[[MpsEvent], None]
    log: _Log
    pace: MpsPace
    retry_seconds: float = RETRY_SECONDS
    settle_seconds: float = SETTLE_SECONDS


class GpuDaemons:
    """The MPS daemons and compute modes of one machine. All methods on one event loop."""

    def __init__(self, tools: DaemonTools) -> None:
        self._tools = tools
        self._modes = ComputeModes(tools.inventory, tools.state_dir, log=tools.log)
        self._pool = DaemonPool("compute-mode")
        self._mps: MpsService | None = None
        if tools.program is not None:
            self._mps = MpsService(
                tools.program, tools.state_dir, self._on_mps, pace=tools.pace, log=tools.log
            )
        self._gpus: dict[str, _Gpu] = {}
        self._undecided: frozenset[str] | None = None

    async def apply(self, desired: DesiredState) -> None:
        """Sets the desired state; the first call also adopts what an earlier broker left on any GPU."""
        before = await self._left_behind() if self._undecided is None else self._undecided
        self._undecided = desired.undecided
        for uuid in (before | desired.daemons.keys()) - desired.undecided - self._gpus.keys():
            self._gpus[uuid] = _Gpu(uuid, self._tools, _Means(self._mps, self._modes, self._pool))
        for uuid, gpu in self._gpus.items():
            if uuid not in desired.undecided:
                gpu.set(desired.daemons.get(uuid))

    async def settle(self, uuid: str) -> None:
        """Makes one attempt for that GPU now. Raises DeviceFault."""
        gpu = self._gpus.get(uuid)
        if gpu is not None:
            await gpu.settle()

    async def close(self) -> None:
        """Stops the attempts; running daemons keep running."""
        await asyncio.gather(*(gpu.close() for gpu in self._gpus.values()))
        if self._mps is not None:
            await self._mps.leave()
        self._pool.close()

    async def _left_behind(self) -> frozenset[str]:
        """GPUs with a pipe folder or a changed compute mode from an earlier broker."""
        found = frozenset() if self._mps is None else self._mps.left_behind()
        try:
            return found | await self._pool.submit(self._modes.taken)
        except GpuSpawnerError as error:
            self._tools.log.warning("%s", error)
            return found

    async def _on_mps(self, change: MpsChange) -> None:
        """Called when a watched daemon died or was restarted."""
        gpu = self._gpus.get(change.uuid)
        if gpu is not None:
            gpu.changed(change)


@dataclass(frozen=True, slots=True)
class _Means:
    """The tools to reach the desired state: MPS (None if not installed), compute modes, threads."""

    mps: MpsService | None
    modes: ComputeModes
    pool: DaemonPool


class _Gpu:
    """One GPU: its desired state, and the attempts to reach it."""

    def __init__(self, uuid: str, tools: DaemonTools, means: _Means) -> None:
        self._uuid, self._tools, self._means = uuid, tools, means
        self._plan: DaemonPlan | None = None
        self._is_set = False
        self._told = MpsEvent(uuid, MpsState.STOPPED)
        self._lock = asyncio.Lock()
        self._attempt: tuple[DaemonPlan | None, asyncio.Task[None]] | None = None
        self._working: asyncio.Task[None] | None = None

    def set(self, plan: DaemonPlan | None) -> None:
        """Sets the desired state; None: no daemon, and the machine's own compute mode."""
        if self._is_set and plan == self._plan:
            return
        self._plan, self._is_set = plan, True
        self._work()

    async def settle(self) -> None:
        """Makes one attempt. Raises DeviceFault; the attempt is then repeated in the background."""
        attempt = self._attempting()
        done, _ = await asyncio.wait({attempt}, timeout=self._tools.settle_seconds)
        if not done:
            raise DeviceFault(
                f"The GPU has not been ready for {self._tools.settle_seconds:g} s: see `dmesg`, `nvidia-smi`"
            )
        try:
            attempt.result()
        except GpuSpawnerError:
            self._work(self._tools.retry_seconds)
            raise

    async def close(self) -> None:
        """Ends the attempts."""
        tasks = [task for task in (self._working, self._attempt and self._attempt[1]) if task is not None]
        self._working = self._attempt = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def changed(self, change: MpsChange) -> None:
        """Called when the daemon died or was restarted."""
        if not change.running:
            self._post(MpsEvent(self._uuid, MpsState.FAILED, ENDED, died=True, notice=DIED))
        elif self._told.state is not MpsState.RUNNING:  # else an attempt was faster and has reported it
            self._post(MpsEvent(self._uuid, MpsState.RUNNING, restarted=True, notice=BACK))

    def _work(self, pause_seconds: float = 0.0) -> None:
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._until_made(pause_seconds), name=f"gpu-{self._uuid}")

    async def _until_made(self, pause_seconds: float) -> None:
        made = False
        while not made:
            await asyncio.sleep(pause_seconds)
            plan, pause_seconds = self._plan, self._tools.retry_seconds
            attempt = self._attempting()
            await asyncio.wait({attempt})
            error = attempt.exception()
            if error is None:
                made, pause_seconds = plan == self._plan, 0.0
            elif isinstance(error, GpuSpawnerError):
                self._tools.log.warning("MPS or compute mode: %s devices=%s", error, self._uuid)
            else:
                self._tools.log.error("Preparing a GPU failed devices=%s", self._uuid, exc_info=error)

    def _attempting(self) -> asyncio.Task[None]:
        """The attempt for the current plan: all callers wait for the same one."""
        if self._attempt is None or self._attempt[1].done() or self._attempt[0] != self._plan:
            self._attempt = self._plan, asyncio.create_task(self._try(self._plan))
        return self._attempt[1]

    async def _try(self, plan: DaemonPlan | None) -> None:
        async with self._lock:
            if plan is None:
                await self._end()
                self._post(MpsEvent(self._uuid, MpsState.STOPPED))
                return
            try:
                started = await self._run(plan)
            except GpuSpawnerError as error:
                if self._told.state is not MpsState.FAILED:
                    self._post(MpsEvent(self._uuid, MpsState.FAILED, str(error)))
                raise
            lost = started and plan.in_use
            self._post(MpsEvent(self._uuid, MpsState.RUNNING, restarted=lost, notice=BACK if lost else ""))

    async def _run(self, plan: DaemonPlan) -> bool:
        """Makes the daemon run; returns True if it had to be started. Raises DeviceFault."""
        means = self._means
        if means.mps is None:
            raise DeviceFault("MPS is not installed, but it shares this GPU")
        if plan.exclusive:
            await means.pool.submit(lambda: means.modes.take(self._uuid))
        return await means.mps.ensure(self._uuid, plan.limits)

    async def _end(self) -> None:
        means = self._means
        if means.mps is not None:
            await means.mps.stop(self._uuid)
        await means.pool.submit(lambda: means.modes.give_back(self._uuid))

    def _post(self, event: MpsEvent) -> None:
        """Reports the state unless it was the last one reported."""
        if event != self._told:
            self._told = event
            self._tools.post(event)
