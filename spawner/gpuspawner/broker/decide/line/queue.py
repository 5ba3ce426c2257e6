"""Who is next: by priority, then by fair share, then by arrival. No clock and no database.

The order of those who wait:

1. who has waited longer than the patience of the site, by arrival, whatever else is said below;
2. the higher priority;
3. groups that hold less than they are guaranteed, then the group with the least use for its weight;
4. within a group the user with the least use;
5. who came earlier.

Without fair share, 3 and 4 are left out. Rule 1 is what bounds the wait: see `backfill`, which gives the
devices out in this order.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import NamedTuple

from ....core.quota import UNLIMITED, Allowance
from ....core.want import Want
from ..place.placement import Kind, suits
from .fairshare import FairShare

PATIENCE_SECONDS = 86400.0
"""A request that has waited this long is no longer overtaken."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the rules of the site give a request: all that the queue needs to know of quotas.

    `group` is whose share of the devices is charged; `weight` and `guaranteed_devices` are that group's.
    `session_seconds` is the longest that the session can last, None where nothing ends it.
    """

    group: str = ""
    priority: int = 0
    weight: float = 1.0
    guaranteed_devices: float = 0.0
    session_seconds: float | None = None


NO_CLAIM = Claim()


def claim_from(
    allowed: Allowance, of_group: Allowance | None = None, most_seconds: float = UNLIMITED
) -> Claim:
    """What a quota gives a request. `of_group`: what the group may have whose share is charged instead of the
    quota's own; `most_seconds`: how long the session can last, besides the quota's limit.
    """
    group = of_group or allowed
    seconds = min(allowed.session_seconds, most_seconds)
    return Claim(
        group=group.group,
        priority=allowed.priority,
        weight=group.weight,
        guaranteed_devices=group.guaranteed_devices,
        session_seconds=None if seconds == UNLIMITED else seconds,
    )


class Waiting(NamedTuple):
    """A place in the queue; a lower number came earlier. `since_seconds` is when, since 1970."""

    number: int
    lease_id: str
    want: Want
    user: str = ""
    since_seconds: float = 0.0
    claim: Claim = NO_CLAIM


Ask = tuple[Want, float | None]
"""What decides, beside its group, whether a request can begin now: its want and its longest session."""


def ask_of(waiting: Waiting) -> Ask:
    """What a request asks for."""
    return waiting.want, waiting.claim.session_seconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: `position` counts from 1 among the `waiting` that compete with it.

    Requests that no healthy device can serve are counted among neither, except by themselves.
    """

    position: int
    waiting: int


