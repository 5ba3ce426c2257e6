"""Enforces memory quotas from outside the containers: reads the devices and ends processes over quota.

What it can't see: NVML reports only the current allocation. Between two checks, up to `poll_seconds`
apart, a process may allocate and free memory unseen; NVML's own peak (accounting mode) is a setting of the
machine that the guard doesn't change. What it can't prevent: until a process has ended, others can't use its
memory, so a neighbour's allocation may fail in the two to three seconds that this takes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ...core.errors import DeviceFault
from ...core.units import Clock, utc_now
from ..inventory import Inventory
from ..processes import Outcome, ProcessTable
from .judge import History, Judgement, Key, Offence, ProcessSample, QuotaPlan, Rules, Verdict, judge
from .sentence import sentence_of

SILENT_SECONDS = 5.0
"""A check that takes longer hangs in NVML; memory that is unknown for longer counts as not reported."""

_Log = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class GuardEvent:
    """A process was ended. `sentence` is for its user; times in UTC, `pid` is the host's."""

    at: datetime
    offence: Offence
    container_id: str
    lease_id: str | None
    device_uuid: str
    pid: int
    name: str
    used_bytes: int
    quota_bytes: int | None
    over_seconds: float
    sentence: str

    @property
    def over_bytes(self) -> int | None:
        """How far the container was over its quota; None if it had no quota there."""
        return None if self.quota_bytes is None else max(0, self.used_bytes - self.quota_bytes)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the guard checks, in seconds.

    It checks all processes every `interval_seconds`, or every `alert_seconds` while somebody is over quota.
    Every `poll_seconds` it reads only the device's memory, one cheap call: if that rose by `jump_bytes` since
    the last check, it checks the processes at once, so that it also sees a burst shorter than the interval.
    """

    interval_seconds: float = 1.0
    alert_seconds: float = 0.25
    poll_seconds: float = 0.1
    jump_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """The guard's tolerances and intervals."""

    rules: Rules = field(default_factory=Rules)
    pace: Pace = field(default_factory=Pace)
    clock: Clock = utc_now
    monotonic: Callable[[], float] = time.monotonic


class Guard:
    """One thread for each watched device, so that the others stay guarded if a GPU hangs.

    `on_event` is awaited on the loop of `start` for each process that was ended; its errors are
    logged. The threads don't need the loop otherwise: the guard keeps working while the broker is busy.
    """

    def __init__(
        self,
        inventory: Inventory,
        on_event: Callable[[GuardEvent], Awaitable[object]],
        *,
        settings: GuardSettings | None = None,
        log: _Log | None = None,
    ) -> None:
        self._inventory = inventory
        self._on_event = on_event
        self._settings = settings or GuardSettings()
        self._log = log or logging.getLogger(__name__)
        self._plan = QuotaPlan()
        self._threads: dict[str, _DeviceThread] = {}
        self._poller = _Poller(self, self._settings.pace.poll_seconds)
        self._telling: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, plan: QuotaPlan) -> None:
        """Starts guarding; each device is checked at once."""
        self._loop = asyncio.get_running_loop()
        self._poller = _Poller(self, self._settings.pace.poll_seconds)
        self._poller.start()
        self.set_plan(plan)

    def set_plan(self, plan: QuotaPlan) -> None:
        """Replaces the plan, which may name new devices. Call it on the loop's thread."""
        if self._loop is None:
            raise RuntimeError("the guard was not started")
        if plan == self._plan and self._threads:
            return
        self._plan = plan
        watched = plan.watched()
        for uuid in self._threads.keys() - watched:
            self._threads.pop(uuid).halt()
        for thread in self._threads.values():
            thread.obey(plan)
        for uuid in sorted(watched - self._threads.keys()):
            watch = DeviceGuard(uuid, self._inventory, self._settings, self._log)
            self._threads[uuid] = thread = _DeviceThread(watch, plan, self._post)
            thread.start()

    async def stop(self) -> None:
        """Ends the threads; one that hangs in NVML is abandoned."""
        threads: list[_DeviceThread | _Poller] = [self._poller, *self._threads.values()]
        self._threads = {}
        for thread in threads:
            thread.halt()
        for thread in threads:
            if thread.is_alive():
                await asyncio.to_thread(thread.join, 2.0)
        await asyncio.gather(*self._telling)
        self._loop = None

    def blind(self) -> dict[str, str]:
        """Devices where no quota is enforced now, and why."""
        found = {uuid: thread.watch.blind for uuid, thread in self._threads.items()}
        return {uuid: reason for uuid, reason in found.items() if reason}

    @property
    def failures(self) -> int:
        """Number of checks that failed with an internal error; each was logged."""
        return sum(thread.failures for thread in self._threads.values())

    def poll(self) -> None:
        """Reads each device's memory, and checks those whose memory jumped. Runs in the poller's thread."""
        for thread in list(self._threads.values()):
            thread.poll()

    def _post(self, event: GuardEvent) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._tell_soon, event)

    def _tell_soon(self, event: GuardEvent) -> None:
        task = asyncio.ensure_future(self._tell(event))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, event: GuardEvent) -> None:
        try:
            await self._on_event(event)
        except Exception:  # the top of a background task
            self._log.exception("Reporting an ended process failed container=%s", event.container_id[:12])


