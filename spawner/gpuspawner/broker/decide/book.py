"""The living leases, their queue and their devices in memory: computes the effects of a change and enters it.

No clock, no ledger, no lock: the allocator computes what would follow (`placed`, `with_notice`), commits it,
and enters it. Closed leases are not kept.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeVar

from ...core.decision import Drain
from ...core.model import Device, DeviceHealth, Lease, LeaseState
from ...core.states import Actor, Event, after
from ...core.want import Mode, Want
from .line.backfill import Fleet, Holding, SessionHold, plan
from .line.fairshare import FairShare
from .line.future import Arrival, Line, Session
from .line.queue import NO_CLAIM, PATIENCE_SECONDS, Claim, Place, Queue, Waiting, competes
from .place import notice
from .place.devices import NO_RULES, Devices
from .place.fitting import fits, grouped, places, places_beside
from .place.placement import RULES, Kind, Room, Share, example, place, suiting, suits, take
from .place.sharing_rules import WHOLE, SharingRules
from .snapshot import Capacity, DeviceView, QueueEntry, Snapshot
from .turns import Rank

K = TypeVar("K")

_HOUR_SECONDS = 3600.0
_USE_STEPS = 4
"""Steps of use for each doubling of one hour and more."""

_USING = frozenset({LeaseState.RESERVED, LeaseState.RUNNING, LeaseState.RELEASING})
"""States in which a lease uses its devices; one that is asleep keeps its place and uses none."""


@dataclass(frozen=True, slots=True)
class QueueRules:
    """The site's rules for the queue.

    `claim` gives each lease's; `sessions` the capacity that is kept for groups, at a moment in seconds since
    1970, and `coming` what is kept then or later, as far as it is known. Without `fair` there is no fair
    share: requests of equal priority are served by arrival.
    """

    claim: Callable[[Lease], Claim] = lambda lease: NO_CLAIM
    fair: FairShare | None = None
    sessions: Callable[[float], Sequence[SessionHold]] = lambda now_seconds: ()
    coming: Callable[[float], Sequence[SessionHold]] = lambda now_seconds: ()
    patience_seconds: float = PATIENCE_SECONDS


class Book:
    """The leases that hold or wait for these devices; `rules` give the order of the queue."""

    def __init__(
        self,
        devices: Iterable[Device] = (),
        terms: Mapping[str, SharingRules] = NO_RULES,
        rules: QueueRules | None = None,
    ) -> None:
        self._rules = rules or QueueRules()
        self._devices = Devices(devices, terms)
        self._queue = Queue(self._devices.kinds, self._rules.fair, self._rules.patience_seconds)
        self._claims: dict[str, Claim] = {}
        self._counted: dict[str, tuple[str, str, float]] = {}
        self._held: dict[str, Holding] = {}
        self._began: dict[str, float] = {}
        self._now = 0.0
        self._leases: dict[str, Lease] = {}
        self._by_node: dict[str, dict[str, Lease]] | None = None
        """The living leases by machine and id; None after a change of devices."""
        self._numbers: dict[str, int] = {}
        """The order of arrival of the living leases."""
        self._entered = 0
        self._by_server: dict[tuple[str, str, str], dict[str, None]] = {}
        self._by_user: dict[tuple[str, str], dict[str, None]] = {}
        self._taken: Counter[tuple[str, str]] = Counter()
        """How many leases hold devices, by tier and group."""
        self._computing: dict[str, str] = {}
        """Of the leases whose use counts, the pool of turns, "" for those in none."""
        self._awake: defaultdict[tuple[str, str], float] = defaultdict(float)
        """On how many GPUs members of a group compute in a pool of turns, by group and pool."""
        self._obstacles: dict[tuple[Want, str], str] = {}
        self._idle_but_out: dict[Want, str] = {}
        self._capacities: dict[Want, Capacity] = {}
        """All by want (and group), as of the last change of anything, which empties them."""
        self._arrivals = 0
        self._images: dict[str, str] = {}
        """The ids of the images that waiting leases want."""
        self._machine_images: dict[str, frozenset[str]] = {}
        """The ids of the images that each machine has, as far as is known."""
        self._awaited: dict[str, str] = {}
        """Why the nodes whose devices aren't known yet can't be reached."""

    def lease(self, lease_id: str) -> Lease | None:
        """The living lease with this id."""
        return self._leases.get(lease_id)

    def leases(self) -> tuple[Lease, ...]:
        """All living leases, in the order of arrival."""
        return tuple(self._leases.values())

    def of_server(self, hub: str, user: str, server: str) -> tuple[Lease, ...]:
        """The living leases of one server."""
        return tuple(self._leases[each] for each in self._by_server.get((hub, user, server), ()))

    def of_user(self, hub: str, user: str) -> tuple[Lease, ...]:
        """The living leases of all servers of a user, in the order of arrival."""
        return tuple(self._leases[each] for each in self._by_user.get((hub, user), ()))

    def taken(self, tier: str, group: str) -> int:
        """How many leases of this tier hold devices whose users are members of the group."""
        return self._taken[tier, group]

    def node_of(self, lease: Lease) -> str:
        """The machine of the lease's devices, as they say, else as the lease does; "" if neither does."""
        for uuid in lease.device_uuids:  # a plain loop: each round of each machine asks it of all leases
            if node := self._devices.node_of(uuid):
                return node
        return lease.node

    def leases_on(self, node: str) -> tuple[Lease, ...]:
        """The living leases on that machine, in the order of arrival."""
        return self._in_order(self._sorted_by_node().get(node, {}).values())

    def leases_not_on(self, nodes: Collection[str]) -> tuple[Lease, ...]:
        """The living leases on none of these machines, those that wait too, in the order of arrival."""
        by_node = self._sorted_by_node()
        others = (found.values() for node, found in by_node.items() if node not in nodes)
        return self._in_order(chain.from_iterable(others))

    def _sorted_by_node(self) -> dict[str, dict[str, Lease]]:
        """Every machine asks every few seconds, so leases are kept by machine, through each of their
        changes."""
        if self._by_node is None:
            self._by_node = {}
            for lease in self._leases.values():
                self._by_node.setdefault(self.node_of(lease), {})[lease.id] = lease
        return self._by_node

    def _in_order(self, leases: Iterable[Lease]) -> tuple[Lease, ...]:
        return tuple(sorted(leases, key=lambda lease: self._numbers[lease.id]))

    def _sort_in(self, before: Lease | None, lease: Lease) -> None:
        """The lease has changed: it may be on another machine now, or nowhere."""
        if self._by_node is None:
            return
        if before is not None:
            del self._by_node[self.node_of(before)][before.id]
        if lease.state is not LeaseState.CLOSED:
            self._by_node.setdefault(self.node_of(lease), {})[lease.id] = lease

    def holders(self, uuid: str) -> tuple[Lease, ...]:
        """The leases that hold a share of the device."""
        return tuple(self._leases[each] for each in self._devices.holders(uuid))

    def place_of(self, lease_id: str) -> Place | None:
        """The place of a lease in the queue, or None if it does not wait."""
        return self._queue.place_of(lease_id, self._now, self._devices.servable)

    def all_places(self) -> Mapping[str, Place]:
        """The place of everybody who waits, by lease id, as it is now."""
        return self._queue.all_places(self._now, self._devices.servable)

    @property
    def may_pass(self) -> bool:
        """Whether a new request may be served before one that waits."""
        return self._rules.fair is not None or self._queue.has_priorities

    @property
    def waiting_count(self) -> int:
        """How many leases wait."""
        return len(self._queue)

    @property
    def waiting_wants(self) -> tuple[Want, ...]:
        """What those who wait ask for, each once."""
        return self._queue.wants

    @property
    def all_in_service(self) -> bool:
        """Whether no device is out of service or drained."""
        return self._devices.all_in_service

    def terms(self, uuid: str) -> SharingRules:
        """How the device's pool shares it. Raises KeyError for one that is not known."""
        return self._devices.terms(uuid)

    def unservable(self, want: Want) -> str:
        """Why no node can ever serve `want`; "" if one can, or if what a node has isn't known yet.

        Also leased and broken devices count.
        """
        known = max(self._devices.known(want).values(), default=0)
        if known >= want.device_count or self._awaits(want):
            return ""
        return notice.no_capacity(want, known, several_nodes=self._devices.several_nodes)

    def _awaits(self, want: Want) -> list[str]:
        """Why each node can't be reached that may turn out to have devices for `want`."""
        return [why for node, why in self._awaited.items() if want.node in (None, node)]

    def repair_needed(self, want: Want) -> str:
        """Why `want` can't be served before an admin has repaired devices; "" if it can."""
        broken = [each for each in self._devices.unhealthy(want) if each[1].needs_admin]
        working = Counter(self._devices.known(want))
        working.subtract(device.node for device, _ in broken)
        if not broken or max(working.values(), default=0) >= want.device_count:
            return ""
        return notice.needs_admin(want, self._named(broken))

    def _named(self, lost: Iterable[tuple[Device, DeviceHealth]]) -> list[tuple[Device, DeviceHealth]]:
        """As the sentences take them: they name a device's node if it has one, so only of several."""
        if self._devices.several_nodes:
            return list(lost)
        return [(replace(device, node=""), health) for device, health in lost]

    def obstacle(self, lease_id: str) -> str:
        """Why a waiting lease can't be served in any place; "" if it can, or if it doesn't wait.

        Too few of its devices are in service, or those that are free are kept for a lab session.
        """
        lease = self._leases.get(lease_id)
        if lease is None or lease.state is not LeaseState.WAITING:
            return ""
        key = lease.want, self._claim(lease).group
        if key not in self._obstacles:
            self._obstacles[key] = self._obstacle(*key)
        return self._obstacles[key]

    def idle_but_out(self, lease_id: str) -> str:
        """Which devices, out of service or drained, would serve a waiting lease now if they were in service.

        "" if there are none, if an obstacle says it already, or if the lease doesn't wait.
        """
        lease = self._leases.get(lease_id)
        if lease is None or lease.state is not LeaseState.WAITING or self.obstacle(lease_id):
            return ""
        if lease.want not in self._idle_but_out:
            self._idle_but_out[lease.want] = self._which_would_serve(lease.want)
        return self._idle_but_out[lease.want]

    def _which_would_serve(self, want: Want) -> str:
        lost = {device.uuid: (device, health) for device, health in self._devices.unhealthy(want)}
        if not lost or place(want, self._devices.rooms()) is not None:
            return ""
        shares = place(want, self._devices.rooms_if_in_service())
        out = [lost[share.device_uuid] for share in shares or () if share.device_uuid in lost]
        return notice.idle_but_out(self._named(out), datetime.fromtimestamp(self._now, UTC))

    def _forget_obstacles(self) -> None:
        self._obstacles.clear()
        self._idle_but_out.clear()
        self._capacities.clear()

    def _obstacle(self, want: Want, group: str) -> str:
        awaited = self._awaits(want)
        if awaited and max(self._devices.known(want).values(), default=0) < want.device_count:
            return notice.awaited(want, awaited)
        if not self._devices.servable(want):
            lost = self._named(self._devices.unhealthy(want))
            return notice.out_of_service(want, lost, datetime.fromtimestamp(self._now, UTC))
        kinds = self._devices.kinds
        kept = [
            each
            for each in self._rules.sessions(self._now)
            if each.applies(self._now) and each.group != group and competes(each.want, want, kinds)
        ]
        if not kept or place(want, self._devices.rooms()) is None:
            return ""
        first = min(kept, key=lambda each: each.begins_seconds)
        times = (datetime.fromtimestamp(each, UTC) for each in (first.begins_seconds, first.ends_seconds))
        return notice.kept_for_session(first.group, *times)

    def example(self, want: Want) -> Share | None:
        """What `want` would get of one device; None if none suits."""
        return example(want, self._devices.kinds)

    def suiting(self, want: Want) -> tuple[Kind, ...]:
        """The kinds of devices that suit `want`, the smallest first, leased or not."""
        return suiting(want, self._devices.kinds)

    def capacity(self, want: Want) -> Capacity:
        """How many healthy devices, or slices of them, suit `want`, and how many requests wait for them."""
        if want not in self._capacities:
            free, total = self._devices.count(want)
            self._capacities[want] = Capacity(
                free, total, self._queue.count(want), self._devices.drained(want)
            )
        return self._capacities[want]

    def competing(self, want: Want) -> int:
        """How many of those who wait compete with such a request."""
        return self._queue.count(want)

    def fits(self, wanted: Iterable[tuple[Want, int]]) -> bool:
        """Whether this many leases of each want fit on the healthy devices if no other lease holds any."""
        rooms = self._devices.healthy_rooms().values()
        return fits(wanted, grouped(replace(room, shares=()) for room in rooms))

    def not_counted(self, want: Want) -> str:
        """Which devices for `want` `fits` doesn't count: they are drained or out of service; "" if none."""
        return notice.not_counted(self._named(self._devices.unhealthy(want)))

    def places(self, want: Want, most: int, without: Iterable[str] = ()) -> int:
        """How many leases like `want` fit now, up to `most`, if those leases had given back their devices."""
        freed = [self._leases[each] for each in without if self._leases[each].state.holds_devices]
        return places(want, most, grouped(self._devices.healthy_rooms(freed).values()))

    def lacks(self, want: Want, kept: Want, count: int) -> bool:
        """Whether a lease like `want`, placed now, would take one of `count` places like `kept`."""
        rooms = grouped(self._devices.healthy_rooms().values())
        shares = place(want, rooms)
        if shares is None:
            return False
        before = places(kept, count, rooms)
        take(rooms, shares)
        after = places(kept, count, rooms)
        return after < count and after < before

    def spare(self, want: Want, kept: Iterable[tuple[Want, int]]) -> int:
        """How many leases like `want` fit now beside these places that are kept for others."""
        return places_beside(want, kept, grouped(self._devices.healthy_rooms().values()))

    def asking(self, lease: Lease) -> Waiting:
        """The place that this request, new at this moment, would have at the end of the queue."""
        return self._waiting(lease, self._arrivals + 1)

    def use_step(self, user: str) -> int:
        """What the user has used, in steps of about a fifth; users of one step wait about as long."""
        return 0 if self._rules.fair is None else _step(self._rules.fair.user_use(user, self._now))

    def turn_rank(self, lease: Lease, now_seconds: float) -> Rank:
        """Its place among those that want a GPU in turns: the queue's rules, with use in wide steps."""
        claim, fair = self._claim(lease), self._rules.fair
        if fair is None:
            return Rank(claim.priority)
        used = fair.group_use(claim.group, now_seconds) / claim.weight
        steps = _step(used), _step(fair.user_use(lease.user, now_seconds))
        # What the group holds elsewhere counts, too; the plan counts those who are awake in this pool.
        pool = self._pool_of(lease)
        elsewhere = fair.group_held(claim.group) - (self._awake[claim.group, pool] if pool else 0.0)
        return Rank(claim.priority, steps, claim.group, max(0.0, claim.guaranteed_devices - elsewhere))

    def begins(self, lease: Lease, session_seconds: float | None) -> bool:
        """Whether this request, new at this moment, would begin at once; a session has that length."""
        self._pass_time(lease.since)
        last = self.asking(lease)
        last = last._replace(claim=replace(last.claim, session_seconds=session_seconds))
        return lease.id in plan(self._queue.lineup(self._now, None, last), self._fleet(None), self._now)

    def competes(self, one: Want, other: Want) -> bool:
        """Whether some device here suits both."""
        return competes(one, other, self._devices.kinds)

    def charged_as(self, want: Want) -> float | None:
        """How many whole devices a lease like `want` is charged as; None if no device suits it."""
        for device in self._devices.all():
            room = Room(device, terms=self._devices.terms(device.uuid))
            if suits(want, room.kind) and (share := RULES[want.mode](want, room)) is not None:
                sliced = want.mode is Mode.SLICE
                part = room.terms.gpu_fraction(device.memory_bytes, share.memory_bytes) if sliced else 1.0
                return want.device_count * device.gpu_fraction * part
        return None

    def can_hold(self, lease: Lease) -> bool:
        """Whether the devices of `lease` are known and what it would hold of them is free."""
        return self._devices.can_hold(lease)

    def exceeded_by(self, lease: Lease) -> bool:
        """Whether `lease` would hold more than a device has left, whatever its pool gives."""
        return self._devices.exceeded_by(lease)

    def shares(self, lease: Lease) -> tuple[Share, ...]:
        """The shares that `lease` holds, or would hold."""
        return self._devices.shares(lease)

    def missing(self, lease: Lease) -> tuple[str, ...]:
        """Devices of the lease that are not known, or only as placeholders."""
        return tuple(
            each
            for each in lease.device_uuids
            if each not in self._devices or self._devices.is_placeholder(each)
        )

    def snapshot(self) -> Snapshot:
        """Devices, living leases and queue at this moment."""
        several = self._devices.several_nodes
        devices = tuple(
            DeviceView(
                device,
                self._devices.health(device.uuid),
                self.holders(device.uuid),
                self._devices.terms(device.uuid),
                self._devices.drain(device.uuid),
                device.node if several else "",
            )
            for device in self._devices.all()
        )
        queue = tuple(
            QueueEntry(self._leases[waiting.lease_id], place.position, place.waiting)
            for waiting in self._queue.in_order()
            if (place := self.place_of(waiting.lease_id)) is not None
        )
        return Snapshot(devices, self.leases(), queue)

    def line(self) -> Line:
        """The input for estimates of waits, as of the last change."""
        sessions = []
        for lease_id, holding in self._held.items():
            lease = self._leases[lease_id]
            sessions.append(Session(holding, lease.tier, self._began[lease_id], lease.user))
        waiting = tuple(self._queue.lineup(self._now).if_nothing_is_placed())
        fair = self._rules.fair
        return Line(
            rooms=self._devices.rooms(),
            all_rooms=dict(self._devices.healthy_rooms()),
            sessions=tuple(sessions),
            waiting=waiting,
            tiers={each.lease_id: self._leases[each.lease_id].tier for each in waiting},
            standings=None if fair is None else fair.standings(self._now),
            may_pass=self.may_pass,
            kept=tuple(self._rules.coming(self._now)),
            patience_seconds=self._rules.patience_seconds,
        )

    def arrival(self, lease: Lease) -> Arrival:
        """A lease as it came."""
        return Arrival(lease.created_at.timestamp(), self._waiting(lease, 0), lease.tier)

    def read_claims(self) -> None:
        """Ask the rules again what each lease may claim: the queue and the ends of sessions follow."""
        self._claims.clear()
        self._forget_obstacles()
        self._queue.renew(
            self._waiting(self._leases[each.lease_id], each.number) for each in self._queue.in_order()
        )
        for lease_id, holding in self._held.items():
            claim = self._claim(self._leases[lease_id])
            seconds = claim.session_seconds
            ends = None if seconds is None else self._began[lease_id] + seconds
            self._held[lease_id] = replace(holding, ends_seconds=ends, group=claim.group)

    def add(
        self,
        devices: Iterable[Device],
        terms: Mapping[str, SharingRules],
        health: Mapping[str, DeviceHealth] = MappingProxyType({}),
    ) -> None:
        """Add devices that were not found before; a lease that already held one keeps it.

        `health` has the devices that don't serve from the beginning, by UUID.
        """
        self._by_node = None
        for device in devices:
            rules = terms.get(device.uuid, WHOLE)
            self._devices.add(device, rules, self.holders(device.uuid), health.get(device.uuid))
        self._forget_obstacles()
        self._queue.set_kinds(self._devices.kinds)

    def drop(self, uuids: Iterable[str]) -> None:
        """Forget devices that won't come back, but for those that a lease holds."""
        self._by_node = None
        for uuid in uuids:
            self._devices.drop(uuid)
        self._forget_obstacles()
        self._queue.set_kinds(self._devices.kinds)

    def node_with(self, uuid: str) -> str:
        """The machine that has this device, by the devices or a lease; "" if nobody knows it."""
        if uuid not in self._devices:
            return ""
        held = (lease.node for lease in self.holders(uuid) if lease.node)
        return self._devices.node_of(uuid) or next(held, "")

    def health(self, uuid: str) -> DeviceHealth | None:
        """Whether a device may be leased; None for one that is not known."""
        return self._devices.health(uuid) if uuid in self._devices else None

    def note_image(self, lease_id: str, image: str) -> None:
        """A request for that lease came, for a lab with this image; "" forgets it."""
        if image:
            self._images[lease_id] = image
        else:
            self._images.pop(lease_id, None)

    def set_machine_images(self, node: str, images: frozenset[str]) -> None:
        """The ids of the images that a machine has now."""
        self._machine_images[node] = images

    def _first_nodes(self, lease_id: str) -> frozenset[str]:
        """The machines that have the image of a waiting lease."""
        image = self._images.get(lease_id)
        if image is None:
            return frozenset()
        return frozenset(node for node, images in self._machine_images.items() if image in images)

    def set_awaited(self, reasons: Mapping[str, str]) -> list[Lease]:
        """The nodes whose devices aren't known yet: why each can't be reached.

        Returns the leases whose notice changes with that, with their new one.
        """
        self._awaited = dict(reasons)
        self._forget_obstacles()
        changed = self._devices.set_awaited(reasons)
        holders = {lease.id: lease for uuid in changed for lease in self.holders(uuid)}
        noted = ((lease, self.with_notice(lease)) for lease in holders.values())
        return [new for lease, new in noted if new != lease]

    def is_drained(self, uuid: str) -> bool:
        """Whether nothing new is placed on the device by an admin's decision."""
        return self._devices.drain(uuid) is not None

    def set_health(self, health: DeviceHealth) -> bool:
        """Take a device out of service or back into it. Returns whether anything changed."""
        self._queue.changed()
        self._forget_obstacles()
        return self._devices.set_health(health)

    def set_drained(self, drained: Mapping[str, Drain]) -> bool:
        """Nothing new is placed on exactly these devices and machines. Returns whether anything changed."""
        self._queue.changed()
        self._forget_obstacles()
        return self._devices.set_drained(drained)

    def placed(
        self,
        now: datetime,
        *,
        freed: Lease | None = None,
        without: str | None = None,
        newcomer: Lease | None = None,
    ) -> list[Lease]:
        """The waiting leases that get devices now, in the order in which they get them, as they will be.

        This assumes that `freed` gave back its devices, `without` no longer waits, and `newcomer` came last.
        """
        self._pass_time(now)
        if freed is None and not self._devices.has_room:
            return []
        fleet = self._fleet(freed)
        if not any(fleet.rooms.values()):
            return []
        last = None if newcomer is None else self._waiting(newcomer, self._arrivals + 1)
        lineup = self._queue.lineup(self._now, without, last)
        placed = []
        for lease_id, shares in plan(lineup, fleet, self._now).items():
            waiting = newcomer if newcomer is not None and newcomer.id == lease_id else self._leases[lease_id]
            to = after(waiting.state, Event.PLACE, Actor.BROKER).to
            charged = self._charged(waiting.mode, shares)
            placed.append(replace(waiting, state=to, since=now, **_held(shares), **charged))
        return placed

    def _fleet(self, freed: Lease | None) -> Fleet:
        """The devices at this moment, if `freed` had given back its own."""
        ended = () if freed is None else (freed,)
        return Fleet(
            rooms=self._devices.rooms(ended),
            servable=self._devices.servable,
            all_rooms=lambda: self._devices.healthy_rooms(ended),
            holdings=lambda: self._holdings(freed),
            sessions=self._rules.sessions(self._now),
            first_nodes=self._first_nodes,
        )

    def with_fractions(self, lease: Lease) -> Lease:
        """The lease with its node, and with the part of each of its devices that it is charged with.

        Parts that it already has stay; for an unknown device there is no part.
        """
        if lease.device_fractions or not lease.device_uuids or self.missing(lease):
            return lease
        return replace(lease, **self._charged(lease.mode, self._devices.shares(lease)))

    def _charged(self, mode: Mode, shares: Sequence[Share]) -> dict[str, Any]:
        """Fields of a lease with these shares of known devices: its node, and the part of each device."""
        parts = []
        for share in shares:
            device, part = self._devices.device(share.device_uuid), 1.0
            if mode is Mode.TURNS:
                part = 1 / len(shares)  # it is awake on one of them
            elif mode is Mode.SLICE:
                terms = self._devices.terms(device.uuid)
                part = terms.gpu_fraction(device.memory_bytes, share.memory_bytes)
            parts.append(device.gpu_fraction * part)
        return {
            "node": self._devices.device(shares[0].device_uuid).node,
            "device_fractions": tuple(parts),
        }

    def with_notice(self, lease: Lease) -> Lease:
        """The lease with the notice about its devices' health; if they are healthy, another notice stays."""
        if not lease.state.holds_devices or lease.state is LeaseState.RELEASING:
            return lease
        states = [(self._devices.device(each), self._devices.health(each)) for each in lease.device_uuids]
        lost = [each for each in states if not each[1].healthy and not each[1].new_only]
        if lease.mode is Mode.TURNS and len(lost) < len(states):
            lost = []  # its turns are on the others
        told = notice.withdrawn(self._named(lost))
        if lost and all(health.machine_away for _, health in lost):
            told = notice.machine_away(lost[0][1].reason)
        if not told and lease.notice and not notice.is_withdrawal(lease.notice):
            return lease
        return replace(lease, notice=told)

    def enter(self, lease: Lease) -> None:
        """Enter the lease: new, changed or closed."""
        before = self._leases.get(lease.id)
        if before is None and lease.state is not LeaseState.CLOSED:
            self._entered += 1
            self._numbers[lease.id] = self._entered
        self._sort_in(before, lease)
        waited = before is not None and before.state is LeaseState.WAITING
        waits = lease.state is LeaseState.WAITING
        if waited and not waits:
            self._queue.remove(lease.id)
        if not waits:
            self._images.pop(lease.id, None)
        if waits and not waited:
            self._arrivals += 1
            self._queue.add(self._waiting(lease, self._arrivals))
        self._forget_obstacles()
        self._pass_time(lease.since)
        self._move_shares(before, lease)
        self._count_use(lease)
        if lease.state is not LeaseState.CLOSED:
            self._leases[lease.id] = lease
            if before is None:
                self._by_server.setdefault((lease.hub, lease.user, lease.server), {})[lease.id] = None
                self._by_user.setdefault((lease.hub, lease.user), {})[lease.id] = None
        elif before is not None:
            del self._leases[lease.id], self._numbers[lease.id]
            self._claims.pop(lease.id, None)
            _drop(self._by_server, (lease.hub, lease.user, lease.server), lease.id)
            _drop(self._by_user, (lease.hub, lease.user), lease.id)

    def _move_shares(self, before: Lease | None, lease: Lease) -> None:
        held = before is not None and before.state.holds_devices
        if lease.state.holds_devices and not held:
            self._devices.hold(lease)
            self._held[lease.id] = self._holding(lease)
            self._began[lease.id] = lease.since.timestamp()
            self._taken.update((lease.tier, group) for group in lease.groups)
        elif before is not None and held and not lease.state.holds_devices:
            self._devices.give_back(before)
            del self._held[lease.id], self._began[lease.id]
            self._taken.subtract((before.tier, group) for group in before.groups)

    def _pass_time(self, now: datetime) -> None:
        """Time has passed, so the order by use may have changed. A clock that goes back is ignored."""
        seconds = now.timestamp()
        if seconds > self._now:
            self._now = seconds
            self._queue.changed()
            self._forget_obstacles()

    def _claim(self, lease: Lease) -> Claim:
        if lease.id not in self._claims:
            self._claims[lease.id] = self._rules.claim(lease)
        return self._claims[lease.id]

    def _waiting(self, lease: Lease, number: int) -> Waiting:
        since = lease.created_at.timestamp()
        return Waiting(number, lease.id, lease.want, lease.user, since, self._rules.claim(lease))

    def _holdings(self, freed: Lease | None) -> tuple[Holding, ...]:
        """The leases that hold devices, and until when; without the one that gives back its own."""
        return tuple(each for each in self._held.values() if freed is None or each.lease_id != freed.id)

    def _holding(self, lease: Lease) -> Holding:
        """The shares that a lease begins to hold, and the latest time of its end."""
        claim = self._claim(lease)
        seconds = claim.session_seconds
        ends = None if seconds is None else lease.since.timestamp() + seconds
        return Holding(lease.id, self._devices.shares(lease), ends, claim.group)

    def _count_use(self, lease: Lease) -> None:
        """The user's and the group's use begin, continue or end with this change."""
        if self._rules.fair is None:
            return
        at, counts = lease.since.timestamp(), lease.state in _USING
        if counts and lease.id not in self._counted:
            self._counted[lease.id] = (lease.user, self._claim(lease).group, lease.gpu_fraction)
            self._rules.fair.hold(*self._counted[lease.id], at)
            self._computing[lease.id] = self._pool_of(lease)
            self._awake[self._counted[lease.id][1], self._computing[lease.id]] += lease.gpu_fraction
        elif not counts and lease.id in self._counted:
            user, group, devices = self._counted.pop(lease.id)
            self._rules.fair.hold(user, group, -devices, at)
            self._awake[group, self._computing.pop(lease.id)] -= devices

    def _pool_of(self, lease: Lease) -> str:
        """The pool of turns that its GPUs are in; "" if they are in none, or aren't known."""
        known = (self._devices.terms(uuid) for uuid in lease.device_uuids if uuid in self._devices)
        return next((terms.pool for terms in known if terms.in_turns), "")


def _step(used_gpu_seconds: float) -> int:
    """How much was used, in steps that are wider the more it is."""
    return round(_USE_STEPS * math.log2(1.0 + used_gpu_seconds / _HOUR_SECONDS))


def _drop(index: dict[K, dict[str, None]], key: K, lease_id: str) -> None:
    """Take a lease out of an index, and the key with the last of its leases."""
    del index[key][lease_id]
    if not index[key]:
        del index[key]


def with_shares(lease: Lease, shares: Sequence[Share], state: LeaseState, since: datetime) -> Lease:
    """The lease in this state with these shares. In turns it uses one of them at a time."""
    return replace(lease, state=state, since=since, **_held(shares))


def _held(shares: Sequence[Share]) -> dict[str, Any]:
    """The fields of a lease that say what it holds."""
    sizes = [share.memory_bytes for share in shares]
    return {
        "device_uuids": tuple([share.device_uuid for share in shares]),
        "memory_bytes": max(sizes) if shares[0].in_turns else sum(sizes),
        "compute_percent": min([share.compute_percent for share in shares]),
        "mps": any([share.mps for share in shares]),
    }
