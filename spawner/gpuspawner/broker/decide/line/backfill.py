"""Who gets which devices now: in the order of the queue, small requests pass big ones that must wait. Pure.

A request that can't be placed reserves the devices that it waits for: the ends of the sessions that hold
devices (known if sessions have a limit) give the time and the devices with which it could begin, its
*reservation*. A request behind it may begin now only if it ends before that time or leaves enough room on
those devices. If the time is not known, every device that suits the first request is kept for it. A request
that the healthy devices can't serve at all reserves nothing.

The bound. Let A be the queue's patience, L the longest session that any request may have, and m the number of
requests that came earlier and still wait. While devices stay in service and none are kept for lab sessions,
no request waits longer than A + (m + 1) L: once it has waited A, only those m are before it, by arrival; the
first of them has a reservation no later than L from then (every session has ended by then), which nobody
delays; when it has begun, the next one is the first. `tests/unit/broker/test_backfill.py` checks this with
random sequences.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import ChainMap, Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

from ....core.want import Want
from ..place.placement import RULES, Kind, Room, Rooms, Share, place, rank, suits, take
from .fairshare import parts_of
from .queue import Ask, Lineup, Waiting, ask_of


@dataclass(frozen=True, slots=True)
class Holding:
    """Shares that a lease holds, and the latest time of its end; None if nothing ends it."""

    lease_id: str
    shares: tuple[Share, ...]
    ends_seconds: float | None = None
    group: str = ""

    def outlasts(self, at_seconds: float) -> bool:
        """Whether the lease may still hold them then."""
        return self.ends_seconds is None or self.ends_seconds > at_seconds


@dataclass(frozen=True, slots=True)
class SessionHold:
    """Capacity that is kept for a group: places like `want`, from `begins_seconds` to `ends_seconds`.

    From `from_seconds` on (the lead time) nobody else may begin what would still run at its begin. Places
    that the group doesn't use go back at `released_seconds`, and when the caller leaves the hold out.
    `moves_out`: servers that are in the way at its begin are ended.
    """

    group: str
    want: Want
    count: int
    from_seconds: float
    begins_seconds: float
    ends_seconds: float
    released_seconds: float = math.inf
    moves_out: bool = False

    def applies(self, now_seconds: float) -> bool:
        """Whether starts of other users are checked against it now."""
        return self.from_seconds <= now_seconds < min(self.ends_seconds, self.released_seconds)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices at one moment.

    `rooms` have something to give; `all_rooms` gives every healthy room by UUID, the full ones too;
    `servable` says whether these devices could serve a want if nobody held any. `first_nodes` are the
    machines that have the image of a waiting lease, by its id.
    """

    rooms: Rooms
    servable: Callable[[Want], bool]
    all_rooms: Callable[[], Mapping[str, Room]]
    holdings: Callable[[], Sequence[Holding]] = tuple
    sessions: Sequence[SessionHold] = ()
    first_nodes: Callable[[str], Collection[str]] = lambda lease_id: ()


@dataclass(slots=True)
class Reservation:
    """The devices and time reserved for a request that can't begin yet.

    `at_seconds` None: the moment is not known, and every device that suits `want` is kept. `rooms` are those
    of its devices as they will be then, without its own shares.
    """

    want: Want
    group: str
    at_seconds: float | None
    shares: tuple[Share, ...] = ()
    rooms: dict[str, Room] = field(default_factory=dict)

    def leaves_room(self, shares: Sequence[Share], rooms: Mapping[str, Room]) -> bool:
        """Whether `shares` of these rooms, held beyond its time, leave enough for it."""
        if self.at_seconds is None:
            return not any(suits(self.want, rooms[share.device_uuid].kind) for share in shares)
        own = {share.device_uuid: share for share in self.shares}
        return all(
            share.device_uuid not in own
            or _room_for(self.want, self.rooms[share.device_uuid].plus(share), own[share.device_uuid])
            for share in shares
        )

    def reach(self, shares: Sequence[Share]) -> None:
        """`shares` were given to a lease that holds them beyond its time."""
        for share in shares:
            if share.device_uuid in self.rooms:
                self.rooms[share.device_uuid] = self.rooms[share.device_uuid].plus(share)