class _DeviceThread(threading.Thread):
    """Checks one device repeatedly."""

    def __init__(self, watch: DeviceGuard, plan: QuotaPlan, post: Callable[[GuardEvent], None]) -> None:
        super().__init__(name=f"guard-{watch.uuid}", daemon=True)
        self.watch = watch
        self.failures = 0
        self._plan = plan
        self._post = post
        self._halted = False
        self._wake = threading.Event()

    def halt(self) -> None:
        """Makes `run` return after the current check."""
        self._halted = True
        self._wake.set()

    def obey(self, plan: QuotaPlan) -> None:
        """Sets the plan and checks at once."""
        self._plan = plan
        self._wake.set()

    def poll(self) -> None:
        """Checks at once if the device's memory has jumped. Called from the poller's thread."""
        if self.watch.jumped():
            self._wake.set()

    def run(self) -> None:
        while True:
            self._wake.clear()
            if self._halted:  # after clearing: later calls wake it again
                break
            try:
                pause = self.watch.look(self._plan, self._post)
            except Exception:  # top of this thread's loop: it must continue
                self.failures += 1
                self.watch.log.exception("Guarding a device failed; retrying devices=%s", self.watch.uuid)
                pause = self.watch.pace.interval_seconds
            self._wake.wait(pause)
        self.watch.close()


class _Poller(threading.Thread):
    """Reads each device's memory between the checks.

    One thread for all devices, because waking up is the main cost. If a GPU hangs it, the checks continue.
    """

    def __init__(self, guard: Guard, seconds: float) -> None:
        super().__init__(name="guard-poll", daemon=True)
        self._guard = guard
        self._seconds = seconds
        self._halt = threading.Event()

    def halt(self) -> None:
        """Makes `run` return."""
        self._halt.set()

    def run(self) -> None:
        while not self._halt.wait(self._seconds):
            self._guard.poll()


