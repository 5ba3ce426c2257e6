"""Owns the leases: who waits, who holds what, in memory as in the ledger.

Every change happens under one lock, and in this order: decide, commit to the ledger, change memory. A commit
that fails changes nothing in memory. A step that has begun is finished even if its caller is cancelled, so
memory and ledger always agree: after a cancelled `acquire`, call `begin_release`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from ...core import states
from ...core.decision import Drain
from ...core.errors import LeaseConflict, NoCapacity, Refusal, refusal_in
from ...core.model import Device, DeviceHealth, GpuRequest, Lease, LeaseState
from ...core.states import Actor, Event, Frees
from ...core.units import Clock, utc_now
from ...core.want import Mode, Want
from ..decide.book import Book, QueueRules, with_shares
from ..decide.line.backfill import SessionHold
from ..decide.line.future import Arrival, Line
from ..decide.line.queue import Place
from ..decide.place.devices import NO_RULES
from ..decide.place.placement import Kind, Share
from ..decide.place.sharing_rules import SharingRules
from ..decide.snapshot import Capacity, Snapshot
from ..decide.turns import Rank
from ..ledger import Ledger
from .gate import Gate
from .logline import log_context
from .past_use import past_use
from .waits import Guest, Waits
from .watch import WaitNews, Watch, Watches

_MOST_PAST = 20_000
"""At most this many past sessions, the newest, are read at the start: they show each user's past use."""

_PAST_SECONDS = 5 * 7 * 86400.0
"""Estimates draw newcomers from the last four weeks."""

NOBODY: Mapping[str, str] = MappingProxyType({})

P = ParamSpec("P")
T = TypeVar("T")


