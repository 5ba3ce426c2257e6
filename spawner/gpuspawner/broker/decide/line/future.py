"""One possible future of the queue: who begins when, with drawn lengths of sessions and newcomers. Pure.

The order is the queue's own (`queue.py`): patience, priority, the groups' and users' use as it grows in this
future, arrival. Who ends in time passes a big request that waits for more devices than are free, as in
`backfill.py`. One thing is left out: nothing is kept for lab sessions that have not begun.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ....core.want import Want
from ..place.placement import Kind, Room, Rooms, Share, place, rank, suits, take
from .backfill import Holding
from .fairshare import Standings, part_of
from .lengths import Drawn
from .queue import PATIENCE_SECONDS, Waiting

Lasts = Callable[[Drawn, float, float | None], float | None]
"""How long a session still lasts, from its age and from what its limit leaves."""


@dataclass(frozen=True, slots=True)
class Session:
    """A lease that holds devices: since when, in which tier, and the latest end (None: no limit)."""

    holding: Holding
    tier: str
    began_seconds: float
    user: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """What a future begins with: rooms that are free, sessions, and who waits, in the order of service.

    `tiers` names the tier of each waiting request by its lease id. `standings` is what users and groups have
    used, None without fair share.
    """

    rooms: Rooms
    all_rooms: Mapping[str, Room]
    sessions: Sequence[Session]
    waiting: Sequence[Waiting]
    tiers: Mapping[str, str]
    standings: Standings | None = None
    may_pass: bool = False
    """Whether a request that comes later may be served before these."""
    patience_seconds: float = PATIENCE_SECONDS
    guests: frozenset[str] = frozenset()
    """Of those who wait, the ones that only ask when they would begin: they take nothing."""


def with_guests(line: Line, asking: Mapping[str, Waiting]) -> Line:
    """The line with guests at its end, by tier."""
    return replace(
        line,
        waiting=(*line.waiting, *asking.values()),
        tiers={**line.tiers, **{waiting.lease_id: tier for tier, waiting in asking.items()}},
        guests=frozenset(waiting.lease_id for waiting in asking.values()),
    )


@dataclass(frozen=True, slots=True)
class Arrival:
    """Somebody who came: when, and with what."""

    at_seconds: float
    waiting: Waiting
    tier: str


class Begin(NamedTuple):
    """When somebody begins, and how many sessions end before."""

    at_seconds: float
    endings: int


_Key = tuple[float, ...]


@dataclass(slots=True)
class _Asking:
    """Those who wait for one want: all by arrival, and by use for each priority and group."""

    by_arrival: list[tuple[int, Waiting]] = field(default_factory=list)
    by_use: dict[tuple[int, str], list[tuple[float, int, Waiting]]] = field(default_factory=dict)


class _End(NamedTuple):
    at_seconds: float
    number: int
    shares: tuple[Share, ...]
    group: str
    devices: float


class Future:
    """One possible future. Use it once."""

    def __init__(self, line: Line, newcomers: Iterator[Arrival], lasts: Lasts, now_seconds: float) -> None:
        self._line = line
        self._lasts = lasts
        self._now = now_seconds
        self._rooms: dict[Kind, list[Room]] = {kind: list(listed) for kind, listed in line.rooms.items()}
        self._changed: dict[str, Room] = {}
        self._ends: list[_End] = []
        self._limits: dict[int, tuple[float, tuple[Share, ...]]] = {}
        """Of the sessions among `_ends` that have a limit: their latest end, and what they hold."""
        self._pushed = 0
        self._tiers = dict(line.tiers)
        self._use = _Use(line.standings, now_seconds)
        self._asking: dict[Want, _Asking] = {}
        self._gone: set[str] = set()
        self._last = 0
        for waiting in line.waiting:
            self._join(waiting)
        self._newcomers = newcomers
        self._next = next(newcomers, None)

    def run(self, wanted: set[str]) -> dict[str, Begin]:
        """When each of these leases begins; those whose begin isn't known are left out."""
        self._begin_with()
        begun: dict[str, Begin] = {}
        wanted = set(wanted)
        at, endings = self._now, 0
        while True:
            for lease_id in self._serve(at):
                if lease_id in wanted:
                    begun[lease_id] = Begin(at, endings)
                    wanted.remove(lease_id)
            if not self._ends or not wanted:
                return begun
            if self._next is not None and self._next.at_seconds <= self._ends[0].at_seconds:
                at = max(at, self._next.at_seconds)
                self._arrive(self._next)
                self._next = next(self._newcomers, None)
                continue
            end = heapq.heappop(self._ends)
            at = end.at_seconds
            self._limits.pop(end.number, None)
            endings += 1
            self._free(end.shares)
            self._use.end(end.group, end.devices)

    def _begin_with(self) -> None:
        for session in self._line.sessions:
            ends = session.holding.ends_seconds
            left = None if ends is None else ends - self._now
            drawn = Drawn(session.tier, session.user, session.began_seconds)
            lasts = self._lasts(drawn, self._now - session.began_seconds, left)
            devices = self._parts(session.holding.shares)
            group = session.holding.group
            self._use.hold(group, devices)
            if lasts is not None:
                self._use.grow(session.user, group, devices * lasts, self._now)
                self._push(self._now + lasts, session.holding.shares, group, devices)
                if ends is not None:
                    self._limits[self._pushed] = ends, session.holding.shares

    def _arrive(self, newcomer: Arrival) -> None:
        self._pushed += 1
        waiting = newcomer.waiting._replace(
            number=self._last + 1,
            lease_id=f"newcomer-{self._pushed}",
            since_seconds=newcomer.at_seconds,
        )
        self._tiers[waiting.lease_id] = newcomer.tier
        self._join(waiting)

    def _join(self, waiting: Waiting) -> None:
        self._last = max(self._last, waiting.number)
        asking = self._asking.setdefault(waiting.want, _Asking())
        heapq.heappush(asking.by_arrival, (waiting.number, waiting))
        claim = waiting.claim
        listed = asking.by_use.setdefault((claim.priority, claim.group), [])
        heapq.heappush(listed, (self._use.of_user(waiting.user), waiting.number, waiting))

    # Serving.

    def _serve(self, at: float) -> list[str]:
        """Who begins now, in the order of the queue; who can't keeps what suits it from those behind.

        But those whose session ends before it could begin may have that.
        """
        if not any(self._rooms.values()):
            return []
        left, begun = dict(self._rooms), []
        kept: dict[Kind, list[Room]] = {}
        kept_from = math.inf
        heads = [first for want in self._asking if (first := self._first(want, at)) is not None]
        while heads:
            first = min(heads)
            heads.remove(first)
            waiting = first[1]
            want = waiting.want
            shares = place(want, left)
            if shares is None and kept and at + (waiting.claim.session_seconds or math.inf) <= kept_from:
                shares = place(want, {**left, **kept})
            if shares is None:
                if not self._only_guests(want):
                    suiting = {kind: listed for kind, listed in left.items() if suits(want, kind)}
                    left = {kind: listed for kind, listed in left.items() if kind not in suiting}
                    kept |= suiting
                    if any(suiting.values()):
                        kept_from = min(kept_from, self._begins_by(want))
                continue
            self._gone.add(waiting.lease_id)
            begun.append(waiting.lease_id)
            if waiting.lease_id not in self._line.guests:
                self._give(waiting, shares, at)
            following = self._first(want, at)
            if following is None:
                del self._asking[want]
            else:
                heads.append(following)
        return begun

    def _only_guests(self, want: Want) -> bool:
        return bool(self._line.guests) and all(
            each.lease_id in self._line.guests
            for _, each in self._asking[want].by_arrival
            if each.lease_id not in self._gone
        )

    def _give(self, waiting: Waiting, shares: tuple[Share, ...], at: float) -> None:
        devices = self._parts(shares)
        for share in shares:
            room = self._changed.get(share.device_uuid) or self._line.all_rooms[share.device_uuid]
            self._changed[share.device_uuid] = room.plus(share)
        take(self._rooms, shares)
        self._use.hold(waiting.claim.group, devices)
        drawn = Drawn(self._tiers[waiting.lease_id], waiting.user, at)
        lasts = self._lasts(drawn, 0.0, waiting.claim.session_seconds)
        if lasts is not None:
            self._use.grow(waiting.user, waiting.claim.group, devices * lasts, at)
            self._push(at + lasts, shares, waiting.claim.group, devices)
            if waiting.claim.session_seconds is not None:
                self._limits[self._pushed] = at + waiting.claim.session_seconds, shares

    def _overdue(self, asking: _Asking, at: float) -> Waiting | None:
        """Who has waited longest for this want, if that is longer than the queue's patience."""
        listed = asking.by_arrival
        while listed and listed[0][1].lease_id in self._gone:
            heapq.heappop(listed)
        if listed and listed[0][1].since_seconds <= at - self._line.patience_seconds:
            return listed[0][1]
        return None

    def _heads(self, asking: _Asking) -> Iterable[tuple[_Key, Waiting]]:
        """The next of each priority and group, with its place in the order."""
        for (priority, group), listed in asking.by_use.items():
            while listed:
                use, number, waiting = listed[0]
                if waiting.lease_id in self._gone:
                    heapq.heappop(listed)
                    continue
                now = self._use.of_user(waiting.user)
                if now > use:
                    heapq.heapreplace(listed, (now, number, waiting))
                    continue
                yield (1.0, -priority, *self._use.of_group(group, waiting), use, number), waiting
                break

    def _first(self, want: Want, at: float) -> tuple[_Key, Waiting] | None:
        """The next one who waits for this want, with its place in the order; None if nobody does."""
        asking = self._asking[want]
        overdue = self._overdue(asking, at)
        if overdue is not None:
            return (0.0, overdue.number), overdue
        return min(self._heads(asking), default=None)

    # Devices.

    def _parts(self, shares: Iterable[Share]) -> float:
        rooms = self._line.all_rooms
        return sum(part_of(each, rooms[each.device_uuid]) for each in shares if each.device_uuid in rooms)

    def _push(self, at: float, shares: tuple[Share, ...], group: str, devices: float) -> None:
        self._pushed += 1
        heapq.heappush(self._ends, _End(at, self._pushed, shares, group, devices))

    def _begins_by(self, want: Want) -> float:
        """When the want could begin at the latest, by the limits of those that run; -inf: not known."""
        rooms = {kind: list(listed) for kind, listed in self._rooms.items() if suits(want, kind)}
        changed = dict(self._changed)
        for until, shares in sorted(self._limits.values(), key=lambda each: each[0]):
            self._give_back(rooms, changed, shares)
            if place(want, rooms) is not None:
                return until
        return -math.inf

    def _free(self, shares: Iterable[Share]) -> None:
        self._give_back(self._rooms, self._changed, shares)

    def _give_back(
        self, rooms: dict[Kind, list[Room]], changed: dict[str, Room], shares: Iterable[Share]
    ) -> None:
        """Adds the shares to what is free in `rooms`; `changed` are the rooms that differ from the line's."""
        for share in shares:
            room = changed.get(share.device_uuid) or self._line.all_rooms.get(share.device_uuid)
            if room is None:
                continue
            freed = changed[share.device_uuid] = room.minus(share)
            listed = rooms.setdefault(room.kind, [])
            at = next((n for n, each in enumerate(listed) if each.device.uuid == share.device_uuid), None)
            if at is not None:
                del listed[at]
            insort(listed, freed, key=rank)


