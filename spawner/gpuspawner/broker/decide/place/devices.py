"""The devices of the broker, their health, and who holds which share of them. In memory, no clock, no ledger.

A device that is out of service or *drained* gets nothing new. Its health says whether it works, and the
holders of a broken one are told; a drain is a decision, and its holders go on undisturbed.

A device that a lease holds but the inventory doesn't have is kept as a *placeholder*: out of service, never
placed, and removed when its last lease has ended or the device was found.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain
from types import MappingProxyType

from ....core.decision import Drain, drain_of
from ....core.model import Device, DeviceHealth, Lease
from ....core.want import Mode, Want
from .placement import Kind, Room, Share, by_node, count_free, rank, servable, share_of, suits
from .sharing_rules import WHOLE, SharingRules

NO_RULES: Mapping[str, SharingRules] = MappingProxyType({})

MISSING = "it was not found when the broker started"
"""Why a placeholder is out of service."""


class Devices:
    """Every device with its room and health; rooms that may be leased are kept sorted for placement.

    `terms` says by UUID how a device is shared; one that it doesn't name is leased whole.
    """

    def __init__(self, devices: Iterable[Device] = (), terms: Mapping[str, SharingRules] = NO_RULES) -> None:
        self._rooms = {device.uuid: Room(device, terms=terms.get(device.uuid, WHOLE)) for device in devices}
        self._health = {uuid: DeviceHealth(uuid, healthy=True) for uuid in self._rooms}
        self._holders: dict[str, tuple[str, ...]] = dict.fromkeys(self._rooms, ())
        self._placeholders: dict[str, str] = {}
        """Those that only a lease knows, with its machine."""
        self._awaited: Mapping[str, str] = {}
        """Why the machines can't be reached that haven't reported yet."""
        self._drained: Mapping[str, Drain] = {}
        self._out: set[str] = set()
        """The devices that are not in service."""
        self._well: dict[str, Room] | None = None
        """The rooms of all others, in the order of `_rooms`; None: to be put together again."""
        self._known = Counter(room.kind for room in self._rooms.values())
        self._healthy = self._known.copy()
        self._known_of: dict[Want, Counter[str]] = {}
        self._servable: dict[Want, bool] = {}
        """Answers by want, until `_forget_answers`: each request asks several times, and a site has as many
        kinds as machines."""
        self._open: dict[Kind, list[Room]] = {kind: [] for kind in self._known}
        for room in self._rooms.values():
            self._list(room)

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._rooms

    def device(self, uuid: str) -> Device:
        """The device. Raises KeyError for one that is not known."""
        return self._rooms[uuid].device

    def node_of(self, uuid: str) -> str:
        """The machine of the device; "" if that isn't known."""
        room = self._rooms.get(uuid)
        return "" if room is None else room.device.node

    def terms(self, uuid: str) -> SharingRules:
        """How the device's pool shares it. Raises KeyError for one that is not known."""
        return self._rooms[uuid].terms

    def all(self) -> list[Device]:
        """Every device by node, index, then UUID; placeholders, whose node isn't known, come last."""
        return sorted((room.device for room in self._rooms.values()), key=_by_node)

    def health(self, uuid: str) -> DeviceHealth:
        """Whether the device may be leased, and why not."""
        return self._health[uuid]

    def drain(self, uuid: str) -> Drain | None:
        """Why nothing new is placed on the device; None if neither it nor its machine is drained."""
        room = self._rooms.get(uuid)
        return None if room is None else _drain_in(self._drained, room.device)

    def in_service(self, uuid: str) -> bool:
        """Whether something may be placed on the device: it is healthy and not drained."""
        return uuid not in self._out

    def holders(self, uuid: str) -> tuple[str, ...]:
        """Ids of the leases that hold a share of the device."""
        return self._holders.get(uuid, ())

    def set_awaited(self, reasons: Mapping[str, str]) -> tuple[str, ...]:
        """Why the machines can't be reached that haven't reported yet.

        Returns the placeholders that are unknown for another reason now.
        """
        self._awaited = dict(reasons)
        changed = []
        for uuid, node in self._placeholders.items():
            before = self._health[uuid]
            self._health[uuid] = self._unknown(uuid, node, before.since)
            if self._health[uuid] != before:
                changed.append(uuid)
        return tuple(changed)

    def _unknown(self, uuid: str, node: str, since: datetime | None) -> DeviceHealth:
        """The health of a placeholder: its machine hasn't reported yet, or doesn't have it."""
        awaited = self._awaited.get(node)
        return DeviceHealth(uuid, False, awaited or MISSING, since, machine_away=awaited is not None)

    def is_placeholder(self, uuid: str) -> bool:
        """Whether the inventory did not have this device."""
        return uuid in self._placeholders

    @property
    def all_in_service(self) -> bool:
        """Whether no device is out of service or drained."""
        return not self._out

    @property
    def has_room(self) -> bool:
        """Whether any device may be leased at all."""
        return any(self._open.values())

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of all devices, also of those that are leased or out of service."""
        return tuple(self._known)

    @property
    def several_nodes(self) -> bool:
        """Whether the devices are of more than one machine."""
        return len({kind.node for kind in self._known}) > 1

    def known(self, want: Want) -> Mapping[str, int]:
        """How many devices suit `want`, by node, whether leased, free or out of service."""
        if want not in self._known_of:
            self._known_of[want] = by_node(want, self._known)
        return self._known_of[want]

    def servable(self, want: Want) -> bool:
        """Whether the devices in service of one node could serve `want` if nobody held any of them."""
        if want not in self._servable:
            self._servable[want] = servable(want, self._healthy)
        return self._servable[want]

    def unhealthy(self, want: Want) -> list[tuple[Device, DeviceHealth]]:
        """The devices that suit `want` and are out of service or drained, with the reason, by index.

        Of one that is only drained, the health says that it is healthy, since when it is drained, and why.
        """
        rooms = [self._rooms[uuid] for uuid in self._out]
        found = sorted((room.device for room in rooms if suits(want, room.kind)), key=_by_node)
        return [(device, self._service(device.uuid)) for device in found]

    def _service(self, uuid: str) -> DeviceHealth:
        """Its health; if it is healthy and drained, with that reason."""
        health = self._health[uuid]
        if not health.healthy or (drain := self.drain(uuid)) is None:
            return health
        reason = f" ({drain.reason})" if drain.reason else ""
        return DeviceHealth(uuid, True, f"an admin lets no new server start on it{reason}", drain.since)

    def count(self, want: Want) -> tuple[int, int]:
        """How many devices, or slices, like `want` the healthy devices have: those that are free, and all.

        Of several machines only those count that have enough of them.
        """
        able = [room for room in self.healthy_rooms().values() if suits(want, room.kind)]
        if want.device_count > 1 and self.several_nodes:
            enough = Counter(room.device.node for room in able)
            able = [room for room in able if enough[room.device.node] >= want.device_count]
        total = [(room.kind, count_free(want, replace(room, shares=()))) for room in able]
        return _sum(want, [(room.kind, count_free(want, room)) for room in able]), _sum(want, total)

    def drained(self, want: Want) -> int:
        """How many devices that suit `want` are healthy, but drained."""
        well = (uuid for uuid in self._out if self._health[uuid].healthy)
        return sum(suits(want, self._rooms[uuid].kind) for uuid in well)

    def can_hold(self, lease: Lease) -> bool:
        """Whether the devices of `lease` are known and what it would hold of them is free."""
        if not all(uuid in self._rooms for uuid in lease.device_uuids):
            return False
        return all(self._rooms[share.device_uuid].has(share) for share in self.shares(lease))

    def exceeded_by(self, lease: Lease) -> bool:
        """Whether a device has too little memory left for the share of `lease`, whatever its pool gives."""
        return any(self._rooms[share.device_uuid].exceeded_by(share) for share in self.shares(lease))

    def rooms(self, freed: Sequence[Lease] = ()) -> dict[Kind, list[Room]]:
        """The rooms that may be leased, by kind and in order; a copy, as if `freed` had ended."""
        copy = {kind: list(listed) for kind, listed in self._open.items()}
        changed: dict[str, Room] = {}
        for share in self._shares_of(freed):
            uuid = share.device_uuid
            if not self.in_service(uuid):
                continue
            room = changed.get(uuid, self._rooms[uuid])
            changed[uuid] = room.minus(share)
            listed = copy[room.kind]
            if room in listed:
                listed.remove(room)
            bisect.insort(listed, changed[uuid], key=rank)
        for kind in copy:
            if kind.terms.in_turns:
                taken = self._seats_taken(kind, freed)
                copy[kind] = [_with_seats(room, taken) for room in copy[kind]]
        return copy

    def rooms_if_in_service(self) -> dict[Kind, list[Room]]:
        """The same as if every known device were in service; those of pools of turns are left out."""
        found: dict[Kind, list[Room]] = {}
        for uuid, room in self._rooms.items():
            if uuid not in self._placeholders and not room.full and not room.terms.in_turns:
                bisect.insort(found.setdefault(room.kind, []), room, key=rank)
        return found

    def shares(self, lease: Lease) -> tuple[Share, ...]:
        """The shares that `lease` holds; unknown devices become placeholders."""
        return tuple(share_of(lease, self._device_of(lease, uuid)) for uuid in lease.device_uuids)

    def healthy_rooms(self, freed: Sequence[Lease] = ()) -> Mapping[str, Room]:
        """The rooms of all devices in service by UUID, the full ones too, as if `freed` had ended.

        As they are until the next change: each request looks at them, so they are not copied each time.
        """
        if self._well is None:
            self._well = {uuid: room for uuid, room in self._rooms.items() if uuid not in self._out}
        in_turns = any(kind.terms.in_turns for kind in self._known)
        if not freed and not in_turns:
            return self._well
        found = dict(self._well)
        for share in self._shares_of(freed):
            if share.device_uuid in found:
                found[share.device_uuid] = found[share.device_uuid].minus(share)
        if not in_turns:
            return found
        pools = {uuid: room for uuid, room in found.items() if room.terms.in_turns}
        taken = {kind: self._seats_taken(kind, freed) for kind in {room.kind for room in pools.values()}}
        return found | {uuid: _with_seats(room, taken[room.kind]) for uuid, room in pools.items()}

    def _shares_of(self, leases: Iterable[Lease]) -> Iterable[Share]:
        return chain.from_iterable(self.shares(lease) for lease in leases)

    def _seats_taken(self, kind: Kind, freed: Iterable[Lease]) -> int:
        """How many leases a pool of turns has, also those without a share of a device that is healthy now."""
        pool = (kind.terms.pool, kind.node)
        mine = [
            uuid
            for uuid, room in self._rooms.items()
            if room.terms.in_turns and (room.terms.pool, room.device.node) == pool
        ]
        leases = {lease_id for uuid in mine for lease_id in self._holders[uuid]}
        return len(leases - {lease.id for lease in freed})

    def hold(self, lease: Lease) -> None:
        """Mark the shares of `lease` as held."""
        for share in self.shares(lease):
            self._change(share.device_uuid, self._rooms[share.device_uuid].plus(share))
            self._holders[share.device_uuid] += (lease.id,)

    def give_back(self, lease: Lease) -> None:
        """Mark the shares of `lease` as free. Raises ValueError if it does not hold them."""
        for share in self.shares(lease):
            uuid = share.device_uuid
            self._change(uuid, self._rooms[uuid].minus(share))
            self._holders[uuid] = tuple(each for each in self._holders[uuid] if each != lease.id)
            if uuid in self._placeholders and not self._holders[uuid]:
                self._forget(uuid)

    def add(
        self,
        device: Device,
        terms: SharingRules,
        holders: Iterable[Lease] = (),
        health: DeviceHealth | None = None,
    ) -> None:
        """Add a device that was not found before, or was only a placeholder that `holders` hold.

        `health` is its health; by default it serves.
        """
        uuid = device.uuid
        if uuid in self._rooms and uuid not in self._placeholders:
            return
        self._placeholders.pop(uuid, None)
        room = Room(device, tuple(share_of(lease, device) for lease in holders), terms)
        self._rooms[uuid] = room
        self._health[uuid] = health or DeviceHealth(uuid, healthy=True)
        self._look(uuid)
        self._holders.setdefault(uuid, ())
        self._known[room.kind] += 1
        self._healthy[room.kind] += self.in_service(uuid)
        self._open.setdefault(room.kind, [])
        self._list(room)

    def drop(self, uuid: str) -> None:
        """Forget a device, which won't come back; one that a lease holds stays."""
        if uuid not in self._rooms or uuid in self._placeholders or self._holders[uuid]:
            return
        room = self._rooms[uuid]
        self._unlist(room)
        self._known[room.kind] -= 1
        self._healthy[room.kind] -= self.in_service(uuid)
        if not self._known[room.kind]:
            del self._known[room.kind], self._healthy[room.kind], self._open[room.kind]
        del self._rooms[uuid], self._health[uuid], self._holders[uuid]
        self._out.discard(uuid)
        self._forget_answers()

    def set_health(self, health: DeviceHealth) -> bool:
        """Take a device out of service or back into it. Returns whether anything changed.

        A placeholder stays out of service: its model and size are not known before it is found (`add`).
        """
        uuid = health.uuid
        if uuid not in self._rooms or uuid in self._placeholders or self._health[uuid] == health:
            return False
        room = self._rooms[uuid]
        self._unlist(room)
        before = self.in_service(uuid)
        self._health[uuid] = health
        self._look(uuid)
        self._healthy[room.kind] += self.in_service(uuid) - before
        self._list(room)
        return True

    def set_drained(self, drained: Mapping[str, Drain]) -> bool:
        """Exactly these devices, and those of these machines, get nothing new, known or found later.

        Returns whether anything changed.
        """
        rooms = [
            room
            for room in self._rooms.values()
            if (self.drain(room.device.uuid) is None) != (_drain_in(drained, room.device) is None)
        ]
        before = {room.device.uuid: self.in_service(room.device.uuid) for room in rooms}
        for room in rooms:
            self._unlist(room)
        news, self._drained = self._drained != drained, dict(drained)
        for room in rooms:
            uuid = room.device.uuid
            self._look(uuid)
            self._healthy[room.kind] += self.in_service(uuid) - before[uuid]
            self._list(room)
        return news

    def _device_of(self, lease: Lease, uuid: str) -> Device:
        if uuid not in self._rooms:
            several = 1 if lease.mode is Mode.TURNS else len(lease.device_uuids)
            memory_bytes = lease.memory_bytes // max(1, several)
            self._rooms[uuid] = Room(Device(uuid, "not found", memory_bytes))
            self._health[uuid] = self._unknown(uuid, lease.node, lease.since)
            self._look(uuid)
            self._holders[uuid] = ()
            self._placeholders[uuid] = lease.node
        return self._rooms[uuid].device

    def _forget(self, uuid: str) -> None:
        del self._rooms[uuid], self._health[uuid], self._holders[uuid]
        del self._placeholders[uuid]
        self._out.discard(uuid)
        self._forget_answers()

    def _forget_answers(self) -> None:
        """A device comes, goes or changes its state."""
        self._well = None
        self._known_of.clear()
        self._servable.clear()

    def _look(self, uuid: str) -> None:
        """The device's health or drain was set: see whether it is in service."""
        self._forget_answers()
        if self._health[uuid].healthy and self.drain(uuid) is None:
            self._out.discard(uuid)
        else:
            self._out.add(uuid)

    def _change(self, uuid: str, room: Room) -> None:
        self._unlist(self._rooms[uuid])
        self._rooms[uuid] = room
        if self._well is not None and uuid not in self._out:
            self._well[uuid] = room
        self._list(room)

    def _list(self, room: Room) -> None:
        if self.in_service(room.device.uuid) and not room.full:
            bisect.insort(self._open[room.kind], room, key=rank)

    def _unlist(self, room: Room) -> None:
        if self.in_service(room.device.uuid) and not room.full:
            listed = self._open[room.kind]
            del listed[bisect.bisect_left(listed, rank(room), key=rank)]


def _drain_in(drained: Mapping[str, Drain], device: Device) -> Drain | None:
    """Its own, else that of its machine."""
    return drained.get(device.uuid) or drained.get(drain_of(device.node))


def _by_node(device: Device) -> tuple[bool, str, bool, int, str]:
    """The order in which devices are listed."""
    return (not device.node, device.node, device.index is None, device.index or 0, device.uuid)


def _with_seats(room: Room, taken: int) -> Room:
    """The room as full as its pool: a lease may have no share of it, as it was out of service then."""
    seat = Share(room.device.uuid, 0, 0.0, in_turns=True)
    return replace(room, shares=(*room.shares, *[seat] * (taken - len(room.shares))))


def _sum(want: Want, counts: Iterable[tuple[Kind, int]]) -> int:
    """Of all devices; in turns a seat is one of the whole pool, so that its fullest device counts."""
    if want.mode is not Mode.TURNS:
        return sum(count for _, count in counts)
    least: dict[Kind, int] = {}
    for kind, count in counts:
        least[kind] = min(count, least.get(kind, count))
    return sum(least.values())
