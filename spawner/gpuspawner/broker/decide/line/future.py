"""One possible future of the queue: who begins when, with drawn lengths of sessions and newcomers. Pure.

The order is the queue's own (`queue.py`): patience, priority, the groups' and users' use as it grows in this
future, arrival. Who ends in time passes a big request that waits for more devices than are free, as in
`backfill.py`. A lab session of the timetable has what is kept for it from its begin to its end: its members
who wait take these places, and others are expected for the rest. From the lead time on nobody else begins
what would still run then and be in the way.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from ....core.want import Want
from ..place.fitting import places
from ..place.placement import Kind, Room, Rooms, Share, place, suits, take
from .backfill import Holding, SessionHold
from .fairshare import Standings
from .future_floor import Floor, Holder
from .future_use import Use
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
    used, None without fair share. `kept` is what is kept for lab sessions now and later.
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
    kept: Sequence[SessionHold] = ()
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


def with_ends(line: Line, told_end: Callable[[str], datetime | None]) -> Line:
    """The line where sessions end, at the latest, when their users were told that they end.

    That may be later than a limit that was changed: nobody ends without a warning.
    """

    def told(session: Session) -> Session:
        at = told_end(session.holding.lease_id)
        if at is None:
            return session
        return replace(session, holding=replace(session.holding, ends_seconds=at.timestamp()))

    return replace(line, sessions=tuple(map(told, line.sessions)))


class Arrival(NamedTuple):
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


@dataclass(slots=True)
class _Lab:
    """A lab session: how many of its places nobody has, and how many members are expected for those taken."""

    hold: SessionHold
    begun: bool = False
    missing: int = 0
    expected: int = 0


_Flavour = tuple[Want, float | None, str]
"""What decides whether somebody may begin before a lab session: want, longest session, group."""


def _flavour(waiting: Waiting) -> _Flavour:
    return waiting.want, waiting.claim.session_seconds, waiting.claim.group


def _moments_of(labs: Iterable[_Lab]) -> list[tuple[float, _Lab]]:
    """When something begins or goes back by the timetable, the last one first."""
    found = [(lab.hold.begins_seconds, lab) for lab in labs]
    found += [(lab.hold.released_seconds, lab) for lab in labs if math.isfinite(lab.hold.released_seconds)]
    return sorted(found, key=lambda each: each[0], reverse=True)


class Future:
    """One possible future. Use it once. `give_way` is called at each step."""

    def __init__(
        self,
        line: Line,
        newcomers: Iterator[Arrival],
        lasts: Lasts,
        now_seconds: float,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        self._line = line
        self._give_way = give_way
        self._lasts = lasts
        self._now = now_seconds
        self._use = Use(line.standings, now_seconds)
        self._floor = Floor(line.rooms, line.all_rooms, self._use)
        self._labs = [_Lab(hold) for hold in line.kept]
        self._moments = _moments_of(self._labs)
        self._came = 0
        self._tiers = dict(line.tiers)
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
            self._give_way()
            for lease_id in (*self._seat_classes(at), *self._serve(at)):
                if lease_id in wanted:
                    begun[lease_id] = Begin(at, endings)
                    wanted.remove(lease_id)
            end_at = self._floor.next_end_seconds
            moment = self._moments[-1][0] if self._moments else math.inf
            if not wanted or end_at == moment == math.inf:
                return begun
            if self._next is not None and self._next.at_seconds <= min(end_at, moment):
                at = max(at, self._next.at_seconds)
                self._arrive(self._next)
                self._next = next(self._newcomers, None)
            elif end_at <= moment:
                at = end_at
                endings += self._floor.end_next()
            else:
                at = max(at, moment)
                endings += self._pass_moment(*self._moments.pop())

    def _begin_with(self) -> None:
        for session in self._line.sessions:
            self._give_way()
            ends = session.holding.ends_seconds
            left = None if ends is None else ends - self._now
            drawn = Drawn(session.tier, session.user, session.began_seconds)
            lasts = self._lasts(drawn, self._now - session.began_seconds, left)
            until = None if lasts is None else self._now + lasts
            who = Holder(session.holding.group, session.began_seconds, until, ends)
            devices = self._floor.hold(session.holding.shares, who)
            if lasts is not None:
                self._use.grow(session.user, who.group, devices * lasts, self._now)

    def _arrive(self, newcomer: Arrival) -> None:
        if self._is_expected(newcomer):
            return
        self._came += 1
        waiting = newcomer.waiting._replace(
            number=self._last + 1,
            lease_id=f"newcomer-{self._came}",
            since_seconds=newcomer.at_seconds,
        )
        self._tiers[waiting.lease_id] = newcomer.tier
        self._join(waiting)

    def _join(self, waiting: Waiting) -> None:
        self._give_way()
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
        if not any(self._floor.rooms.values()):
            return []
        left, begun = dict(self._floor.rooms), []
        kept: dict[Kind, list[Room]] = {}
        kept_from = math.inf
        denied: set[_Flavour] = set()
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
                        kept_from = min(kept_from, self._floor.begins_by(want))
                continue
            if self._in_the_way(waiting, shares, at):
                denied.add(_flavour(waiting))
            else:
                begun.append(self._begin(waiting, shares, at))
            following = self._first(want, at, denied)
            if following is not None:
                heads.append(following)
            elif not denied:
                del self._asking[want]
        return begun

    def _begin(self, waiting: Waiting, shares: tuple[Share, ...], at: float) -> str:
        """They get these shares, but guests take nothing. Returns the lease's id."""
        self._gone.add(waiting.lease_id)
        if waiting.lease_id in self._line.guests:
            return waiting.lease_id
        claim = waiting.claim
        drawn = Drawn(self._tiers[waiting.lease_id], waiting.user, at)
        lasts = self._lasts(drawn, 0.0, claim.session_seconds)
        until = None if lasts is None else at + lasts
        latest = None if claim.session_seconds is None else at + claim.session_seconds
        devices = self._floor.take(shares, Holder(claim.group, at, until, latest))
        if lasts is not None:
            self._use.grow(waiting.user, claim.group, devices * lasts, at)
        return waiting.lease_id

    def _only_guests(self, want: Want) -> bool:
        return bool(self._line.guests) and all(
            each.lease_id in self._line.guests
            for _, each in self._asking[want].by_arrival
            if each.lease_id not in self._gone
        )

    def _overdue(self, asking: _Asking, at: float) -> Waiting | None:
        """Who has waited longest for this want, if that is longer than the queue's patience."""
        listed = asking.by_arrival
        while listed and listed[0][1].lease_id in self._gone:
            heapq.heappop(listed)
        if listed and listed[0][1].since_seconds <= at - self._line.patience_seconds:
            return listed[0][1]
        return None

    def _heads(self, asking: _Asking, denied: Set[_Flavour]) -> Iterable[tuple[_Key, Waiting]]:
        """The next of each priority and group, with its place in the order; not one that is denied."""
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
                if _flavour(waiting) not in denied:
                    yield (1.0, -priority, *self._use.of_group(group, waiting), use, number), waiting
                break

    def _first(
        self, want: Want, at: float, denied: Set[_Flavour] = frozenset()
    ) -> tuple[_Key, Waiting] | None:
        """The next one who waits for this want, with its place in the order; None if nobody does."""
        asking = self._asking[want]
        overdue = self._overdue(asking, at)
        if overdue is not None and _flavour(overdue) not in denied:
            return (0.0, overdue.number), overdue
        return min(self._heads(asking, denied), default=None)

    # Lab sessions.

    def _pass_moment(self, at: float, lab: _Lab) -> int:
        """A lab session begins, or its unused places go back. Returns how many had to end for it."""
        hold, ended = lab.hold, 0
        if at != hold.begins_seconds:
            lab.missing = 0
            return 0
        lab.begun = True
        lab.missing = max(0, hold.count - self._floor.members[hold.group])
        if hold.moves_out and at >= self._now:
            ended = self._floor.make_room(hold.want, lab.missing, hold.group)
        return ended

    def _seat_classes(self, at: float) -> list[str]:
        """The lab sessions that have begun take what is free: their members who wait, else expected ones."""
        begun: list[str] = []
        for lab in self._labs:
            hold = lab.hold
            while lab.missing and (shares := place(hold.want, self._floor.rooms)) is not None:
                lab.missing -= 1
                member = self._member(hold)
                if member is not None:
                    begun.append(self._begin(member, shares, at))
                else:
                    lab.expected += 1
                    self._floor.take(shares, Holder(hold.group, at, hold.ends_seconds, hold.ends_seconds))
        return begun

    def _member(self, hold: SessionHold) -> Waiting | None:
        """Of the members who wait, the one who came first."""
        for want, asking in self._asking.items():
            if want == hold.want:
                for _, waiting in sorted(asking.by_arrival):
                    mine = waiting.claim.group == hold.group and waiting.lease_id not in self._line.guests
                    if mine and waiting.lease_id not in self._gone:
                        return waiting
        return None

    def _is_expected(self, newcomer: Arrival) -> bool:
        """Whether a place was taken for this member of a class before they came."""
        for lab in self._labs:
            hold = lab.hold
            mine = newcomer.waiting.claim.group == hold.group and newcomer.waiting.want == hold.want
            if mine and lab.expected and newcomer.at_seconds < hold.ends_seconds:
                lab.expected -= 1
                return True
        return False

    def _in_the_way(self, waiting: Waiting, shares: Sequence[Share], at: float) -> bool:
        """Whether somebody who begins now would lack a lab session that has not begun, at its begin."""
        for lab in self._labs:
            hold, limit = lab.hold, waiting.claim.session_seconds
            if lab.begun or at < hold.from_seconds or waiting.claim.group == hold.group:
                continue
            if limit is not None and at + limit <= hold.begins_seconds:
                continue
            missing = max(0, hold.count - self._floor.members[hold.group])
            rooms = self._floor.rooms_at(hold.begins_seconds)
            before = places(hold.want, missing, rooms)
            take(rooms, shares)
            after = places(hold.want, missing, rooms)
            if after < missing and after < before:
                return True
        return False