class Allocator:
    """The leases of all hubs on the devices of all nodes; to be used from one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock = utc_now,
        gate: Gate | None = None,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
        rules: QueueRules | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._gate = gate
        self._log = log or logging.getLogger(__name__)
        self._lock = asyncio.Lock()
        self._steps: set[asyncio.Task[Any]] = set()
        self._rules = rules or QueueRules()
        self._book = Book(rules=self._rules)
        self._sessions: tuple[SessionHold, ...] = ()
        self._placing = True
        self._doubtful: set[str] = set()
        self._owes_places = False
        """Whether a device went out of service, and who gets a place by that could not be recorded."""
        self._watches = Watches(lambda: self._book.all_places())
        self.on_lease: Callable[[Lease], None] | None = None
        """Called with each lease that was committed, once memory has it; must not block or fail."""
        self.waits = Waits(self.line, self._arrival, self.wake_waiting, self._log, clock)
        """The estimated times at which waiting leases are served."""

    # Reading: from memory, without waiting.

    @property
    def placing(self) -> bool:
        """Whether waiting leases get devices."""
        return self._placing

    def lease(self, lease_id: str) -> Lease | None:
        """The living lease with this id."""
        return self._book.lease(lease_id)

    def leases(self) -> tuple[Lease, ...]:
        """All living leases, in the order of arrival."""
        return self._book.leases()

    def node_of(self, lease: Lease) -> str:
        """The machine of the lease's devices; "" if it isn't known, or if it has none."""
        return self._book.node_of(lease)

    def leases_on(self, node: str) -> tuple[Lease, ...]:
        """The living leases on that machine, in the order of arrival."""
        return self._book.leases_on(node)

    def leases_not_on(self, nodes: Collection[str]) -> tuple[Lease, ...]:
        """The living leases on none of these machines, those that wait too, in the order of arrival."""
        return self._book.leases_not_on(nodes)

    def node_with(self, uuid: str) -> str:
        """The machine that has this device; "" if that isn't known."""
        return self._book.node_with(uuid)

    def of_server(self, hub: str, user: str, server: str) -> tuple[Lease, ...]:
        """The living leases of one server: one or none, unless the ledger was tampered with."""
        return self._book.of_server(hub, user, server)

    def capacity(self, want: Want) -> Capacity:
        """How many devices, or slices, suit such a request, and how many requests wait for them."""
        return self._book.capacity(want)

    def competing(self, want: Want) -> int:
        """How many of those who wait compete with such a request."""
        return self._book.competing(want)

    def fits(self, wanted: Iterable[tuple[Want, int]]) -> bool:
        """Whether this many leases of each want fit on the healthy devices if no other lease holds any."""
        return self._book.fits(wanted)

    def not_counted(self, want: Want) -> str:
        """Which devices for `want` `fits` doesn't count: they are drained or out of service; "" if none."""
        return self._book.not_counted(want)

    def places(self, want: Want, most: int, without: Iterable[str] = ()) -> int:
        """How many leases like `want` fit now, up to `most`, if those leases had given back their devices."""
        return self._book.places(want, most, without)

    def lacks(self, want: Want, kept: Want, count: int) -> bool:
        """Whether a lease like `want`, placed now, would take one of `count` places like `kept`."""
        return self._book.lacks(want, kept, count)

    def spare(self, want: Want, kept: Iterable[tuple[Want, int]]) -> int:
        """How many leases like `want` fit now beside these places that are kept for others."""
        return self._book.spare(want, kept)

    def guest(self, requests: Iterable[GpuRequest]) -> Guest:
        """A user's requests, which don't wait yet, one for each tier, as `waits.of_guest` takes them."""
        new = [_new(each, LeaseState.WAITING, self._clock()) for each in requests]
        asking = {lease.tier: self._book.asking(lease) for lease in new}
        uses = {self._book.use_step(lease.user) for lease in new}
        claims = frozenset((tier, waiting.want, waiting.claim) for tier, waiting in asking.items())
        return Guest(asking, (claims, frozenset(uses)))

    def note_machine_images(self, node: str, images: frozenset[str]) -> None:
        """The ids of the images that a machine has: of machines that may serve, one with the image comes
        first."""
        self._book.set_machine_images(node, images)

    def begins(self, request: GpuRequest, session_seconds: float | None) -> bool:
        """Whether this request, if it came now, would get its devices at once; a session has that length."""
        new = _new(request, LeaseState.WAITING, self._clock())
        return self._placing and self._book.begins(new, session_seconds)

    def competes(self, one: Want, other: Want) -> bool:
        """Whether some device here suits both."""
        return self._book.competes(one, other)

    def charged_as(self, want: Want) -> float | None:
        """How many whole devices a lease like `want` is charged as; None if no device suits it."""
        return self._book.charged_as(want)

    def is_drained(self, uuid: str) -> bool:
        """Whether nothing new is placed on the device by an admin's decision."""
        return self._book.is_drained(uuid)

    def turn_rank(self, lease: Lease) -> Rank:
        """Its place by the policy among those that want a GPU in turns, now."""
        return self._book.turn_rank(lease, self._clock().timestamp())

    def taken(self, tier: str, group: str) -> int:
        """How many leases of this tier hold devices whose users are members of the group."""
        return self._book.taken(tier, group)

    def example(self, want: Want) -> Share | None:
        """What such a request would get of one device; None if none suits."""
        return self._book.example(want)

    def suiting(self, want: Want) -> tuple[Kind, ...]:
        """The kinds of devices that suit such a request, the smallest first, leased or not."""
        return self._book.suiting(want)

    def snapshot(self) -> Snapshot:
        """Devices, living leases and queue at this moment."""
        found = self._book.snapshot()
        return replace(
            found, queue=tuple(replace(each, wait=self.waits.of(each.lease.id)) for each in found.queue)
        )

    def line(self) -> Line:
        """The queue, and which lease holds what until when: the input for estimates of waits."""
        return self._book.line()

    def obstacles(self, lease_ids: Iterable[str]) -> dict[str, str]:
        """Why waiting leases can't be served in any place, of those where something is in the way."""
        found = ((lease_id, self._book.obstacle(lease_id)) for lease_id in lease_ids)
        return {lease_id: obstacle for lease_id, obstacle in found if obstacle}

    def misses_devices(self) -> bool:
        """Whether a lease holds a device that was not found."""
        return any(self._book.missing(lease) for lease in self.leases())

    def watch(self, lease_id: str) -> Watch:
        """Follow a lease: `async with allocator.watch(id) as changes: async for change in changes: ...`."""
        return Watch(lease_id, self._watches, self._book.lease, self._news_of)

    def wake_waiting(self) -> None:
        """Wake everybody who follows a waiting lease, so that they look at their place again."""
        self._watches.wake_waiting()

    # Changes: each is one step under the lock.

    async def load(
        self,
        devices: Iterable[Device],
        terms: Mapping[str, SharingRules] = NO_RULES,
        *,
        place: bool = True,
        awaited: Mapping[str, str] = NOBODY,
    ) -> None:
        """Take over these devices and the ledger's living leases; call once, before anything else.

        `terms` says by UUID how a device is shared; left out, it is leased whole. A lease whose device is
        gone keeps it as a placeholder that is out of service. Waiting leases keep their order. With
        `place=False` all of them wait until `start_placing`: the ledger may be an old copy, and only Docker
        knows which containers run. `awaited` are machines that haven't reported yet, as for `set_awaited`.
        """
        await self._step(self._load, tuple(devices), terms, place, awaited)

    async def start_placing(self) -> None:
        """Docker was compared with the ledger: from now on waiting leases get devices."""
        await self._step(self._start_placing)

    async def advance(self) -> None:
        """Place leases after time has passed: a lab session begins, or a request may no longer be overtaken.

        Raises LedgerFault if what follows could not be recorded; call again.
        """
        await self._step(self._advance)

    async def rules_changed(self) -> None:
        """Sort the queue again and tell those who wait: the results of `rules.claim` may have changed.

        Raises LedgerFault if what follows could not be recorded; call again.
        """
        await self._step(self._rules_changed)

    async def add(
        self,
        devices: Iterable[Device],
        terms: Mapping[str, SharingRules],
        unwell: Iterable[DeviceHealth] = (),
    ) -> tuple[Lease, ...]:
        """Add devices that could not be found at `load`. Returns the leases whose `notice` changed.

        `unwell`: those that don't serve from the beginning. Known devices are not changed. If it could not be
        recorded (LedgerFault), call again.
        """
        return await self._step(self._add, tuple(devices), terms, tuple(unwell))

    async def drop(self, uuids: Iterable[str]) -> None:
        """Forget devices of a machine that won't come back, but for those that a lease holds."""
        await self._step(self._drop, tuple(uuids))

    async def acquire(self, request: GpuRequest) -> Lease:
        """A lease for the request, RESERVED or WAITING; the same id always returns the same lease.

        `request` is well formed (`protocol.messages`). Raises a quota refusal if the quota does not allow it,
        checked under the same lock under which the lease is given, NoCapacity if these devices can never
        serve it, or not before an admin has repaired them, LeaseConflict if the id is another's or has ended,
        or the server has another living lease (end that one first), LedgerFault if it could not be recorded.
        For a lease that ended in the queue by a refusal: that refusal.
        """
        return await self._step(self._acquire, request)

    async def recheck(self) -> tuple[Lease, ...]:
        """Remove leases from the queue that a changed or used-up quota no longer allows.

        A lease that holds a GPU keeps it. Returns the leases that ended; their reason has the refusal, for
        `refusal_in`. Each user is a separate step, so nobody else waits for long. Raises LedgerFault.
        """
        users = dict.fromkeys(
            (lease.hub, lease.user) for lease in self.leases() if lease.state is LeaseState.WAITING
        )
        ended = [lease for user in users for lease in await self._step(self._recheck, *user)]
        await self._step(self._rules_changed)
        return tuple(ended)

    async def find(self, lease_id: str) -> Lease | None:
        """The lease, living or closed, or None if there never was one. Raises LedgerFault."""
        return await self._step(self._find, lease_id)

    async def set_running(self, lease_id: str, container_id: str) -> Lease:
        """The lease's container has started.

        Idempotent. Raises LeaseConflict if the lease may not have a container, or has another one.
        """
        return await self._step(self._set_running, lease_id, container_id)

    async def sleep(self, lease_id: str, *, ago_seconds: float = 0.0) -> Lease | None:
        """The lease computes on no GPU any more, since `ago_seconds`: from then on it isn't charged.

        Idempotent: None for a lease that isn't awake. Raises LedgerFault.
        """
        return await self._step(self._turn, lease_id, Event.SLEEP, ago_seconds)

    async def wake(self, lease_id: str, *, ago_seconds: float = 0.0) -> Lease | None:
        """The lease has a GPU to itself since `ago_seconds`: from then on it is charged.

        Idempotent: None for a lease that isn't asleep. Raises LedgerFault.
        """
        return await self._step(self._turn, lease_id, Event.WAKE, ago_seconds)

    async def charge(self, lease_id: str, awake_since: datetime) -> None:
        """Open a new awake interval for a running lease whose interval a reboot has ended, from `since`.

        Does nothing for a lease that does not run, or has an open interval.
        """
        await self._step(self._charge, lease_id, awake_since)

    async def begin_release(
        self, lease_id: str, reason: str, *, by: Actor = Actor.BROKER, ended_at: datetime | None = None
    ) -> Lease | None:
        """End a lease. A waiting lease closes; any other keeps its devices as RELEASING until `close`.

        Idempotent: None for a lease that is not living. `ended_at` is when the container stopped, if the stop
        was noticed late; the time after it is not charged.
        """
        return await self._step(self._begin_release, lease_id, reason, by, ended_at)

    async def close(self, lease_id: str) -> None:
        """Close a lease that no container carries any more: its devices become free, and the queue advances.

        Idempotent. Raises LeaseConflict unless `begin_release` came first.
        """
        await self._step(self._close, lease_id)

    async def adopt(self, lease: Lease) -> Lease:
        """Adopt the lease of a running container that the ledger doesn't know, as its labels describe it.

        If the ledger has the lease as another broker's, it is taken over: its container is on this machine,
        so that broker was this one before it lost its id. Raises LeaseConflict if the ledger has the lease as
        this broker's own, its server has another, or a device is not free.
        """
        return await self._step(self._adopt, lease)

    async def set_health(self, *healths: DeviceHealth) -> tuple[Lease, ...]:
        """Take devices out of service or back into it. Returns the leases whose `notice` changed.

        If that could not be recorded (LedgerFault), the devices are or stay out of service; call again.
        """
        return await self._step(self._set_health, *healths)

    async def set_drained(self, drained: Mapping[str, Drain]) -> None:
        """Place nothing new on exactly these devices, by UUID, and machines (`drain_of`), also not on devices
        that they have later; what runs or starts there goes on.

        Raises LedgerFault if what follows could not be recorded; `advance` then does it.
        """
        await self._step(self._set_drained, drained)

    async def set_awaited(self, reasons: Mapping[str, str]) -> None:
        """What these machines have isn't known yet, so requests for it wait; by name, why.

        Requests that nothing can serve now, since all is known, end by a refusal. Raises LedgerFault.
        """
        await self._step(self._set_awaited, dict(reasons))

    async def tell(self, lease_id: str, sentence: str) -> Lease | None:
        """Give the lease's user a notice. The lease with it, or None if it has ended. Raises LedgerFault."""
        return await self._step(self._tell, lease_id, sentence)

    async def keep_asleep(self, lease_id: str, why: str) -> Lease | None:
        """Give a lease in turns no turn from now on; with `why` "" it gets its turns again.

        `why` is a sentence for its user, and becomes its notice. The lease, or None if it has no container.
        Raises LedgerFault.
        """
        return await self._step(self._keep_asleep, lease_id, why)

    # The steps.

    async def _load(
        self,
        devices: tuple[Device, ...],
        terms: Mapping[str, SharingRules],
        place: bool,
        awaited: Mapping[str, str],
    ) -> None:
        living = await self._ledger.living()
        self._placing = place
        await self._count_past(living)
        self._book = Book(devices, terms, self._rules)
        self._book.set_awaited(awaited)
        for lease in living:
            if lease.state.holds_devices and not self._book.can_hold(lease):
                self._report_trouble(lease)
            self._book.enter(lease)
        now = [self._book.with_fractions(self._book.with_notice(lease)) for lease in living]
        told = [lease for lease in now if lease != self.lease(lease.id)]
        await self._commit(*told, *self._placed(self._clock()))

    async def _count_past(self, living: Iterable[Lease]) -> None:
        """Read the past from the ledger: the use of users and groups, and what estimates learn from."""
        fair = self._rules.fair
        seconds = _PAST_SECONDS if fair is None else max(_PAST_SECONDS, fair.memory_seconds)
        past = await self._ledger.sessions(self._clock() - timedelta(seconds=seconds), _MOST_PAST)
        self.waits.learn_past(past)
        self.waits.learn_errors(await self._ledger.wait_errors())
        self.waits.keep = self._ledger.add_wait_errors
        if fair is None:
            return
        holding = {lease.id: lease for lease in living if lease.state.holds_devices}
        for each in past:
            group = self._rules.claim(each.lease).group
            for part, began, ended in past_use(each, holding.get(each.lease.id)):
                fair.add_past(each.lease.user, group, part, began, ended)

    async def _advance(self) -> None:
        now = self._clock()
        await self._commit(*self._placed(now))
        sessions = tuple(self._rules.sessions(now.timestamp()))
        if sessions != self._sessions:
            self._sessions = sessions
            self._watches.wake_waiting()

    async def _rules_changed(self) -> None:
        self._book.read_claims()
        await self._commit(*self._placed(self._clock()))
        self._watches.wake_waiting()

    async def _start_placing(self) -> None:
        self._placing = True
        try:
            await self._commit(*self._placed(self._clock()))
        except BaseException:
            self._placing = False
            raise

    async def _charge(self, lease_id: str, awake_since: datetime) -> None:
        lease = self.lease(lease_id)
        if lease is not None and lease.state in states.AWAKE:
            await self._settle()
            now = self._clock()
            await self._ledger.charge(lease, at=now, ago_seconds=(now - awake_since).total_seconds())

    async def _add(
        self,
        devices: tuple[Device, ...],
        terms: Mapping[str, SharingRules],
        unwell: tuple[DeviceHealth, ...],
    ) -> tuple[Lease, ...]:
        now = self._clock()
        self._book.add(devices, terms, {each.uuid: replace(each, since=each.since or now) for each in unwell})
        held = {lease.id: lease for device in devices for lease in self._book.holders(device.uuid)}
        noted = [self._book.with_fractions(self._book.with_notice(lease)) for lease in held.values()]
        told = [lease for lease in noted if lease != self.lease(lease.id)]
        await self._commit(*told, *self._placed(now))
        return tuple(told)

    async def _drop(self, uuids: tuple[str, ...]) -> None:
        self._book.drop(uuids)

    async def _acquire(self, request: GpuRequest) -> Lease:
        known = self.lease(request.lease_id)
        if known is not None:
            return await self._resume(known, request)
        if self.of_server(request.hub, request.user, request.server):
            raise LeaseConflict("This server's previous lease is still ending: try again in a moment.")
        since = None if self._gate is None else self._gate.counts_from(request)
        await self._settle()
        past, used = await self._ledger.before_start(request, since)
        if past is not None and (refusal := refusal_in(past.reason)) is not None:
            raise refusal  # its quota ended it while nobody could be told, as when the broker died
        asked = states.after(None if past is None else past.state, Event.ASK, Actor.HUB)
        if self._gate is not None:
            self._gate.admit(request, self._book.of_user(request.hub, request.user), used)
        self._check_capacity(request.want)
        if broken := self._book.repair_needed(request.want):
            raise NoCapacity(broken)
        lease = _new(request, asked.to, self._clock())
        self._book.note_image(lease.id, request.image)
        try:
            placed = {each.id: each for each in self._placed(lease.since, newcomer=lease)}
            lease = placed.pop(lease.id, lease)
            await self._commit(lease, *placed.values())
        except BaseException:
            self._book.note_image(lease.id, "")
            raise
        return lease

    async def _recheck(self, hub: str, user: str) -> tuple[Lease, ...]:
        if self._gate is None:
            return ()
        now, ended = self._clock(), []
        for lease, refusal in await self._gate.refused(self._book.of_user(hub, user)):
            ended.append(_refused(lease, refusal, now))
        await self._commit(*ended)
        return tuple(ended)

    async def _set_awaited(self, reasons: dict[str, str]) -> None:
        told = self._book.set_awaited(reasons)
        found = {want: self._book.unservable(want) for want in self._book.waiting_wants}
        never = {want: why for want, why in found.items() if why}
        waiting = [each for each in self._book.leases() if each.state is LeaseState.WAITING] if never else []
        now = self._clock()
        ended = [_refused(each, NoCapacity(never[each.want]), now) for each in waiting if each.want in never]
        await self._commit(*told, *ended)

    async def _find(self, lease_id: str) -> Lease | None:
        await self._settle()
        return self.lease(lease_id) or await self._ledger.find(lease_id)

    async def _resume(self, lease: Lease, request: GpuRequest) -> Lease:
        same_owner = (lease.hub, lease.user, lease.server) == (request.hub, request.user, request.server)
        if not same_owner or lease.want != request.want:
            raise LeaseConflict("This lease belongs to another request: start the server again.")
        states.after(lease.state, Event.ASK, Actor.HUB)
        if lease.state is LeaseState.WAITING:
            self._book.note_image(lease.id, request.image)  # a broker that has just started doesn't know it
            try:
                self._check_capacity(lease.want)
            except NoCapacity:
                await self._begin_release(lease.id, "no_capacity", Actor.BROKER, None)
                raise
        return lease

    async def _set_running(self, lease_id: str, container_id: str) -> Lease:
        lease = self.lease(lease_id)
        if lease is None:
            raise LeaseConflict(states.ENDED)
        if lease.state in states.WITH_CONTAINER and lease.container_id == container_id:
            return lease
        started = states.after(lease.state, Event.START, Actor.DOCKER)
        lease = replace(lease, state=started.to, container_id=container_id, since=self._clock())
        lease = _before_first_turn(lease)
        await self._commit(lease)
        return lease

    async def _turn(self, lease_id: str, event: Event, ago_seconds: float) -> Lease | None:
        lease = self.lease(lease_id)
        if lease is None or not states.can(lease.state, event):
            return None
        turned = replace(lease, state=states.after(lease.state, event, Actor.BROKER).to, since=self._clock())
        await self._commit(turned, ago_seconds=ago_seconds)
        return turned

    async def _begin_release(
        self, lease_id: str, reason: str, by: Actor, ended_at: datetime | None
    ) -> Lease | None:
        lease = self.lease(lease_id)
        if lease is None:
            return None
        end = states.after(lease.state, Event.END, by)
        if end.to is lease.state:
            return lease
        now = self._clock()
        ended = replace(lease, state=end.to, since=now, reason=reason)
        if end.frees is Frees.PLACE:
            await self._commit(ended, *self._placed(now, without=lease_id))
            return ended
        ago_seconds = (now - ended_at).total_seconds() if ended_at is not None else 0.0
        await self._commit(ended, ago_seconds=ago_seconds)
        return ended

    async def _close(self, lease_id: str) -> None:
        lease = self.lease(lease_id)
        if lease is None:
            return
        gone = states.after(lease.state, Event.GONE, Actor.DOCKER)
        freed = lease if gone.frees is Frees.DEVICES else None
        now = self._clock()
        closed = replace(lease, state=gone.to, since=now)
        await self._commit(closed, *self._placed(now, freed=freed))

    async def _adopt(self, lease: Lease) -> Lease:
        known = await self._find(lease.id)
        foreign = known is not None and await self._ledger.owned_elsewhere(lease.id)
        before = None if known is None or foreign else known.state
        adopted_as = states.after(before, Event.ADOPT, Actor.DOCKER)
        if self.of_server(lease.hub, lease.user, lease.server):
            raise LeaseConflict("This server has another lease.")
        if not lease.device_uuids or not self._book.can_hold(lease):
            raise LeaseConflict("A device of this lease is not free, or not on this machine.")
        shares = self._book.shares(lease)
        running = _before_first_turn(with_shares(lease, shares, adopted_as.to, lease.since))
        adopted = self._book.with_fractions(self._book.with_notice(running))
        if known is not None:
            adopted = replace(adopted, groups=known.groups, created_at=known.created_at)
        await self._commit(adopted, take_over=foreign)
        return adopted

    async def _set_health(self, *healths: DeviceHealth) -> tuple[Lease, ...]:
        now = self._clock()
        known = {each.uuid: each for each in healths if self._book.health(each.uuid) is not None}
        before = {uuid: health for uuid in known if (health := self._book.health(uuid)) is not None}
        changed = [uuid for uuid, health in known.items() if self._change_health(health, now)]
        holders = {lease.id: lease for uuid in known for lease in self._book.holders(uuid)}
        noted = [self._book.with_notice(lease) for lease in holders.values()]
        told = [each for each in noted if each != self.lease(each.id)]
        if not changed and not told and not self._owes_places:
            return ()
        try:
            self._owes_places = True
            await self._commit(*told, *self._placed(now))
            self._owes_places = False
        except BaseException:
            for uuid in changed:
                if known[uuid].healthy:
                    self._book.set_health(before[uuid])
            raise
        finally:
            self._watches.wake_waiting()
        return tuple(told)

    def _change_health(self, health: DeviceHealth, now: datetime) -> bool:
        """Whether it is another one; that goes to the log."""
        if not health.healthy and health.since is None:
            health = replace(health, since=now)
        changed = self._book.set_health(health)
        if changed:
            say = self._log.info if health.healthy else self._log.warning
            state = "in service" if health.healthy else "out of service"
            say("Device %s is %s: %s", health.uuid, state, health.reason)
        return changed

    async def _set_drained(self, drained: Mapping[str, Drain]) -> None:
        if not self._book.set_drained(drained):
            return
        try:
            await self._commit(*self._placed(self._clock()))
        finally:
            self._watches.wake_waiting()

    async def _tell(self, lease_id: str, sentence: str) -> Lease | None:
        lease = self.lease(lease_id)
        if lease is None or not lease.state.holds_devices or lease.state is LeaseState.RELEASING:
            return None
        if lease.notice != sentence:
            lease = replace(lease, notice=sentence)
            await self._commit(lease)
        return lease

    async def _keep_asleep(self, lease_id: str, why: str) -> Lease | None:
        lease = self.lease(lease_id)
        if lease is None or lease.state not in states.WITH_CONTAINER:
            return None
        if lease.kept_asleep != why:
            notice = why if why or lease.notice == lease.kept_asleep else lease.notice
            lease = replace(lease, kept_asleep=why, notice=notice)
            await self._commit(lease)
        return lease

    def _placed(
        self,
        now: datetime,
        *,
        freed: Lease | None = None,
        without: str | None = None,
        newcomer: Lease | None = None,
    ) -> list[Lease]:
        """The waiting leases that get devices now; see Book.placed."""
        if not self._placing:
            return []
        return self._book.placed(now, freed=freed, without=without, newcomer=newcomer)

    def _check_capacity(self, want: Want) -> None:
        if never := self._book.unservable(want):
            raise NoCapacity(never)

    def _arrival(self, lease: Lease) -> Arrival:
        return self._book.arrival(lease)

    def _news_of(self, lease_id: str, place: Place | None = None) -> WaitNews:
        book = self._book
        return WaitNews(
            place or book.place_of(lease_id),
            book.obstacle(lease_id),
            self.waits.of(lease_id),
            book.idle_but_out(lease_id),
        )

    # Committing, then remembering.

    async def _step(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one step under the lock, to its end even if the caller is cancelled."""
        task = asyncio.create_task(self._locked(work, *args, **kwargs))
        self._steps.add(task)
        task.add_done_callback(self._step_done)
        return await asyncio.shield(task)

    async def _locked(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._lock:
            return await work(*args, **kwargs)

    def _step_done(self, task: asyncio.Task[Any]) -> None:
        self._steps.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio doesn't report it when the caller was cancelled

    async def _commit(self, *leases: Lease, ago_seconds: float = 0.0, take_over: bool = False) -> None:
        """Write the leases in one transaction; then, and only then, change memory.

        An error may hide a commit that succeeded (its answer was lost). Such leases are doubtful: before
        the next change they are written again as memory has them, or erased if it doesn't have them.
        """
        if not leases:
            return
        await self._settle()
        try:
            await self._ledger.save(*leases, at=self._clock(), ago_seconds=ago_seconds, take_over=take_over)
        except BaseException:
            self._doubtful.update(lease.id for lease in leases)
            raise
        queued = self._book.waiting_count
        for lease in leases:
            self._log_change(self.lease(lease.id), lease)
            self._book.enter(lease)
            self._watches.put(lease)
            self.waits.on_lease(lease)
            if self.on_lease is not None:
                self.on_lease(lease)
        joined, left = self._book.waiting_count > queued, self._book.waiting_count < queued
        freed = any(lease.state is LeaseState.CLOSED for lease in leases)
        may_lie_idle = self._sessions or not self._book.all_in_service
        if left or (joined and self._book.may_pass) or (freed and may_lie_idle):
            self._watches.wake_waiting()

    async def _settle(self) -> None:
        """Make the ledger agree with memory for leases whose commit failed with an unknown result."""
        if not self._doubtful:
            return
        living = [lease for each in self._doubtful if (lease := self.lease(each)) is not None]
        erase = self._doubtful - {lease.id for lease in living}
        await self._ledger.save(*living, at=self._clock(), erase=erase)
        self._doubtful.clear()

    def _log_change(self, before: Lease | None, lease: Lease) -> None:
        if before is not None and {before.state, lease.state} == states.WITH_CONTAINER:
            self._log.debug("Lease is %s: %s", lease.state, log_context(lease))  # its turn has a line already
        elif before is None or before.state is not lease.state:
            why = f" ({lease.reason})" if lease.reason else ""
            self._log.info("Lease is %s%s: %s", lease.state, why, log_context(lease))
        elif before.kept_asleep != lease.kept_asleep:
            self._log.info("Kept asleep: %r %s", lease.kept_asleep, log_context(lease))
        elif before.notice != lease.notice:
            self._log.info("Notice for its user: %r %s", lease.notice, log_context(lease))

    def _report_trouble(self, lease: Lease) -> None:
        missing = self._book.missing(lease)
        if missing:
            self._log.warning("A leased device was not found: %s %s", ",".join(missing), log_context(lease))
        elif self._book.exceeded_by(lease):
            self._log.error("The ledger gives a device to two leases; both keep it: %s", log_context(lease))
        else:
            self._log.warning("The lease keeps more than its pool now gives: %s", log_context(lease))


def _refused(lease: Lease, refusal: Refusal, now: datetime) -> Lease:
    """The waiting lease, ended by this refusal, as `refusal_in` reads it."""
    end = states.after(lease.state, Event.END, Actor.BROKER)
    return replace(lease, state=end.to, since=now, reason=f"{refusal.reason}: {refusal.message}")


def _new(request: GpuRequest, state: LeaseState, now: datetime) -> Lease:
    """The lease of a new request."""
    return Lease(
        id=request.lease_id,
        hub=request.hub,
        user=request.user,
        server=request.server,
        tier=request.tier,
        state=state,
        want=request.want,
        groups=request.groups,
        created_at=now,
        since=now,
    )


def _before_first_turn(lease: Lease) -> Lease:
    """A lease whose container runs, as it begins: in turns it has no GPU yet, and isn't charged."""
    if lease.mode is not Mode.TURNS:
        return lease
    return replace(lease, state=states.after(lease.state, Event.SLEEP, Actor.BROKER).to)