_Flavour = tuple[Ask, str]
"""What decides whether a request can begin now: what it asks for, and its group if places are kept for it."""


def plan(lineup: Lineup, fleet: Fleet, now_seconds: float = 0.0) -> dict[str, tuple[Share, ...]]:
    """The shares that are given now, by lease id, in the order in which they were given."""
    return _Plan(lineup, fleet, now_seconds).carry_out()


class _Plan:
    """One walk along the queue."""

    def __init__(self, lineup: Lineup, fleet: Fleet, now_seconds: float) -> None:
        self._lineup = lineup
        self._fleet = fleet
        self._now = now_seconds
        self._left = {kind: list(listed) for kind, listed in fleet.rooms.items() if listed}
        self._blocked: dict[Want, None] = {}
        self._reservations: list[Reservation] = []
        self._reserved: set[Want] = set()
        self._denied: set[_Flavour] = set()
        self._hopeful: set[_Flavour] = set()
        self._aside: set[Want] = set()
        self._placeable: dict[Want, tuple[Share, ...]] = {}
        """Where each want would be placed on what is left now; those that can't be are left out."""
        self._placed: dict[str, tuple[Share, ...]] = {}
        self._taken: list[Holding] = []
        self._with_session: set[str] = set()

    def carry_out(self) -> dict[str, tuple[Share, ...]]:
        """Serve every request that can be served."""
        asked = self._lineup.asked
        wants = {want for want, _ in asked.overall}
        self._find_placeable(wants)
        if not self._placeable:
            return {}
        # Only its first map is written, but its type asks for two that can be.
        self._rooms: ChainMap[str, Room] = ChainMap({}, self._fleet.all_rooms())  # type: ignore[arg-type]
        open_places = self._keep_sessions()
        for waiting in self._lineup.first(open_places):
            if open_places[waiting.claim.group] > 0 and self._serve(waiting):
                open_places[waiting.claim.group] -= 1
        self._hopeful = self._find_hopeful()
        self._lineup.settled = self._settled
        in_order = iter(self._lineup)
        # Who comes next is asked only while somebody can still be served.
        while self._hopeful and (following := next(in_order, None)) is not None:
            self._serve(following)
        return self._placed

    def _find_placeable(self, wants: Iterable[Want]) -> None:
        """Which of these could be placed on what is left, and where."""
        shares = {want: place(want, self._left) for want in wants}
        self._placeable = {want: found for want, found in shares.items() if found is not None}

    @cached_property
    def _held(self) -> Sequence[Holding]:
        """Who held devices before; asked for only if somebody has to wait or places are kept."""
        return self._fleet.holdings()

    def _settled(self, group: str) -> bool:
        """Whether nobody of the group can begin any more, and everybody who keeps something does."""
        return all(
            ask[0] in self._blocked or ask[0] in self._aside or self._flavour(ask, group) in self._denied
            for ask in self._lineup.asked.by_group.get(group, ())
        )

    def _find_hopeful(self) -> set[_Flavour]:
        """Everything that is asked for, each once, and that could be placed."""
        asked = self._lineup.asked
        found = {(ask, "") for ask in asked.others(self._with_session) if ask[0] in self._placeable}
        for group in self._with_session:
            asks = asked.by_group.get(group, ())
            found.update(self._flavour(ask, group) for ask in asks if ask[0] in self._placeable)
        return found

    def _flavour(self, ask: Ask, group: str) -> _Flavour:
        """The group matters only if places are kept for its lab session."""
        return ask, group if group in self._with_session else ""

    def _serve(self, waiting: Waiting) -> bool:
        if waiting.want not in self._placeable:
            if self._fleet.servable(waiting.want):
                self._blocked.setdefault(waiting.want)
            else:
                self._aside.add(waiting.want)
            return False
        own = self._flavour(ask_of(waiting), waiting.claim.group)
        if own in self._denied:
            return False
        shares = self._find(waiting)
        if shares is None:
            self._denied.add(own)
            self._hopeful.discard(own)
            if any(each.at_seconds is None for each in self._reservations):
                self._blocked.setdefault(waiting.want)
            return False
        self._give(waiting, shares)
        return True

    def _find(self, waiting: Waiting) -> tuple[Share, ...] | None:
        """Shares that leave every reservation of others its room, or None."""
        self._reserve()
        ends = self._ends(waiting)
        heeded = [each for each in self._reservations if self._heeds(waiting, ends, each)]
        first = self._fleet.first_nodes(waiting.lease_id)
        for shares in self._choices(waiting.want, first):
            if all(each.leaves_room(shares, self._rooms) for each in heeded):
                return shares
        aside: dict[Kind, list[Room]] = {}
        for kind, listed in self._left.items():
            if any(each.at_seconds is None and suits(each.want, kind) for each in heeded):
                continue
            kept = [room for room in listed if not any(room.device.uuid in each.rooms for each in heeded)]
            if kept:
                aside[kind] = kept
        return place(waiting.want, aside, first)

    def _choices(self, want: Want, first: Collection[str]) -> Iterator[tuple[Share, ...]]:
        """Where it may be placed now: machines in `first` before others; or by the other rules alone."""
        if first and (shares := place(want, self._left, first)) is not None:
            yield shares
        yield self._placeable[want]

    def _give(self, waiting: Waiting, shares: tuple[Share, ...]) -> None:
        devices = parts_of(shares, self._rooms)
        ends = self._ends(waiting)
        for reservation in self._reservations:
            if self._heeds(waiting, ends, reservation):
                reservation.reach(shares)
        for reservation in self._reservations:
            if waiting.claim.group and reservation.group == waiting.claim.group:
                self._reservations.remove(reservation)  # one of the places kept for its session is taken
                break
        take(self._left, shares)
        for share in shares:
            self._rooms[share.device_uuid] = self._rooms[share.device_uuid].plus(share)
        self._left = {kind: listed for kind, listed in self._left.items() if listed}
        self._placed[waiting.lease_id] = shares
        self._taken.append(Holding(waiting.lease_id, shares, ends, waiting.claim.group))
        self._lineup.placed(waiting, devices)
        others = sum(self._lineup.asked.overall.values()) > len(self._placed)
        self._find_placeable(self._placeable if others else ())  # each is looked for on all machines
        self._hopeful = {each for each in self._hopeful if each[0][0] in self._placeable}

    def _ends(self, waiting: Waiting) -> float | None:
        seconds = waiting.claim.session_seconds
        return None if seconds is None else self._now + seconds

    def _heeds(self, waiting: Waiting, ends: float | None, reservation: Reservation) -> bool:
        """Whether `waiting`, given devices now, would hold them when the reservation begins."""
        if reservation.group and reservation.group == waiting.claim.group:
            return False
        return ends is None or reservation.at_seconds is None or ends > reservation.at_seconds

    # Reservations.

    def _keep_sessions(self) -> Counter[str]:
        """Reserve what is kept for lab sessions. Returns how many places are open now, by group."""
        open_places: Counter[str] = Counter()
        held_by: defaultdict[str, list[Holding]] = defaultdict(list)
        for holding in self._held if self._fleet.sessions else ():
            held_by[holding.group].append(holding)
        endings = self._endings() if self._fleet.sessions else []
        for hold in self._fleet.sessions:
            if not hold.applies(self._now):
                continue
            at = max(self._now, hold.begins_seconds)
            used = sum(each.outlasts(at) for each in held_by[hold.group])
            count = max(0, hold.count - used)
            self._with_session.add(hold.group)
            if hold.begins_seconds <= self._now:
                open_places[hold.group] += count
            if not count:
                continue
            later = _Later(hold.want, self._left, self._rooms)
            later.keep(self._reservations)
            later.pass_time(each for each in endings if not each.outlasts(at))
            for _ in range(count):
                shares = later.place()
                if shares is None:
                    break
                self._reservations.append(Reservation(hold.want, hold.group, at, shares, later.rooms(shares)))
                later.keep(self._reservations[-1:])
        return open_places

    def _reserve(self) -> None:
        """Make reservations for the requests that were blocked since the last call, in their order."""
        for want in self._blocked:
            if want not in self._reserved:
                self._reserved.add(want)
                self._reserve_for(want)

    def _reserve_for(self, want: Want) -> None:
        """Add a reservation beside the existing ones; if it can only come after them, they are enough."""
        found = self._earliest(want, self._reservations)
        if found is not None:
            self._reservations.append(found)
        elif self._earliest(want, ()) is None:
            self._reservations.append(Reservation(want, "", None))

    def _earliest(self, want: Want, kept: Sequence[Reservation]) -> Reservation | None:
        """When and with which shares `want` could begin, without `kept`; None if it is not known."""
        later = _Later(want, self._left, self._rooms)
        later.keep(kept)
        for at, ending in groupby(self._endings(), lambda each: each.ends_seconds):
            assert at is not None  # of `_endings`
            if later.pass_time(ending) and (shares := later.place()) is not None:
                return Reservation(want, "", max(at, self._now), shares, later.rooms(shares))
        return None

    def _endings(self) -> list[Holding]:
        """The leases that hold devices and end at a known time, by that time."""
        ending = [each for each in (*self._held, *self._taken) if each.ends_seconds is not None]
        return sorted(ending, key=lambda each: each.ends_seconds or 0.0)