class Queue:
    """The waiting requests. Without `fair`, and with equal priorities, first come, first served."""

    def __init__(
        self,
        kinds: Iterable[Kind] = (),
        fair: FairShare | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._kinds: tuple[Kind, ...] = ()
        self._fair = fair
        self._patience_seconds = patience_seconds
        self._places: dict[str, Waiting] = {}
        self._classes: dict[int, dict[str, dict[str, Waiting]]] = {}
        self._wants: Counter[Want] = Counter()
        self._asks: Counter[Ask] = Counter()
        self._asks_of: dict[str, Counter[Ask]] = {}
        """The same by group."""
        self._known_wants: dict[Want, Want] = {}
        """One object for equal wants: what is looked up by it is found without comparing."""
        self._rivals: dict[Want, frozenset[Want]] = {}
        self._standings: dict[str, tuple[int, int]] | None = None
        """Position and waiting of each place, as of the last change of anything; None: not counted since."""
        self._one_was_asked = False
        """A place was counted by itself since then."""
        self.set_kinds(kinds)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, lease_id: str) -> bool:
        return lease_id in self._places

    @property
    def has_priorities(self) -> bool:
        """Whether those who wait have different priorities."""
        return len(self._classes) > 1

    def set_kinds(self, kinds: Iterable[Kind]) -> None:
        """Say which kinds of devices there are: they decide who competes with whom."""
        self._kinds = tuple(dict.fromkeys(kinds))
        self._rivals.clear()
        self.changed()

    def add(self, waiting: Waiting) -> None:
        """Put a request in the queue. Raises ValueError if it is in already."""
        if waiting.lease_id in self._places:
            raise ValueError(f"lease {waiting.lease_id} is in the queue already")
        waiting = waiting._replace(want=self._known_wants.setdefault(waiting.want, waiting.want))
        groups = self._classes.setdefault(waiting.claim.priority, {})
        for places in (self._places, groups.setdefault(waiting.claim.group, {})):
            last = next(reversed(places.values()), None)
            places[waiting.lease_id] = waiting
            if last is not None and last.number > waiting.number:
                in_order = {each.lease_id: each for each in sorted(places.values())}
                places.clear()
                places.update(in_order)
        self._wants[waiting.want] += 1
        _count(self._asks, ask_of(waiting), 1)
        _count(self._asks_of.setdefault(waiting.claim.group, Counter()), ask_of(waiting), 1)
        if self._wants[waiting.want] == 1:
            self._rivals.clear()
        self.changed()

    def remove(self, lease_id: str) -> None:
        """Take a request out. Raises KeyError if it is not in the queue."""
        waiting = self._places.pop(lease_id)
        groups = self._classes[waiting.claim.priority]
        members = groups[waiting.claim.group]
        del members[lease_id]
        if not members:
            del groups[waiting.claim.group]
        if not groups:
            del self._classes[waiting.claim.priority]
        self._wants[waiting.want] -= 1
        group = waiting.claim.group
        for asks in (self._asks, self._asks_of[group]):
            _count(asks, ask_of(waiting), -1)
        if not self._asks_of[group]:
            del self._asks_of[group]
        if not self._wants[waiting.want]:
            del self._wants[waiting.want], self._known_wants[waiting.want]
            self._rivals.clear()
        self.changed()

    def renew(self, everybody: Iterable[Waiting]) -> None:
        """Everybody who waits, by arrival, with the claims that they have now."""
        renewed = list(everybody)
        if renewed == list(self._places.values()):
            return
        for lease_id in tuple(self._places):
            self.remove(lease_id)
        for waiting in renewed:
            self.add(waiting)

    @property
    def wants(self) -> tuple[Want, ...]:
        """What those who wait ask for, each once."""
        return tuple(self._wants)

    def changed(self) -> None:
        """Use, health or time has changed: the places are counted again when they are next requested."""
        self._standings = None
        self._one_was_asked = False

    def in_order(self) -> list[Waiting]:
        """Everybody, by arrival."""
        return list(self._places.values())

    def lineup(
        self, now_seconds: float = 0.0, without: str | None = None, newcomer: Waiting | None = None
    ) -> Lineup:
        """The order at this moment, supposing that `without` had left and `newcomer` had come."""
        everybody: dict[str, Waiting] = self._places
        classes: Mapping[int, Mapping[str, Mapping[str, Waiting]]] = self._classes
        asked = Asked(self._asks, self._asks_of)
        if newcomer is not None:
            newcomer = newcomer._replace(want=self._known_wants.get(newcomer.want, newcomer.want))
            asked = asked.plus(newcomer)
            priority, group = newcomer.claim.priority, newcomer.claim.group
            one = {newcomer.lease_id: newcomer}
            everybody = {**everybody, **one}
            groups = classes.get(priority, {})
            classes = {**classes, priority: {**groups, group: {**groups.get(group, {}), **one}}}
        moments = now_seconds, now_seconds - self._patience_seconds
        return Lineup(everybody, classes, self._fair, moments, without, asked)

    def place_of(
        self,
        lease_id: str,
        now_seconds: float = 0.0,
        servable: Callable[[Want], bool] = lambda want: True,
    ) -> Place | None:
        """Where a request stands, or None if it does not wait; as of the last change of the queue.

        `servable` says whether there are enough devices in service for a want. The first place after a change
        is counted by itself, since often only who has just come asks; for a second one all are counted.
        """
        if lease_id not in self._places:
            return None
        if self._standings is None and not self._one_was_asked:
            self._one_was_asked = True
            return self._count_one(lease_id, self.lineup(now_seconds), servable)
        return Place(*self._counted(now_seconds, servable)[lease_id])

    def all_places(self, now_seconds: float, servable: Callable[[Want], bool]) -> Mapping[str, Place]:
        """Where everybody stands, by lease id: as it is now, also when the queue has changed."""
        found = self._counted(now_seconds, servable)
        return {lease_id: Place(*standing) for lease_id, standing in found.items()}

    def count(self, want: Want) -> int:
        """How many of the waiting compete with `want`, which need not be in the queue itself."""
        if want in self._wants:
            return sum(self._wants[other] for other in self._compete(want))
        return sum(self._wants[other] for other in self._wants if competes(want, other, self._kinds))

    def _counted(self, now_seconds: float, servable: Callable[[Want], bool]) -> Mapping[str, tuple[int, int]]:
        if self._standings is None:
            self._standings = self._count(self.lineup(now_seconds), servable)
        return self._standings

    def _count(self, lineup: Lineup, servable: Callable[[Want], bool]) -> dict[str, tuple[int, int]]:
        """Everybody's place, in one pass: what is counted for each want is how many of it came so far.

        It is made for each request that joins, so wants are looked up by their identity: each is one object.
        """
        out = {want for want in self._wants if not servable(want)}
        known = self._known_wants
        rivals, totals = {}, {}
        for want in self._wants:
            able = self._compete(want) - out
            rivals[id(known[want])] = [id(known[each]) for each in able]
            totals[id(known[want])] = sum(self._wants[each] for each in able) + (want in out)
        ahead = dict.fromkeys(rivals, 0)
        found: dict[str, tuple[int, int]] = {}
        for waiting in lineup.if_nothing_is_placed():
            want_id, before = id(waiting.want), 1
            for rival in rivals[want_id]:
                before += ahead[rival]
            found[waiting.lease_id] = before, totals[want_id]
            ahead[want_id] += 1
        return found

    def _count_one(self, lease_id: str, lineup: Lineup, servable: Callable[[Want], bool]) -> Place:
        want = self._places[lease_id].want
        able = [each for each in self._compete(want) if servable(each)]
        rivals = {id(self._known_wants[each]) for each in able}
        before = sum(id(each.want) in rivals for each in lineup.before(lease_id))
        total = sum(self._wants[each] for each in able) + (not servable(want))
        return Place(before + 1, total)

    def _compete(self, want: Want) -> frozenset[Want]:
        if want not in self._rivals:
            self._rivals = {
                one: frozenset(
                    other for other in self._wants if other == one or competes(one, other, self._kinds)
                )
                for one in self._wants
            }
        return self._rivals[want]


