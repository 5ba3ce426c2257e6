"""Which devices a request gets: pure functions from wants and rooms to shares.

A *room* is a device with the shares of it that leases hold; the rest is free. Rooms come grouped by
*kind* (devices that a request can't tell apart: one model and size in one pool on one node) and ordered by
`rank`. All devices of a lease are of one node: its container runs there. A mode
is one `ShareRule`: it says which share of a room a want would get. `whole` asks for a room that nobody else
is in, `slice` for memory that nobody holds. In turns a lease has a share of each device of its pool: the pool
admits as many leases as it has seats, and only one at a time uses a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ....core.model import Device, Lease
from ....core.want import Mode, Want
from .sharing_rules import WHOLE, SharingRules


@dataclass(frozen=True, slots=True)
class Share:
    """The part of one device that one lease holds.

    `in_turns`: it has the device only while it is awake, so that such shares don't add up. `home`: it begins
    there; of the shares of a lease in turns one is its home.
    """

    device_uuid: str
    memory_bytes: int
    compute_percent: float
    mps: bool = False
    in_turns: bool = False
    home: bool = False


class Kind(NamedTuple):
    """What a request can tell devices apart by."""

    model: str
    memory_bytes: int
    mig_profile: str | None
    terms: SharingRules
    node: str = ""

    @property
    def order(self) -> tuple[int, str, str, str]:
        """The smallest devices first, so that large ones stay free for those who ask for them; equal on all
        nodes."""
        return (self.memory_bytes, self.model, self.mig_profile or "", self.terms.pool)


@dataclass(frozen=True, slots=True)
class Room:
    """A device, the shares that are held of it, and how its pool shares it."""

    device: Device
    shares: tuple[Share, ...] = ()
    terms: SharingRules = WHOLE

    @property
    def kind(self) -> Kind:
        """The kind of its device."""
        return kind_of(self.device, self.terms)

    @property
    def free_memory_bytes(self) -> int:
        """Memory that no lease holds and one may have; never negative."""
        usable = self.terms.usable_bytes(self.device.memory_bytes)
        return max(0, usable - self.held_bytes)

    @property
    def held_bytes(self) -> int:
        """Memory that leases may have at once: of those in turns one."""
        if not self.shares:
            return 0
        turns = max((share.memory_bytes for share in self.shares if share.in_turns), default=0)
        return turns + sum(share.memory_bytes for share in self.shares if not share.in_turns)

    @property
    def free_seats(self) -> int:
        """How many more leases may have turns here; never negative."""
        return max(0, (self.terms.seats or 0) - len(self.shares))

    @property
    def free_compute_percent(self) -> float:
        """Compute that no lease holds; never negative."""
        return max(0.0, 100.0 - sum(share.compute_percent for share in self.shares))

    @property
    def full(self) -> bool:
        """Whether there is nothing left to give. In turns never: who asks must see all devices of a pool."""
        if not self.shares or self.terms.in_turns:
            return False
        if self.terms.sliced:
            most = self.terms.most_leases
            return self.free_memory_bytes == 0 or (most is not None and len(self.shares) >= most)
        return self.free_memory_bytes == 0 or self.free_compute_percent == 0

    def has(self, share: Share) -> bool:
        """Whether `share` of this device is free: its memory always, its compute where that is divided."""
        if not self.shares:
            return share.memory_bytes <= self.device.memory_bytes
        if share.in_turns or any(each.in_turns for each in self.shares):
            alike = share.in_turns and all(each.in_turns for each in self.shares)
            return alike and self.free_seats > 0 and share.memory_bytes <= self.device.memory_bytes
        enough_compute = self.terms.sliced or share.compute_percent <= self.free_compute_percent
        return not self.full and share.memory_bytes <= self.free_memory_bytes and enough_compute

    def exceeded_by(self, share: Share) -> bool:
        """Whether the device has too little memory left for `share`, because it was given twice."""
        return self.plus(share).held_bytes > self.device.memory_bytes

    def plus(self, share: Share) -> Room:
        """This room with `share` held as well."""
        return Room(self.device, (*self.shares, share), self.terms)

    def minus(self, share: Share) -> Room:
        """This room without `share`. Raises ValueError if `share` is not held."""
        at = self.shares.index(share)
        return Room(self.device, self.shares[:at] + self.shares[at + 1 :], self.terms)


Rooms = Mapping[Kind, Sequence[Room]]
"""Rooms that have something to give, by kind, each kind in the order of `rank`."""

ShareRule = Callable[[Want, Room], Share | None]
"""The share of this room that the want would get, or None where it doesn't fit."""


