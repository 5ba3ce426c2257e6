"""The devices in one possible future: who holds what of them, and until when. Pure."""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ....core.want import Want
from ..place.fitting import places
from ..place.placement import Kind, Room, Rooms, Share, place, rank, suits, take
from .fairshare import part_of
from .future_use import Use


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds shares: since when, and until when in this future (None: it is not known).

    `latest_seconds` is when their session's limit ends it; None: nothing does.
    """

    group: str
    since_seconds: float
    until_seconds: float | None
    latest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    holder: Holder
    shares: tuple[Share, ...]
    devices: float


class Floor:
    """The devices; `rooms` are free at the beginning, `all_rooms` are all that are in service."""

    def __init__(self, rooms: Rooms, all_rooms: Mapping[str, Room], use: Use) -> None:
        self.rooms: dict[Kind, list[Room]] = {kind: list(listed) for kind, listed in rooms.items()}
        """What has something to give, as `place` takes it."""
        self.members: Counter[str] = Counter()
        """How many sessions each group has."""
        self._all_rooms = all_rooms
        self._changed: dict[str, Room] = {}
        self._use = use
        self._number = 0
        self._held: dict[int, _Held] = {}
        self._ends: list[tuple[float, int]] = []

    @property
    def next_end_seconds(self) -> float:
        """When the next session ends; infinite if none does."""
        while self._ends and self._ends[0][1] not in self._held:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def hold(self, shares: tuple[Share, ...], holder: Holder) -> float:
        """Somebody holds shares that are not in `rooms`. Returns how many whole devices they are."""
        self._number += 1
        known = (share for share in shares if share.device_uuid in self._all_rooms)
        devices = sum(part_of(each, self._all_rooms[each.device_uuid]) for each in known)
        self._held[self._number] = _Held(holder, shares, devices)
        self._use.hold(holder.group, devices)
        self.members[holder.group] += 1
        if holder.until_seconds is not None:
            heapq.heappush(self._ends, (holder.until_seconds, self._number))
        return devices

    def take(self, shares: tuple[Share, ...], holder: Holder) -> float:
        """Somebody takes shares of `rooms`. Returns how many whole devices they are."""
        for share in shares:
            room = self._changed.get(share.device_uuid) or self._all_rooms[share.device_uuid]
            self._changed[share.device_uuid] = room.plus(share)
        take(self.rooms, shares)
        return self.hold(shares, holder)

    def end_next(self) -> int:
        """The next session ends. Returns how many ended: 1, or 0 if there is none."""
        if self.next_end_seconds == math.inf:
            return 0
        self._end(heapq.heappop(self._ends)[1])
        return 1

    def make_room(self, want: Want, count: int, group: str) -> int:
        """Sessions of others end, the newest first, until so many places are free. Returns how many ended."""
        newest_first = sorted(self._held.items(), key=lambda each: each[1].holder.since_seconds, reverse=True)
        ended = 0
        for number, held in newest_first:
            if places(want, count, self.rooms) >= count:
                break
            if held.holder.group != group and self._suits(want, held.shares):
                self._end(number)
                ended += 1
        return ended

    def begins_by(self, want: Want) -> float:
        """When the want could begin at the latest, by the limits of those that run; -inf: not known."""
        rooms = {kind: list(listed) for kind, listed in self.rooms.items() if suits(want, kind)}
        changed = dict(self._changed)
        for latest, shares in sorted(self._limits(), key=lambda each: each[0]):
            self._give_back(rooms, changed, shares)
            if place(want, rooms) is not None:
                return latest
        return -math.inf

    def rooms_at(self, at_seconds: float) -> dict[Kind, list[Room]]:
        """What is free then, by the limits of those that run; a copy."""
        rooms = {kind: list(listed) for kind, listed in self.rooms.items()}
        changed = dict(self._changed)
        for latest, shares in self._limits():
            if latest <= at_seconds:
                self._give_back(rooms, changed, shares)
        return rooms

    def _limits(self) -> Iterable[tuple[float, tuple[Share, ...]]]:
        """The latest end of each session that surely ends, and what it holds."""
        for held in self._held.values():
            if held.holder.latest_seconds is not None and held.holder.until_seconds is not None:
                yield held.holder.latest_seconds, held.shares

    def _suits(self, want: Want, shares: Iterable[Share]) -> bool:
        rooms = (self._all_rooms.get(share.device_uuid) for share in shares)
        return any(room is not None and suits(want, room.kind) for room in rooms)

    def _end(self, number: int) -> None:
        held = self._held.pop(number)
        self.members[held.holder.group] -= 1
        self._give_back(self.rooms, self._changed, held.shares)
        self._use.end(held.holder.group, held.devices)

    def _give_back(
        self, rooms: dict[Kind, list[Room]], changed: dict[str, Room], shares: Iterable[Share]
    ) -> None:
        """Adds the shares to what is free in `rooms`; `changed` are the rooms that differ from the first."""
        for share in shares:
            room = changed.get(share.device_uuid) or self._all_rooms.get(share.device_uuid)
            if room is None:
                continue
            freed = changed[share.device_uuid] = room.minus(share)
            listed = rooms.setdefault(room.kind, [])
            at = next((n for n, each in enumerate(listed) if each.device.uuid == share.device_uuid), None)
            if at is not None:
                del listed[at]
            insort(listed, freed, key=rank)