def _count(asks: Counter[Ask], ask: Ask, change: int) -> None:
    """Count one more or one fewer; what nobody asks for any more is left out."""
    asks[ask] += change
    if not asks[ask]:
        del asks[ask]


@dataclass(frozen=True, slots=True)
class Asked:
    """How often each thing is asked for in a line: by all, and by the members of each group."""

    overall: Mapping[Ask, int]
    by_group: Mapping[str, Mapping[Ask, int]]

    def plus(self, waiting: Waiting) -> Asked:
        """With one more request."""
        ask, group = ask_of(waiting), waiting.claim.group
        of_group = self.by_group.get(group, {})
        return Asked(
            {**self.overall, ask: self.overall.get(ask, 0) + 1},
            {**self.by_group, group: {**of_group, ask: of_group.get(ask, 0) + 1}},
        )

    def others(self, groups: Collection[str]) -> Collection[Ask]:
        """What is asked for by somebody who is in none of these groups."""
        of_groups: Counter[Ask] = Counter()
        for group in groups:
            of_groups.update(self.by_group.get(group, {}))
        return [ask for ask, count in self.overall.items() if count > of_groups[ask]]


class _GroupKey(NamedTuple):
    """A group's place among the groups, as it was when so many had been `given` devices."""

    has_guarantee: bool
    use: float
    number: int
    group: str
    given: int