def whole(want: Want, room: Room) -> Share | None:
    """The entire device, if nobody holds any of it."""
    return whole_share(room.device) if not room.shares else None


def whole_share(device: Device) -> Share:
    """The share that is the entire device."""
    return Share(device.uuid, device.memory_bytes, 100.0)


def slice_(want: Want, room: Room) -> Share | None:
    """The part that the pool gives, if so much memory is free."""
    part = room.terms.slice_of(room.device.memory_bytes, want.memory_bytes, want.compute_percent)
    if part is None:
        return None
    share = Share(room.device.uuid, *part, mps=room.terms.mps)
    return share if room.has(share) else None


def turn(want: Want, room: Room) -> Share | None:
    """A seat beside the others, with the promise for whoever is awake, if there is one left."""
    promise = room.terms.promise(room.device.memory_bytes, want.memory_bytes)
    if promise is None or not room.free_seats:
        return None
    share = Share(room.device.uuid, promise, 100.0, in_turns=True)
    return share if room.has(share) else None


RULES: Mapping[Mode, ShareRule] = {
    Mode.WHOLE: whole, Mode.MIG: whole, Mode.SLICE: slice_, Mode.TURNS: turn,
}  # fmt: skip
"""How each mode shares a device; a MIG instance is a device of its own, and has one owner."""


def share_of(lease: Lease, device: Device) -> Share:
    """The share of `device` that `lease` holds: what `place` gave it, for a lease read from the ledger.

    A slice has the same of each of its devices, so the lease's sum tells what it has of one.
    """
    if lease.mode is Mode.SLICE:
        memory_bytes = lease.memory_bytes // len(lease.device_uuids)
        return Share(device.uuid, memory_bytes, lease.compute_percent, lease.mps)
    if lease.mode is Mode.TURNS:
        home = device.uuid == lease.device_uuids[0]
        return Share(device.uuid, lease.memory_bytes, 100.0, in_turns=True, home=home)
    return whole_share(device)


def kind_of(device: Device, terms: SharingRules = WHOLE) -> Kind:
    """What a request can tell devices apart by."""
    return Kind(device.model, device.memory_bytes, device.mig_profile, terms, device.node)


def suits(want: Want, kind: Kind) -> bool:
    """Whether devices of `kind` can serve `want` at all: pool, mode, profile, machine, size, model's name.

    The model is part of theirs, upper or lower case.
    """
    terms = kind.terms
    if not terms.serves(want.mode) or want.pool not in (None, terms.pool):
        return False
    if want.mig_profile not in (None, kind.mig_profile) or want.node not in (None, kind.node):
        return False
    if want.node_label is not None and want.node_label not in terms.labels:
        return False
    if want.model is not None and want.model not in kind.model.casefold():
        return False
    if want.mode is Mode.TURNS:
        return terms.promise(kind.memory_bytes, want.memory_bytes) is not None
    if want.mode is not Mode.SLICE:
        return True
    return terms.slice_of(kind.memory_bytes, want.memory_bytes, want.compute_percent) is not None


def by_node(want: Want, counts: Mapping[Kind, int]) -> Counter[str]:
    """How many of the counted devices suit `want`, by node: no lease has devices of two nodes."""
    found: Counter[str] = Counter()
    for kind, count in counts.items():
        if suits(want, kind):
            found[kind.node] += count
    return found


