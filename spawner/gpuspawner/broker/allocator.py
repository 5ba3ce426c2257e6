"""Owns the leases: who waits, who holds what, in memory as in the ledger.

Every change happens under one lock, and in this order: decide, commit to the ledger, change memory. A commit
that fails changes nothing in memory. A step that has begun is finished even if its caller is cancelled, so
memory and ledger can't part: after a cancelled `acquire`, call `begin_release`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from ..errors import LeaseConflict, NoCapacity
from ..model import Device, DeviceHealth, GpuRequest, Lease, LeaseState
from ..units import Clock, utc_now
from . import notice, policy
from .devices import Devices
from .ledger import Ledger
from .placement import Share, Want, want_of
from .queue import Queue, Waiting, plan
from .snapshot import Capacity, DeviceView, QueueEntry, Snapshot
from .watch import Watch, Watches

T = TypeVar("T")


class Allocator:
    """The leases of all hubs on the devices of one node; to be used from one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock = utc_now,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._log = log or logging.getLogger(__name__)
        self._lock = asyncio.Lock()
        self._steps: set[asyncio.Task[Any]] = set()
        self._devices = Devices()
        self._queue = Queue()
        self._leases: dict[str, Lease] = {}
        self._by_server: dict[tuple[str, str, str], dict[str, None]] = {}
        self._arrivals = 0
        self._doubtful: dict[str, Lease] = {}
        self._watches = Watches()

    # Reading: from memory, at once.

    def lease(self, lease_id: str) -> Lease | None:
        """The living lease with this id."""
        return self._leases.get(lease_id)

    def leases(self) -> tuple[Lease, ...]:
        """All living leases, in the order of arrival."""
        return tuple(self._leases.values())

    def of_server(self, hub: str, user: str, server: str) -> tuple[Lease, ...]:
        """The living leases of one server: one or none, unless the ledger was tampered with."""
        return tuple(self._leases[each] for each in self._by_server.get((hub, user, server), ()))

    def capacity(self, device_count: int, model: str | None = None) -> Capacity:
        """How many devices suit such a request, and how many requests wait for them."""
        want = Want(device_count, model.casefold() if model else None)
        free, total = self._devices.count(want)
        return Capacity(free, total, self._queue.count(want))

    def snapshot(self) -> Snapshot:
        """Devices, living leases and queue at this moment."""
        devices = tuple(
            DeviceView(
                device=device,
                health=self._devices.health(device.uuid),
                holders=tuple(self._leases[each] for each in self._devices.holders(device.uuid)),
            )
            for device in self._devices.all()
        )
        places = [
            (waiting.lease_id, self._queue.place_of(waiting.lease_id)) for waiting in self._queue.in_order()
        ]
        queue = tuple(
            QueueEntry(self._leases[each], place.position, place.waiting)
            for each, place in places
            if place is not None
        )
        return Snapshot(devices, self.leases(), queue)

    def watch(self, lease_id: str) -> Watch:
        """Follow a lease: `async with allocator.watch(id) as changes: async for change in changes: ...`."""
        return Watch(lease_id, self._watches, self.lease, self._queue.place_of)

    # Changing: each is one step under the lock.

    async def load(self, devices: Iterable[Device]) -> None:
        """Take over these devices and the ledger's living leases; call once, before anything else.

        A lease whose device is gone keeps it as a withdrawn placeholder. Waiting leases keep their order.
        """
        await self._step(self._load(tuple(devices)))

    async def acquire(self, request: GpuRequest) -> Lease:
        """A lease for the request, RESERVED or WAITING; asking again with the same id gives the same lease.

        Raises BadOption for a malformed request, NoCapacity if these devices can never serve it,
        LeaseConflict if the id is another's or has ended, or the server has another living lease (end that
        one first), LedgerFault if it could not be recorded.
        """
        policy.check(request)
        return await self._step(self._acquire(request))

    async def set_running(self, lease_id: str, container_id: str) -> Lease:
        """The lease's container has started.

        Idempotent. Raises LeaseConflict if the lease may not have a container, or has another one.
        """
        return await self._step(self._set_running(lease_id, container_id))

    async def begin_release(
        self, lease_id: str, reason: str, *, ended_at: datetime | None = None
    ) -> Lease | None:
        """End a lease: a waiting one closes, another keeps its devices as RELEASING until `close`.

        Idempotent: None for a lease that is not living. `ended_at` is when the container stopped, if that was
        noticed late; the time since is not charged.
        """
        return await self._step(self._begin_release(lease_id, reason, ended_at))

    async def close(self, lease_id: str) -> None:
        """No container carries the lease any more: its devices are free, and the queue advances.

        Idempotent. Raises LeaseConflict unless `begin_release` came first.
        """
        await self._step(self._close(lease_id))

    async def adopt(self, lease: Lease) -> Lease:
        """Take in a running container that the ledger doesn't know, as its labels describe it.

        Raises LeaseConflict if the ledger knows the lease, its server has another, or a device is not free.
        """
        return await self._step(self._adopt(lease))

    async def set_health(self, health: DeviceHealth) -> tuple[Lease, ...]:
        """Withdraw a device or take it back; the leases whose `notice` changed, for their holders to be told.

        If that could not be recorded (LedgerFault), a withdrawn device stays withdrawn and one that came back
        does not count as back; call again.
        """
        return await self._step(self._set_health(health))

    # The steps themselves.

    async def _load(self, devices: tuple[Device, ...]) -> None:
        living = await self._ledger.living()
        self._devices = Devices(devices)
        self._queue = Queue(self._devices.kinds)
        for lease in living:
            if lease.state.holds_devices and not self._devices.can_hold(lease):
                self._report_trouble(lease)
            self._enter(lease)
        told = [lease for lease in map(self._with_notice, living) if lease != self._leases[lease.id]]
        await self._commit(*told, *self._placed(self._queue.lines()))

    async def _acquire(self, request: GpuRequest) -> Lease:
        want = want_of(request)
        known = self._leases.get(request.lease_id)
        if known is not None:
            return await self._resume(known, request)
        if any(self.of_server(request.hub, request.user, request.server)):
            raise LeaseConflict("This server still has a lease that is being ended: try again in a moment.")
        if request.lease_id not in self._doubtful and await self._ledger.find(request.lease_id):
            raise LeaseConflict("This lease has ended: start the server again.")
        self._check_capacity(want)
        now = self._clock()
        lease = Lease(
            id=request.lease_id, hub=request.hub, user=request.user, server=request.server, tier=request.tier,
            state=LeaseState.WAITING, device_count=request.device_count, created_at=now, since=now,
            model=request.model,
        )  # fmt: skip
        newcomer = Waiting(self._arrivals + 1, lease.id, want)
        placed = {each.id: each for each in self._placed([*self._queue.lines(), [newcomer]], newcomer=lease)}
        lease = placed.pop(lease.id, lease)
        await self._commit(lease, *placed.values())
        return lease

    async def _resume(self, lease: Lease, request: GpuRequest) -> Lease:
        same_owner = (lease.hub, lease.user, lease.server) == (request.hub, request.user, request.server)
        if not same_owner or want_of(lease) != want_of(request):
            raise LeaseConflict("This lease belongs to another request: start the server again.")
        if lease.state is LeaseState.RELEASING:
            raise LeaseConflict("This lease is being ended: start the server again.")
        if lease.state is LeaseState.WAITING:
            try:
                self._check_capacity(want_of(lease))
            except NoCapacity:
                await self._begin_release(lease.id, "no_capacity", None)
                raise
        return lease

    async def _set_running(self, lease_id: str, container_id: str) -> Lease:
        lease = self._leases.get(lease_id)
        if lease is None:
            raise LeaseConflict("This lease has ended: start the server again.")
        if lease.state is LeaseState.RUNNING and lease.container_id == container_id:
            return lease
        if lease.state is not LeaseState.RESERVED:
            raise LeaseConflict(f"A {lease.state} lease can't get a container: start the server again.")
        lease = replace(lease, state=LeaseState.RUNNING, container_id=container_id, since=self._clock())
        await self._commit(lease)
        return lease

    async def _begin_release(self, lease_id: str, reason: str, ended_at: datetime | None) -> Lease | None:
        lease = self._leases.get(lease_id)
        if lease is None or lease.state is LeaseState.RELEASING:
            return lease
        now = self._clock()
        if lease.state is LeaseState.WAITING:
            ended = replace(lease, state=LeaseState.CLOSED, since=now, reason=reason)
            await self._commit(ended, *self._placed(self._queue.lines(), without=lease_id))
            return ended
        ended = replace(lease, state=LeaseState.RELEASING, since=now, reason=reason)
        ago_seconds = (now - ended_at).total_seconds() if ended_at is not None else 0.0
        await self._commit(ended, ago_seconds=ago_seconds)
        return ended

    async def _close(self, lease_id: str) -> None:
        lease = self._leases.get(lease_id)
        if lease is None:
            return
        if lease.state is not LeaseState.RELEASING:
            raise LeaseConflict(f"A {lease.state} lease can't be closed before its release has begun.")
        freed = self._devices.shares(lease)
        closed = replace(lease, state=LeaseState.CLOSED, since=self._clock())
        await self._commit(closed, *self._placed(self._queue.lines(), freed=freed))

    async def _adopt(self, lease: Lease) -> Lease:
        if lease.id in self._leases or await self._ledger.find(lease.id):
            raise LeaseConflict("The ledger knows this lease already.")
        if any(self.of_server(lease.hub, lease.user, lease.server)):
            raise LeaseConflict("This server has another lease.")
        if not lease.device_uuids or not self._devices.can_hold(lease):
            raise LeaseConflict("A device of this lease is not free, or not of this machine.")
        shares = self._devices.shares(lease)
        adopted = self._with_notice(_holding(replace(lease, state=LeaseState.RUNNING), shares))
        await self._commit(adopted)
        return adopted

    async def _set_health(self, health: DeviceHealth) -> tuple[Lease, ...]:
        uuid = health.uuid
        if uuid not in self._devices:
            return ()
        if not health.healthy and health.since is None:
            health = replace(health, since=self._clock())
        before = self._devices.health(uuid)
        if self._devices.set_health(health):
            say = self._log.info if health.healthy else self._log.warning
            say("Device %s is %s: %s", uuid, "back" if health.healthy else "withdrawn", health.reason)
        holders = [self._leases[each] for each in self._devices.holders(uuid)]
        told = [lease for lease in map(self._with_notice, holders) if lease != self._leases[lease.id]]
        try:
            await self._commit(*told, *self._placed(self._queue.lines()))
        except BaseException:
            if health.healthy:
                self._devices.set_health(before)
            raise
        return tuple(told)

    # Deciding.

    def _check_capacity(self, want: Want) -> None:
        known = self._devices.known(want)
        if known < want.device_count:
            raise NoCapacity(notice.no_capacity(want, known))

    def _placed(
        self,
        lines: Iterable[Sequence[Waiting]],
        *,
        freed: Iterable[Share] = (),
        without: str | None = None,
        newcomer: Lease | None = None,
    ) -> list[Lease]:
        """The waiting leases that get devices now, as they will be."""
        now = self._clock()
        placed = []
        for lease_id, shares in plan(lines, self._devices.rooms(freed), without).items():
            waiting = newcomer if newcomer is not None and newcomer.id == lease_id else self._leases[lease_id]
            placed.append(_holding(replace(waiting, state=LeaseState.RESERVED, since=now), shares))
        return placed

    def _with_notice(self, lease: Lease) -> Lease:
        if not lease.state.holds_devices or lease.state is LeaseState.RELEASING:
            return lease
        states = [(self._devices.device(each), self._devices.health(each)) for each in lease.device_uuids]
        return replace(lease, notice=notice.withdrawn([each for each in states if not each[1].healthy]))

    # Committing, then remembering.

    async def _step(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one step under the lock, to its end even if the caller is cancelled meanwhile."""
        task = asyncio.create_task(self._locked(work))
        self._steps.add(task)
        task.add_done_callback(self._step_done)
        return await asyncio.shield(task)

    async def _locked(self, work: Coroutine[Any, Any, T]) -> T:
        async with self._lock:
            return await work

    def _step_done(self, task: asyncio.Task[Any]) -> None:
        self._steps.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio doesn't report it when the caller was cancelled

    async def _commit(self, *leases: Lease, ago_seconds: float = 0.0) -> None:
        """Write the leases in one transaction; then, and only then, change memory.

        An error may hide a commit that succeeded (its answer was lost). Such leases are doubtful: before
        the next change they are written again as memory has them.
        """
        if not leases:
            return
        if self._doubtful:
            known = [self._leases.get(each.id, each) for each in self._doubtful.values()]
            await self._ledger.save(*known, at=self._clock())
            self._doubtful.clear()
        try:
            await self._ledger.save(*leases, at=self._clock(), ago_seconds=ago_seconds)
        except BaseException:
            for lease in leases:
                unknown = replace(lease, state=LeaseState.CLOSED, reason="not_recorded")
                self._doubtful[lease.id] = self._leases.get(lease.id, unknown)
            raise
        queued = len(self._queue)
        for lease in leases:
            self._enter(lease)
            self._watches.put(lease)
            self._log.info(
                "Lease is %s %s user=%s server=%s lease=%s devices=%s container=%s",
                lease.state, lease.reason, lease.user, lease.server, lease.id,
                ",".join(lease.device_uuids), lease.container_id,
            )  # fmt: skip
        if len(self._queue) < queued:
            self._watches.wake_waiting()

    def _enter(self, lease: Lease) -> None:
        """Memory's side of a commit: the lease is now like this."""
        before = self._leases.get(lease.id)
        held = before is not None and before.state.holds_devices
        if before is not None and before.state is LeaseState.WAITING is not lease.state:
            self._queue.remove(lease.id)
        if before is None and lease.state is LeaseState.WAITING:
            self._arrivals += 1
            self._queue.add(Waiting(self._arrivals, lease.id, want_of(lease)))
        if lease.state.holds_devices and not held:
            self._devices.hold(lease)
        if before is not None and held and not lease.state.holds_devices:
            self._devices.give_back(before)
        of_server = self._by_server.setdefault((lease.hub, lease.user, lease.server), {})
        if lease.state is not LeaseState.CLOSED:
            self._leases[lease.id] = lease
            of_server[lease.id] = None
            return
        self._leases.pop(lease.id, None)
        of_server.pop(lease.id, None)
        if not of_server:
            del self._by_server[(lease.hub, lease.user, lease.server)]

    def _report_trouble(self, lease: Lease) -> None:
        gone = [each for each in lease.device_uuids if each not in self._devices]
        if gone:
            self._log.warning(
                "Devices that this lease holds were not found: user=%s server=%s lease=%s devices=%s",
                lease.user, lease.server, lease.id, ",".join(gone),
            )  # fmt: skip
        else:
            self._log.error(
                "The ledger gives a device twice, and nobody loses it: user=%s server=%s lease=%s devices=%s",
                lease.user, lease.server, lease.id, ",".join(lease.device_uuids),
            )  # fmt: skip


def _holding(lease: Lease, shares: Sequence[Share]) -> Lease:
    """The lease with these shares."""
    return replace(
        lease,
        device_uuids=tuple(share.device_uuid for share in shares),
        memory_bytes=sum(share.memory_bytes for share in shares),
        compute_percent=min(share.compute_percent for share in shares),
    )