class _Use:
    """What users and groups have used, as it grows in this future; everything 0 without fair share.

    A session's whole use counts from its begin. Use decays: here what comes later weighs more instead, which
    gives the same order.
    """

    def __init__(self, standings: Standings | None, now_seconds: float) -> None:
        self._fair = standings
        self._now = now_seconds
        self._users: dict[str, float] = {}
        self._groups: dict[str, float] = {}
        self._held: dict[str, float] = {}

    def hold(self, group: str, devices: float) -> None:
        """The group holds so many more devices."""
        self._held[group] = self._held.get(group, 0.0) + devices

    def end(self, group: str, devices: float) -> None:
        """The group holds so many fewer devices."""
        self._held[group] = self._held.get(group, 0.0) - devices

    def grow(self, user: str, group: str, gpu_seconds: float, at: float) -> None:
        """A session that uses so much begins."""
        if self._fair is not None:
            weighs = gpu_seconds * math.exp((at - self._now) * self._fair.rate)
            self._users[user] = self._users.get(user, 0.0) + weighs
            self._groups[group] = self._groups.get(group, 0.0) + weighs

    def of_user(self, user: str) -> float:
        """What the user is ordered by."""
        return 0.0 if self._fair is None else self._fair.users.get(user, 0.0) + self._users.get(user, 0.0)

    def of_group(self, group: str, member: Waiting) -> tuple[float, float]:
        """What the group is ordered by: whether it has what it is guaranteed, and its use by its weight."""
        if self._fair is None:
            return (0.0, 0.0)
        use = self._fair.groups.get(group, 0.0) + self._groups.get(group, 0.0)
        return float(self._held.get(group, 0.0) >= member.claim.guaranteed_devices), use / member.claim.weight