def servable(want: Want, healthy: Mapping[Kind, int]) -> bool:
    """Whether the healthy devices, as counted by kind, could serve `want` if nobody held any of them: on
    one node."""
    return max(by_node(want, healthy).values(), default=0) >= want.device_count


def rank(room: Room) -> tuple[int, float, int, str]:
    """The order in which rooms are tried: the tightest first (best fit), then by index, then by UUID.

    In a slice pool the emptiest first: fewest leases, then most memory. Its devices are shared anyway, so
    filling one before the next has no advantage, and a lease that is alone on a GPU computes faster. In turns
    the one that is home to the fewest leases first.
    """
    index = room.device.index if room.device.index is not None else 1 << 30
    if room.terms.in_turns:
        return (sum(share.home for share in room.shares), 0.0, index, room.device.uuid)
    if room.terms.sliced:
        return (len(room.shares), -room.free_memory_bytes, index, room.device.uuid)
    return (room.free_memory_bytes, room.free_compute_percent, index, room.device.uuid)


def suiting(want: Want, kinds: Iterable[Kind]) -> tuple[Kind, ...]:
    """The kinds of devices that suit the want, the smallest first."""
    return tuple(
        sorted((each for each in kinds if suits(want, each)), key=lambda each: (each.order, each.node))
    )


def example(want: Want, kinds: Iterable[Kind]) -> Share | None:
    """What the want would get of one device: of the smallest kind that suits; None if none does."""
    for kind in suiting(want, kinds):
        device = Device("", kind.model, kind.memory_bytes, mig_profile=kind.mig_profile)
        return RULES[want.mode](want, Room(device, terms=kind.terms))
    return None


_Held = tuple[int, float, bool]
"""Of a share, what one beside it depends on: memory in bytes, compute in percent, whether in turns."""


def count_free(want: Want, room: Room) -> int:
    """How many leases like `want` still fit into the room: of whole devices one at most.

    It is asked of all devices for every page, and most devices of a site are held alike: the answer is
    remembered by what it depends on.
    """
    held = tuple((share.memory_bytes, share.compute_percent, share.in_turns) for share in room.shares)
    return _count_free(want, room.device.memory_bytes, room.terms, held)


@lru_cache(maxsize=4096)
def _count_free(want: Want, memory_bytes: int, terms: SharingRules, held: tuple[_Held, ...]) -> int:
    shares = tuple(Share("", memory, compute, in_turns=turns) for memory, compute, turns in held)
    room = Room(Device("", "", memory_bytes), shares, terms)
    rule, count = RULES[want.mode], 0
    while (share := rule(want, room)) is not None:
        room = room.plus(share)
        count += 1
    return count


def place(want: Want, rooms: Rooms, first: Collection[str] = ()) -> tuple[Share, ...] | None:
    """The shares that serve `want` now, or None. Always the same answer for the same arguments.

    Several devices are taken from one kind if one has enough, because a program on different GPUs runs
    at the speed of the slowest; kinds with the smallest devices come first, so that large ones stay free
    for those who ask for them. Among nodes whose devices have as much memory, in one pool, those in `first`
    come first: they have the image already. Then nodes come as `_best_node` says. In turns the shares are of
    all devices of one pool on one node, the home first.
    """
    if want.mode is Mode.TURNS:
        return _place_in_turns(want, rooms, first)
    kinds, count = _kinds_in_order(want, rooms), want.device_count
    offers = _Offers(want, rooms)
    smallest = next((kind for kind in kinds if len(offers[kind]) == count), None)
    if smallest is not None:
        size = (smallest.memory_bytes, smallest.terms.pool)
        near = [kind for kind in kinds if kind.node in first and (kind.memory_bytes, kind.terms.pool) == size]
        near = [kind for kind in near if len(offers[kind]) == count]
        order = (near[0] if near else smallest).order
        return _best_node(offers, [kind for kind in near or kinds if kind.order == order], count)
    mixed: dict[str, list[Share]] = {}
    for kind in kinds:
        mixed.setdefault(kind.node, []).extend(offers[kind])
    able = [node for node, shares in mixed.items() if len(shares) >= count]
    able.sort(key=lambda node: node not in first)  # a stable sort: otherwise in the order of the kinds
    return tuple(mixed[able[0]][:count]) if able else None