class _Later:
    """The rooms that suit one want, as they will be when some who hold shares of them have ended."""

    def __init__(self, want: Want, left: Rooms, rooms: Mapping[str, Room]) -> None:
        self._want = want
        self._base = rooms
        self._changed: dict[str, Room] = {}
        self._open = {kind: list(listed) for kind, listed in left.items() if suits(want, kind)}

    def keep(self, reservations: Iterable[Reservation]) -> None:
        """The shares that these will hold are not available."""
        for reservation in reservations:
            for share in reservation.shares:
                self._put(share.device_uuid, self._room(share.device_uuid).plus(share))

    def pass_time(self, ending: Iterable[Holding]) -> bool:
        """These have ended. Returns whether that freed anything that suits."""
        freed = False
        for holding in ending:
            for share in holding.shares:
                if share.device_uuid in self._base:
                    freed |= self._put(share.device_uuid, self._room(share.device_uuid).minus(share))
        return freed

    def place(self) -> tuple[Share, ...] | None:
        """The shares that would serve the want then."""
        return place(self._want, self._open)

    def rooms(self, shares: Iterable[Share]) -> dict[str, Room]:
        """The rooms of these shares, without them."""
        return {share.device_uuid: self._room(share.device_uuid) for share in shares}

    def _room(self, uuid: str) -> Room:
        return self._changed.get(uuid) or self._base[uuid]

    def _put(self, uuid: str, room: Room) -> bool:
        kind = room.kind
        self._changed[uuid] = room
        if not suits(self._want, kind):
            return False
        listed = self._open.setdefault(kind, [])
        at = next((n for n, each in enumerate(listed) if each.device.uuid == uuid), None)
        if at is not None:
            del listed[at]
        if not room.full:
            insort(listed, room, key=rank)
        return True


def _room_for(want: Want, room: Room, share: Share) -> bool:
    """Whether the want would still get `share` of this room."""
    return RULES[want.mode](want, room) == replace(share, home=False)
