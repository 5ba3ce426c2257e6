"""The living leases, their queue and their devices in memory: what follows from a change, and its entry.

No clock, no ledger, no lock: the allocator asks what would be (`placed`, `with_notice`), commits that, and
enters it. Closed leases leave no trace here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from ...core.model import Device, DeviceHealth, Lease, LeaseState
from ...core.states import Actor, Event, after
from ...core.want import Mode, Want
from . import notice
from .devices import NO_RULES, Devices
from .fitting import fits, grouped, places
from .placement import Share, example, place, take
from .queue import Place, Queue, Waiting, plan
from .sharing_rules import WHOLE, SharingRules
from .snapshot import Capacity, DeviceView, QueueEntry, Snapshot


class Book:
    """Who holds what and who waits, on these devices."""

    def __init__(self, devices: Iterable[Device] = (), terms: Mapping[str, SharingRules] = NO_RULES) -> None:
        self._devices = Devices(devices, terms)
        self._queue = Queue(self._devices.kinds)
        self._leases: dict[str, Lease] = {}
        self._by_server: dict[tuple[str, str, str], dict[str, None]] = {}
        self._arrivals = 0

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
        return tuple(each for each in self._leases.values() if (each.hub, each.user) == (hub, user))

    def holders(self, uuid: str) -> tuple[Lease, ...]:
        """The leases that hold a share of the device."""
        return tuple(self._leases[each] for each in self._devices.holders(uuid))

    def place_of(self, lease_id: str) -> Place | None:
        """Where a lease stands in the queue, or None if it does not wait."""
        return self._queue.place_of(lease_id)

    @property
    def waiting_count(self) -> int:
        """How many leases wait."""
        return len(self._queue)

    def terms(self, uuid: str) -> SharingRules:
        """How the device's pool shares it. Raises KeyError for one that is not known."""
        return self._devices.terms(uuid)

    def known(self, want: Want) -> int:
        """How many devices suit `want`, leased, free or withdrawn."""
        return self._devices.known(want)

    def example(self, want: Want) -> Share | None:
        """What `want` would get of one device; None if none suits."""
        return example(want, self._devices.kinds)

    def capacity(self, want: Want) -> Capacity:
        """How many healthy devices, or slices of them, suit `want`, and how many requests wait for them."""
        free, total = self._devices.count(want)
        return Capacity(free, total, self._queue.count(want))

    def fits(self, wanted: Iterable[tuple[Want, int]]) -> bool:
        """Whether so many leases of each want fit on the healthy devices once nobody else is there."""
        rooms = self._devices.healthy_rooms().values()
        return fits(wanted, grouped(replace(room, shares=()) for room in rooms))

    def places(self, want: Want, most: int, without: Iterable[str] = ()) -> int:
        """How many leases like `want` fit now, up to `most`, if those leases had given back their devices."""
        leaving = [self._leases[each] for each in without if self._leases[each].state.holds_devices]
        freed = [share for lease in leaving for share in self.shares(lease)]
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

    def can_hold(self, lease: Lease) -> bool:
        """Whether the devices of `lease` are known and what it would hold of them is free."""
        return self._devices.can_hold(lease)

    def exceeded_by(self, lease: Lease) -> bool:
        """Whether what `lease` would hold is more than a device has left, whatever its pool gives."""
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
        devices = tuple(
            DeviceView(
                device,
                self._devices.health(device.uuid),
                self.holders(device.uuid),
                self._devices.terms(device.uuid),
            )
            for device in self._devices.all()
        )
        queue = tuple(
            QueueEntry(self._leases[waiting.lease_id], place.position, place.waiting)
            for waiting in self._queue.in_order()
            if (place := self._queue.place_of(waiting.lease_id)) is not None
        )
        return Snapshot(devices, self.leases(), queue)

    def add(self, devices: Iterable[Device], terms: Mapping[str, SharingRules]) -> None:
        """Devices that were not found before; a lease that held one all along goes on with it."""
        for device in devices:
            self._devices.add(device, terms.get(device.uuid, WHOLE), self.holders(device.uuid))
        self._queue.set_kinds(self._devices.kinds)

    def health(self, uuid: str) -> DeviceHealth | None:
        """Whether a device may be leased; None for one that is not known."""
        return self._devices.health(uuid) if uuid in self._devices else None

    def set_health(self, health: DeviceHealth) -> bool:
        """Withdraw a device or take it back; whether anything changed."""
        return self._devices.set_health(health)

    def placed(
        self,
        now: datetime,
        *,
        freed: Iterable[Share] = (),
        without: str | None = None,
        newcomer: Lease | None = None,
    ) -> list[Lease]:
        """The waiting leases that get devices now, in order, as they will be.

        Supposing that `freed` was given back, that `without` no longer waits, and that `newcomer` came last.
        """
        lines = list(self._queue.lines())
        if newcomer is not None:
            lines.append([Waiting(self._arrivals + 1, newcomer.id, newcomer.want)])
        placed = []
        for lease_id, shares in plan(lines, self._devices.rooms(freed), without).items():
            waiting = newcomer if newcomer is not None and newcomer.id == lease_id else self._leases[lease_id]
            to = after(waiting.state, Event.PLACE, Actor.BROKER).to
            reserved = with_shares(replace(waiting, state=to, since=now), shares)
            placed.append(self.with_fractions(reserved))
        return placed

    def with_fractions(self, lease: Lease) -> Lease:
        """The lease with its node, and with the part of each of its devices that it is charged with.

        What it has of them stays; a device that is not known leaves it without.
        """
        if lease.device_fractions or not lease.device_uuids or self.missing(lease):
            return lease
        devices = [self._devices.device(uuid) for uuid in lease.device_uuids]
        shares = self._devices.shares(lease)
        return replace(
            lease,
            node=devices[0].node,
            device_fractions=tuple(
                device.gpu_fraction * self._part(lease, device, share)
                for device, share in zip(devices, shares, strict=True)
            ),
        )

    def _part(self, lease: Lease, device: Device, share: Share) -> float:
        if lease.mode is not Mode.SLICE:
            return 1.0
        return self._devices.terms(device.uuid).gpu_fraction(device.memory_bytes, share.memory_bytes)

    def with_notice(self, lease: Lease) -> Lease:
        """The lease with the notice that its devices' health calls for; if they are well, another stays."""
        if not lease.state.holds_devices or lease.state is LeaseState.RELEASING:
            return lease
        states = [(self._devices.device(each), self._devices.health(each)) for each in lease.device_uuids]
        told = notice.withdrawn([each for each in states if not each[1].healthy])
        if not told and lease.notice and not notice.is_withdrawal(lease.notice):
            return lease
        return replace(lease, notice=told)

    def enter(self, lease: Lease) -> None:
        """The lease is now like this: new, changed or closed."""
        before = self._leases.get(lease.id)
        waited = before is not None and before.state is LeaseState.WAITING
        waits = lease.state is LeaseState.WAITING
        if waited and not waits:
            self._queue.remove(lease.id)
        if waits and not waited:
            self._arrivals += 1
            self._queue.add(Waiting(self._arrivals, lease.id, lease.want))
        self._move_shares(before, lease)
        server = (lease.hub, lease.user, lease.server)
        if lease.state is not LeaseState.CLOSED:
            self._leases[lease.id] = lease
            self._by_server.setdefault(server, {})[lease.id] = None
        elif before is not None:
            del self._leases[lease.id]
            del self._by_server[server][lease.id]
            if not self._by_server[server]:
                del self._by_server[server]

    def _move_shares(self, before: Lease | None, lease: Lease) -> None:
        held = before is not None and before.state.holds_devices
        if lease.state.holds_devices and not held:
            self._devices.hold(lease)
        elif before is not None and held and not lease.state.holds_devices:
            self._devices.give_back(before)


def with_shares(lease: Lease, shares: Sequence[Share]) -> Lease:
    """The lease with these shares."""
    return replace(
        lease,
        device_uuids=tuple(share.device_uuid for share in shares),
        memory_bytes=sum(share.memory_bytes for share in shares),
        compute_percent=min(share.compute_percent for share in shares),
        mps=any(share.mps for share in shares),
    )