class _Offers(dict[Kind, list[Share]]):
    """What each kind would give, up to `device_count` shares, each of another device: worked out when it is
    asked for, as there are as many kinds as machines."""

    def __init__(self, want: Want, rooms: Rooms) -> None:
        super().__init__()
        self._want = want
        self.rooms = rooms

    def __missing__(self, kind: Kind) -> list[Share]:
        self[kind] = found = _offers(self._want, self.rooms[kind])
        return found


def _best_node(offers: _Offers, alike: Iterable[Kind], count: int) -> tuple[Share, ...]:
    """Of nodes with devices of the same kind, at least one with enough: the one with the fewest that have
    something to give, so that another keeps several for who asks for several. In a slice pool, the one with
    the emptiest device."""
    fewest_first = sorted(alike, key=lambda kind: (len(offers.rooms[kind]), kind.node))
    enough = (kind for kind in fewest_first if len(offers[kind]) == count)
    if not fewest_first[0].terms.sliced:
        return tuple(offers[next(enough)])

    def emptiest(kind: Kind) -> tuple[int, int, str]:
        uuid = offers[kind][0].device_uuid
        room = next(room for room in offers.rooms[kind] if room.device.uuid == uuid)
        return (len(room.shares), -room.free_memory_bytes, kind.node)

    return tuple(offers[min(enough, key=emptiest)])


def _place_in_turns(want: Want, rooms: Rooms, first: Collection[str]) -> tuple[Share, ...] | None:
    """A seat in the first pool that has one: no device of it may be without. Of one pool on several nodes,
    on one in `first`, and there where the fewest leases have a seat for each device."""
    found: list[tuple[float, Kind, tuple[Share, ...]]] = []
    for kind in _kinds_in_order(want, rooms):
        if found and kind.order != found[0][1].order:
            break
        listed = rooms[kind]
        shares = [share for room in listed if (share := turn(want, room)) is not None]
        if len(shares) == len(listed):
            order = {room.device.uuid: room.device.index or 0 for room in listed}
            others = sorted(shares[1:], key=lambda share: (order[share.device_uuid], share.device_uuid))
            seats = len(listed[0].shares) / len(listed)
            found.append((seats, kind, (replace(shares[0], home=True), *others)))
    if not found:
        return None
    return min(found, key=lambda each: (each[1].node not in first, each[0], each[1].node))[2]


def take(rooms: dict[Kind, list[Room]], shares: Iterable[Share]) -> None:
    """Mark `shares`, just placed in `rooms`, as held there: full rooms leave their list."""
    for share in shares:
        for listed in rooms.values():
            at = next((n for n, room in enumerate(listed) if room.device.uuid == share.device_uuid), None)
            if at is not None:
                left = listed.pop(at).plus(share)
                if not left.full:
                    listed.append(left)
                    listed.sort(key=rank)
                break


def _kinds_in_order(want: Want, rooms: Rooms) -> tuple[Kind, ...]:
    return suiting(want, (kind for kind, listed in rooms.items() if listed))


def _offers(want: Want, listed: Sequence[Room]) -> list[Share]:
    """Up to `device_count` shares of rooms of one kind, each of another device."""
    rule = RULES[want.mode]
    found: list[Share] = []
    for room in listed:
        if len(found) == want.device_count:
            break
        share = rule(want, room)
        if share is not None:
            found.append(share)
    return found