class DeviceGuard:
    """The guard of one device: one check at a time, in one thread."""

    def __init__(self, uuid: str, inventory: Inventory, settings: GuardSettings, log: _Log) -> None:
        self.uuid = uuid
        self.log = log
        self.pace = settings.pace
        self._fault = ""
        self._looking_since: float | None = None
        self._untold_since: float | None = None
        self._inventory = inventory
        self._settings = settings
        self._table = ProcessTable()
        self._history = History()
        self._used_bytes: int | None = None
        self._mentioned: set[Key] = set()
        self._ended: set[Key] = set()
        self._guarded = False

    @property
    def blind(self) -> str:
        """Why no quota is enforced on the device; "" while they are. Thread-safe."""
        now, looking, untold = self._settings.monotonic(), self._looking_since, self._untold_since
        if looking is not None and now - looking > SILENT_SECONDS:
            return f"NVML has not reported for {now - looking:.0f} s which processes use the GPU: see `dmesg`"
        if untold is not None and now - untold > SILENT_SECONDS:
            return "NVML doesn't report how much memory the processes on the GPU use"
        return self._fault

    def look(self, plan: QuotaPlan, post: Callable[[GuardEvent], None]) -> float:
        """Checks once, ends processes if needed, and returns the seconds until the next check."""
        self._looking_since = self._settings.monotonic()
        try:
            return self._look(plan.on(self.uuid), post)
        finally:
            self._looking_since = None

    def _look(self, plan: QuotaPlan, post: Callable[[GuardEvent], None]) -> float:
        limited = {quota.container_id for quota in plan.quotas if quota.memory_bytes is not None}
        self._guarded = bool(limited)
        samples = self._samples(plan.ours())
        if samples is None:
            self._history = replace(self._history, at=None)
            return self.pace.interval_seconds
        if not any(seen.memory_bytes is None and seen.container_id in limited for seen in samples):
            self._untold_since = None
        elif self._untold_since is None:
            self._untold_since = self._settings.monotonic()
        now, rules = self._settings.monotonic(), self._settings.rules
        found = judge(samples, plan, self._history, now, rules)
        self._history = found.history
        for verdict in found.verdicts:
            self._carry_out(verdict, post)
        return self._next(found)

    def _next(self, found: Judgement) -> float:
        return self.pace.alert_seconds if found.alert or found.verdicts else self.pace.interval_seconds

    def close(self) -> None:
        """Closes its process handles."""
        self._table.close()

    def jumped(self) -> bool:
        """Whether much more memory is in use than at the last check."""
        if not self._guarded or self._used_bytes is None:
            return False
        try:
            return self._inventory.used_bytes(self.uuid) > self._used_bytes + self.pace.jump_bytes
        except DeviceFault:
            return False  # the next check reports it

    def _samples(self, ours: frozenset[str]) -> list[ProcessSample] | None:
        """The processes on the device; None if they can't be read."""
        try:
            self._used_bytes = self._inventory.used_bytes(self.uuid) if self._guarded else None
            listed = self._inventory.processes(self.uuid)
        except DeviceFault as fault:
            if not self._fault:
                self.log.warning("Quotas can't be enforced: %s devices=%s", fault, self.uuid)
            self._fault = str(fault)
            return None
        if self._fault:
            self.log.info("Quotas are enforced again devices=%s", self.uuid)
        self._fault = ""
        samples = []
        processes = self._table.look_all({each.pid for each in listed})
        for each in listed:
            process = processes.get(each.pid)
            if process is not None:
                container = process.container(ours)
                samples.append(ProcessSample(process, container, each.memory_bytes, each.through_mps))
        self._mention(samples, ours)
        return samples

    def _mention(self, samples: list[ProcessSample], ours: frozenset[str]) -> None:
        """Logs once about each process that belongs to no lease of this broker."""
        present = {seen.key for seen in samples}
        self._mentioned &= present
        self._ended &= present
        for seen in samples:
            if seen.container_id in ours or seen.key in self._mentioned or seen.process.is_mps_server:
                continue
            self._mentioned.add(seen.key)
            owner = f"container {seen.container_id[:12]}" if seen.container_id else "the host"
            self.log.info(
                "A process of %s uses a guarded device; it is not ended: %r pid=%d devices=%s",
                owner, seen.process.name, seen.process.pid, self.uuid,
            )  # fmt: skip

    def _carry_out(self, verdict: Verdict, post: Callable[[GuardEvent], None]) -> None:
        process = verdict.seen.process
        outcome = self._table.end(process)
        event = self._event(verdict)
        if outcome is Outcome.ENDED and verdict.seen.key in self._ended:
            self.log.warning("A process that was ended still exists, paused or stuck %s", _where(event))
        elif outcome is Outcome.ENDED:
            self._ended.add(verdict.seen.key)
            self.log.warning("%s %s", event.sentence, _where(event))
            post(event)
        elif outcome is Outcome.REFUSED:
            self.log.error(
                "A process over its quota can't be ended: run the broker as root or with CAP_KILL %s",
                _where(event),
            )
        else:
            self.log.info("A process that should end is already %s %s", outcome, _where(event))

    def _event(self, verdict: Verdict) -> GuardEvent:
        process, quota = verdict.seen.process, verdict.quota
        return GuardEvent(
            at=self._settings.clock(),
            offence=verdict.offence,
            container_id=verdict.seen.container_id or "",
            lease_id=None if quota is None else quota.lease_id,
            device_uuid=self.uuid,
            pid=process.pid,
            name=process.name,
            used_bytes=verdict.used_bytes,
            quota_bytes=None if quota is None else quota.memory_bytes,
            over_seconds=verdict.over_seconds,
            sentence=sentence_of(verdict),
        )


def _where(event: GuardEvent) -> str:
    return (
        f"pid={event.pid} name={event.name!r} lease={event.lease_id} devices={event.device_uuid} "
        f"container={event.container_id[:12]}"
    )
