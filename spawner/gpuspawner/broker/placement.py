"""Which devices a request gets: pure functions from wants and rooms to shares.

A *room* is a device with the shares that are held of it; what nobody holds is free. Rooms come grouped by
*kind* (devices that a request can't tell apart: one model) and ordered by `rank`. A mode is one `ShareRule`:
it says which share of a room a want would get. `whole` asks for a room that nobody else is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..model import Device, GpuRequest, Lease, Mode


@dataclass(frozen=True, slots=True)
class Share:
    """The part of one device that one lease holds."""

    device_uuid: str
    memory_bytes: int
    compute_percent: float


@dataclass(frozen=True, slots=True)
class Want:
    """What a request needs of the devices: two requests with equal wants are served by the same ones."""

    device_count: int
    model: str | None = None
    mode: Mode = Mode.WHOLE


@dataclass(frozen=True, slots=True)
class Room:
    """A device and the shares that are held of it."""

    device: Device
    shares: tuple[Share, ...] = ()

    @property
    def free_memory_bytes(self) -> int:
        """Memory that no lease holds; never negative."""
        return max(0, self.device.memory_bytes - sum(share.memory_bytes for share in self.shares))

    @property
    def free_compute_percent(self) -> float:
        """Compute that no lease holds; never negative."""
        return max(0.0, 100.0 - sum(share.compute_percent for share in self.shares))

    @property
    def full(self) -> bool:
        """Whether there is nothing left to give."""
        return bool(self.shares) and (self.free_memory_bytes == 0 or self.free_compute_percent == 0)

    def has(self, share: Share) -> bool:
        """Whether `share` of this device is free."""
        enough_memory = share.memory_bytes <= self.free_memory_bytes
        return not self.full and enough_memory and share.compute_percent <= self.free_compute_percent

    def plus(self, share: Share) -> Room:
        """This room once `share` is held as well."""
        return replace(self, shares=(*self.shares, share))

    def minus(self, share: Share) -> Room:
        """This room once `share` is given back. Raises ValueError if it is not held."""
        at = self.shares.index(share)
        return replace(self, shares=self.shares[:at] + self.shares[at + 1 :])


Rooms = Mapping[str, Sequence[Room]]
"""Rooms that have something to give, by kind, each kind in the order of `rank`."""

ShareRule = Callable[[Want, Room], Share | None]
"""The share of this room that the want would get, or None where it doesn't fit."""


def whole(want: Want, room: Room) -> Share | None:
    """The entire device, if nobody holds any of it."""
    return whole_share(room.device) if not room.shares else None


def whole_share(device: Device) -> Share:
    """The share that is the entire device."""
    return Share(device.uuid, device.memory_bytes, 100.0)


RULES: Mapping[Mode, ShareRule] = {Mode.WHOLE: whole}
"""How each mode shares a device."""


def make_want(device_count: int, model: str | None) -> Want:
    """A want; the model's name may be in upper or lower case, and an empty one asks for nothing."""
    return Want(device_count, model.casefold() if model else None)


def want_of(item: GpuRequest | Lease) -> Want:
    """What a request, or the lease that waits for it, needs of the devices."""
    return make_want(item.device_count, item.model)


def share_of(lease: Lease, device: Device) -> Share:
    """The share of `device` that `lease` holds: what `place` gave it, for a lease read from the ledger."""
    return whole_share(device)


def kind_of(device: Device) -> str:
    """What a request can tell devices apart by."""
    return device.model


def suits(want: Want, kind: str) -> bool:
    """Whether devices of `kind` can serve `want`: its model is part of theirs, upper or lower case."""
    return want.model is None or want.model in kind.casefold()


def rank(room: Room) -> tuple[int, float, int, str]:
    """The order in which rooms are tried: the tightest first (best fit), then by index, then by UUID."""
    index = room.device.index
    return (
        room.free_memory_bytes,
        room.free_compute_percent,
        index if index is not None else 1 << 30,
        room.device.uuid,
    )


def place(want: Want, rooms: Rooms) -> tuple[Share, ...] | None:
    """The shares that serve `want` now, or None. Always the same answer for the same rooms.

    Several devices are taken from one kind where one has enough, because a program over unlike GPUs runs
    at the pace of the slowest; kinds with the smallest devices come first, so that large ones stay free
    for those who ask for them.
    """
    offers = [_offers(want, rooms[kind]) for kind in _kinds_in_order(want, rooms)]
    for offer in offers:
        if len(offer) == want.device_count:
            return tuple(offer)
    mixed = [share for offer in offers for share in offer][: want.device_count]
    return tuple(mixed) if len(mixed) == want.device_count else None


def take(rooms: dict[str, list[Room]], shares: Iterable[Share]) -> None:
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


def _kinds_in_order(want: Want, rooms: Rooms) -> list[str]:
    suitable = [kind for kind, listed in rooms.items() if listed and suits(want, kind)]
    return sorted(suitable, key=lambda kind: (rooms[kind][0].device.memory_bytes, kind))


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