class Lineup:
    """The waiting in the order in which they are served; iterate once.

    What is `placed` on the way counts as use at once, so one group doesn't get everything that is free now.
    """

    def __init__(
        self,
        everybody: Mapping[str, Waiting],
        classes: Mapping[int, Mapping[str, Mapping[str, Waiting]]],
        fair: FairShare | None,
        moments: tuple[float, float],
        without: str | None,
        asked: Asked,
    ) -> None:
        self.everybody = everybody
        self.asked = asked
        self._classes = classes
        self._fair = fair
        self._now_seconds, self._overdue_before = moments
        self._left_out = {without}
        self.settled: Callable[[str], bool] = lambda group: False
        """Whether it is known what becomes of everybody in the group: then nobody of it need come."""
        self._users: defaultdict[str, float] = defaultdict(float)
        self._groups: defaultdict[str, float] = defaultdict(float)
        self._given = 0
        """How many were placed: what was counted before the last one may have grown since."""

    def __iter__(self) -> Iterator[Waiting]:
        for waiting in self.everybody.values():
            if waiting.since_seconds > self._overdue_before:
                break
            yield from self._once(waiting)
        for priority in sorted(self._classes, reverse=True):
            groups = self._classes[priority]
            yield from self._by_arrival(groups) if self._fair is None else self._by_use(groups, self._fair)

    def if_nothing_is_placed(self) -> list[Waiting]:
        """The same order as a list, for who only counts: what a walk does after each place is left out."""
        overdue = self._overdue()
        found: list[Waiting] = []
        for priority in sorted(self._classes, reverse=True):
            groups = self._classes[priority]
            if self._fair is None:
                found += sorted(chain.from_iterable(members.values() for members in groups.values()))
                continue
            for key in sorted(self._group_keys(groups, groups, self._fair)):
                members = groups[key.group].values()
                users = [each.user for each in members]
                standings = self._fair.user_standings(users, self._now_seconds, self._users)
                found += [waiting for _, waiting in sorted(zip(standings, members, strict=True))]
        left_out = self._left_out.union(overdue)
        if left_out == {None}:
            return found
        return [
            *(each for each in overdue.values() if each.lease_id not in self._left_out),
            *(each for each in found if each.lease_id not in left_out),
        ]

    def _overdue(self) -> dict[str, Waiting]:
        """Who has waited longer than the patience of the site, by arrival."""
        found: dict[str, Waiting] = {}
        for waiting in self.everybody.values():
            if waiting.since_seconds > self._overdue_before:
                break
            found[waiting.lease_id] = waiting
        return found

    def before(self, lease_id: str) -> Iterator[Waiting]:
        """Those who come before this one if nothing is placed, in no order: nobody need be sorted for it."""
        mine, overdue = self.everybody[lease_id], self._overdue()
        yield from takewhile(lambda each: each is not mine, overdue.values())
        if lease_id in overdue:
            return
        priority = mine.claim.priority
        higher = [groups for each, groups in self._classes.items() if each > priority]
        members = chain.from_iterable(of_group.values() for groups in higher for of_group in groups.values())
        for waiting in chain(members, self._before_in_class(mine, self._classes[priority])):
            if waiting.lease_id not in overdue:
                yield waiting

    def _before_in_class(
        self, mine: Waiting, groups: Mapping[str, Mapping[str, Waiting]]
    ) -> Iterator[Waiting]:
        if self._fair is None:
            for members in groups.values():
                yield from takewhile(lambda each: each.number < mine.number, members.values())
            return
        keys = {key.group: key for key in self._group_keys(groups, groups, self._fair)}
        own = keys[mine.claim.group]
        for key in keys.values():
            if key < own:
                yield from groups[key.group].values()
        equals = groups[mine.claim.group].values()
        users = [mine.user, *(each.user for each in equals)]
        use, *uses = self._fair.user_standings(users, self._now_seconds, self._users)
        yield from (each for each, its in zip(equals, uses, strict=True) if (its, each) < (use, mine))

    def first(self, groups: Iterable[str]) -> Iterator[Waiting]:
        """The waiting of these groups by arrival; they don't come again after."""
        chosen = frozenset(groups)
        for waiting in self.everybody.values() if chosen else ():
            if waiting.claim.group in chosen and waiting.lease_id not in self._left_out:
                yield waiting

    def placed(self, waiting: Waiting, devices: float) -> None:
        """`waiting` gets so many devices now."""
        self._given += 1
        self._left_out.add(waiting.lease_id)
        self._users[waiting.user] += devices
        self._groups[waiting.claim.group] += devices

    def _once(self, waiting: Waiting) -> Iterator[Waiting]:
        if waiting.lease_id not in self._left_out:
            self._left_out.add(waiting.lease_id)
            yield waiting

    def _by_arrival(self, groups: Mapping[str, Mapping[str, Waiting]]) -> Iterator[Waiting]:
        for waiting in heapq.merge(*(members.values() for members in groups.values())):
            yield from self._once(waiting)

    def _by_use(self, groups: Mapping[str, Mapping[str, Waiting]], fair: FairShare) -> Iterator[Waiting]:
        """The groups by their use; keys only grow, so one that is no longer the least is put back."""
        heap = self._group_keys(groups, groups, fair)
        heapq.heapify(heap)
        members_left: dict[str, Iterator[Waiting]] = {}
        while heap:
            key = heapq.heappop(heap)
            group = key.group
            if self.settled(group):
                continue
            if key.given != self._given:
                (key,) = self._group_keys((group,), groups, fair)
                if heap and key > heap[0]:
                    heapq.heappush(heap, key)
                    continue
            if group not in members_left:
                members_left[group] = self._members_by_use(groups[group], fair)
            waiting = next(members_left[group], None)
            if waiting is not None:
                yield waiting
                heapq.heappush(heap, key)

    def _group_keys(
        self, some: Collection[str], groups: Mapping[str, Mapping[str, Waiting]], fair: FairShare
    ) -> list[_GroupKey]:
        standings = fair.group_standings(some, self._now_seconds, self._groups)
        keys, given = [], self._given
        for group, (use, held) in zip(some, standings, strict=True):
            first = next(iter(groups[group].values()))
            claim = first.claim
            entitled = held >= claim.guaranteed_devices
            keys.append(_GroupKey(entitled, use / claim.weight, first.number, group, given))
        return keys

    def _members_by_use(self, members: Mapping[str, Waiting], fair: FairShare) -> Iterator[Waiting]:
        at, more, given = self._now_seconds, self._users, self._given
        standings = fair.user_standings([each.user for each in members.values()], at, more)
        heap = list(zip(standings, members.values(), strict=True))
        heapq.heapify(heap)
        while heap:
            use, waiting = heapq.heappop(heap)
            if self._given != given:
                (now,) = fair.user_standings((waiting.user,), at, more)
                if now > use and heap and (now, waiting) > heap[0]:
                    heapq.heappush(heap, (now, waiting))
                    continue
            yield from self._once(waiting)


def competes(one: Want, other: Want, kinds: Iterable[Kind]) -> bool:
    """Whether some kind of device suits both."""
    return any(suits(one, kind) and suits(other, kind) for kind in kinds)
