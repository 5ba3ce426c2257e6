"""Withdraws a device within seconds of a fault, it alone, and gives it back once it was verified."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..core.errors import DeviceFault
from ..core.model import Device, DeviceHealth
from ..core.units import Clock, utc_now
from .daemon_pool import DaemonPool
from .inventory import Inventory, XidEvent
from .xid import XidSeen, resolution, sentence

XIDS_KEPT = 20
"""Of each device, the newest XIDs are kept in memory."""
_XID_WAIT_SECONDS = 0.5
_XID_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class DeviceWatch:
    """The health of one device. Pure: it gets times and events and computes `health`."""

    uuid: str
    recover_seconds: float
    health: DeviceHealth = field(init=False)
    told: DeviceHealth = field(init=False)
    good_since: float | None = None
    unanswered: asyncio.Future[Any] | None = None
    xids: deque[XidSeen] = field(default_factory=lambda: deque(maxlen=XIDS_KEPT))

    def __post_init__(self) -> None:
        self.health = self.told = DeviceHealth(self.uuid, healthy=True)

    def bad(self, reason: str, at: datetime) -> None:
        """A failed check or a bad XID: out of service from `at`, or still so, now for `reason`."""
        since = at if self.health.healthy else self.health.since
        self.health = DeviceHealth(self.uuid, False, reason, since)
        self.good_since = None

    def ready(self, now: float) -> bool:
        """Reports a good check; returns whether the device was good long enough to return to service."""
        if self.health.healthy:
            return False
        if self.good_since is None:
            self.good_since = now
        return now - self.good_since >= self.recover_seconds

    def recovered(self, at: datetime) -> None:
        """May be leased again, from `at`."""
        self.health = DeviceHealth(self.uuid, True, "", at)
        self.good_since = None


class HealthMonitor:
    """Checks every device every `interval_seconds` and listens for XIDs.

    `on_change` is awaited with each change of a device's health; if it raises, it is called again in
    the next round. It should be quick: rounds wait for it. A device goes out of service when its check
    fails or takes longer than `timeout_seconds`, or by an XID that is a fault of the GPU (`xid`): with the
    defaults within 3.1 s at most. It comes back after checks were good for `recover_seconds` without
    a bad XID, unless NVML says that it waits for a reset.

    Checks run in threads of their own, so one that hangs delays no other device's.
    """

    def __init__(
        self,
        inventory: Inventory,
        on_change: Callable[[DeviceHealth], Awaitable[object]],
        *,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        interval_seconds: float = 1.0,
        timeout_seconds: float = 2.0,
        recover_seconds: float = 30.0,
        log: logging.Logger | logging.LoggerAdapter[Any] | None = None,
    ) -> None:
        self._inventory = inventory
        self._on_change = on_change
        self._clock = clock
        self._monotonic = monotonic
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._recover_seconds = recover_seconds
        self._log = log or logging.getLogger(__name__)
        self._watches: dict[str, DeviceWatch] = {}
        self._checks = DaemonPool("nvml-check")
        self._xids = DaemonPool("nvml-xid", most=1)
        self._tasks: list[asyncio.Task[None]] = []
        self.failures = 0
        """Number of rounds that failed with an internal error; each was logged."""

    @property
    def health(self) -> dict[str, DeviceHealth]:
        """The current health of each watched device."""
        return {uuid: watch.health for uuid, watch in self._watches.items()}

    def xids(self) -> dict[str, tuple[XidSeen, ...]]:
        """The newest XIDs of each device that had any since this node began, the newest first."""
        return {uuid: tuple(reversed(watch.xids)) for uuid, watch in self._watches.items() if watch.xids}

    async def watch(self, devices: Iterable[Device]) -> None:
        """Adds these devices to the watched ones.

        When this returns, each was checked once, and broken ones were reported.
        """
        fresh = [DeviceWatch(each.uuid, self._recover_seconds) for each in devices]
        fresh = [watch for watch in fresh if watch.uuid not in self._watches]
        self._watches |= {watch.uuid: watch for watch in fresh}
        await asyncio.gather(*(self._check(watch) for watch in fresh))
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._loop(self._wait_and_check), name="health-check"),
                asyncio.create_task(self._loop(self._wait_for_xid), name="health-xid"),
            ]

    async def stop(self) -> None:
        """Stops the background work. A hanging NVML call is abandoned in its thread."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._checks.close()
        self._xids.close()

    async def check_round(self) -> None:
        """Checks all devices once, in parallel, and reports changes."""
        await asyncio.gather(*(self._check(watch) for watch in list(self._watches.values())))

    async def _loop(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except Exception:
                self.failures += 1
                self._log.exception("Watching the devices failed; retrying")
                await asyncio.sleep(self._interval_seconds)

    async def _wait_and_check(self) -> None:
        await asyncio.sleep(self._interval_seconds)
        await self.check_round()

    async def _check(self, watch: DeviceWatch) -> None:
        fault = await self._ask(watch)
        now = self._monotonic()
        if fault:
            watch.bad(fault, self._clock())
        elif watch.ready(now):
            held = await self._still_held(watch)
            if held:
                watch.bad(held, self._clock())
            elif watch.ready(now):  # no XID came during the check
                watch.recovered(self._clock())
        await self._tell(watch)

    async def _ask(self, watch: DeviceWatch) -> str:
        """The sentence of a failed check; "" when it passed."""
        if watch.unanswered is None:
            watch.unanswered = self._checks.submit(lambda: self._inventory.check(watch.uuid))
            await asyncio.wait({watch.unanswered}, timeout=self._timeout_seconds)
        if not watch.unanswered.done():
            return f"The GPU has not answered for {self._timeout_seconds:g} s: see `dmesg` and `nvidia-smi`"
        answered, watch.unanswered = watch.unanswered, None
        return _sentence(answered)

    async def _still_held(self, watch: DeviceWatch) -> str:
        asked = self._checks.submit(lambda: self._inventory.reset_pending(watch.uuid))
        await asyncio.wait({asked}, timeout=self._timeout_seconds)
        if not asked.done():
            watch.unanswered = asked
            return "The GPU does not say whether it waits for a reset: see `dmesg` and `nvidia-smi`"
        return _sentence(asked) or str(asked.result())

    async def _wait_for_xid(self) -> None:
        try:
            event = await self._xids.submit(lambda: self._inventory.wait_xid(_XID_WAIT_SECONDS))
        except DeviceFault as fault:
            self._log.warning("Waiting for XIDs failed; devices are only polled: %s", fault)
            await asyncio.sleep(_XID_RETRY_SECONDS)
            return
        if event is not None:
            await self.handle_xid(event)

    async def handle_xid(self, event: XidEvent) -> None:
        """Withdraws the device that `event` names, or every one where it names none."""
        for watch in self._watches.values():
            if event.uuid in (None, watch.uuid):
                watch.xids.append(XidSeen(self._clock(), event.xid))
        found = resolution(event.xid)
        if not found.is_fault:
            self._log.info("XID %d: %s devices=%s", event.xid, found.value, event.uuid or "all")
            return
        hit = [watch for watch in self._watches.values() if event.uuid in (None, watch.uuid)]
        if not hit:
            self._log.warning("XID %d of a GPU that is not leased devices=%s", event.xid, event.uuid)
        for watch in hit:
            watch.bad(sentence(event.xid), self._clock())
        await asyncio.gather(*(self._tell(watch) for watch in hit))

    async def _tell(self, watch: DeviceWatch) -> None:
        """Reports changes; a failure is logged and retried in the next round."""
        if watch.health == watch.told:
            return
        health = watch.health
        if health.healthy:
            self._log.info("Device is in service again devices=%s", watch.uuid)
        else:
            self._log.warning("Device is out of service: %s devices=%s", health.reason, watch.uuid)
        try:
            await self._on_change(health)
        except Exception:
            self.failures += 1
            self._log.exception("Reporting a device's health failed; retrying devices=%s", watch.uuid)
            return
        watch.told = health


def _sentence(answered: asyncio.Future[Any]) -> str:
    error = answered.exception()
    if error is None:
        return ""
    if isinstance(error, DeviceFault):
        return str(error)
    return f"Checking the GPU failed: {error!r}"  # unreadable, for any cause
