"""Counts how many leases fit at once, for lab sessions, without placing any. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ....core.want import Want
from .placement import Kind, Room, Rooms, place, rank, take


def grouped(rooms: Iterable[Room]) -> dict[Kind, list[Room]]:
    """The rooms that have something to give, as `place` takes them."""
    found: dict[Kind, list[Room]] = {}
    for room in rooms:
        if not room.full:
            found.setdefault(room.kind, []).append(room)
    for listed in found.values():
        listed.sort(key=rank)
    return found


def fits(wanted: Iterable[tuple[Want, int]], rooms: Rooms) -> bool:
    """Whether this many leases of each want fit; those that need the most devices are placed first."""
    left = {kind: list(listed) for kind, listed in rooms.items()}
    ordered = sorted(wanted, key=lambda each: (-each[0].device_count, -(each[0].memory_bytes or 0)))
    return all(_place_most(want, count, left) == count for want, count in ordered)


def places(want: Want, most: int, rooms: Rooms) -> int:
    """How many leases like `want` fit, up to `most`."""
    return _place_most(want, most, {kind: list(listed) for kind, listed in rooms.items()})


def places_beside(want: Want, kept: Iterable[tuple[Want, int]], rooms: Rooms) -> int:
    """How many leases like `want` fit once each of `kept` (what is kept, and how many) has its places."""
    left = {kind: list(listed) for kind, listed in rooms.items()}
    for each, count in kept:
        _place_most(each, count, left)
    return _place_most(want, sys.maxsize, left)


def _place_most(want: Want, most: int, left: dict[Kind, list[Room]]) -> int:
    """Places up to `most` in `left`, which is changed. Returns how many were placed."""
    for placed in range(most):
        shares = place(want, left)
        if shares is None:
            return placed
        take(left, shares)
    return most
