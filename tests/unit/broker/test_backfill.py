"""Who passes whom: by example, the order against its plain definition, and the bound on waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import pytest
from gpuspawner.broker.decide.line.backfill import Fleet, Holding, SessionHold, plan
from gpuspawner.broker.decide.line.fairshare import PREPAID_SECONDS, FairShare
from gpuspawner.broker.decide.line.queue import Claim, Queue, Waiting
from gpuspawner.broker.decide.place.placement import Kind, Room, Share, rank, servable, suits
from gpuspawner.broker.decide.place.sharing_rules import WHOLE, SharingRules
from gpuspawner.core.model import Device, Mode
from gpuspawner.core.want import Want
from hypothesis import given, settings
from hypothesis import strategies as st

HOUR, GIB = 3600.0, 1 << 30
ONE, PAIR, FOUR = Want(1, None), Want(2, None), Want(4, None)
SLICES = SharingRules("slices", Mode.SLICE, sizes_bytes=(10 * GIB, 20 * GIB, 40 * GIB, 80 * GIB))


def small(size: int) -> Want:
    return Want(1, mode=Mode.SLICE, memory_bytes=size * GIB)


@dataclass
class Site:
    """Devices, who holds them, and a queue: the rules of `plan` driven by hand."""

    count: int = 4
    terms: SharingRules = WHOLE
    fair: FairShare | None = None
    patience_seconds: float = 1e9
    sessions: tuple[SessionHold, ...] = ()
    now: float = 0.0
    held: dict[str, Holding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.devices = [Device(f"GPU-{n}", "H100", 80 * GIB, index=n) for n in range(self.count)]
        self.kinds = {Room(device, terms=self.terms).kind: self.count for device in self.devices}
        self.queue = Queue(self.kinds, self.fair, self.patience_seconds)
        self.number = 0

    def rooms(self) -> dict[str, Room]:
        shares: dict[str, tuple[Share, ...]] = {}
        for each in self.held.values():
            for share in each.shares:
                shares[share.device_uuid] = (*shares.get(share.device_uuid, ()), share)
        return {d.uuid: Room(d, shares.get(d.uuid, ()), self.terms) for d in self.devices}

    def ask(self, want: Want, session: float | None = None, **claim: object) -> str:
        self.number += 1
        name = str(claim.pop("name", f"lease-{self.number}"))
        user = str(claim.pop("user", name))
        made = Claim(session_seconds=session, **claim)  # type: ignore[arg-type]
        self.queue.add(Waiting(self.number, name, want, user, self.now, made))
        return name

    def plan(self) -> dict[str, tuple[Share, ...]]:
        """Everybody who can begin begins; lease id → shares."""
        rooms = self.rooms()
        free: dict[Kind, list[Room]] = {}
        for room in sorted(rooms.values(), key=rank):
            if not room.full:
                free.setdefault(room.kind, []).append(room)
        holdings = tuple(self.held.values())
        fleet = Fleet(
            free,
            lambda want: servable(want, self.kinds),
            cache(lambda: rooms),
            lambda: holdings,
            self.sessions,
        )
        found = plan(self.queue.lineup(self.now), fleet, self.now)
        waiting = {each.lease_id: each for each in self.queue.in_order()}
        for name, shares in found.items():
            claim = waiting[name].claim
            ends = None if claim.session_seconds is None else self.now + claim.session_seconds
            self.held[name] = Holding(name, shares, ends, claim.group)
            self.queue.remove(name)
            if self.fair is not None:
                self.fair.hold(waiting[name].user, claim.group, len(shares), self.now)
        return found

    def begun(self) -> list[str]:
        return list(self.plan())

    def end(self, *names: str) -> None:
        for name in names:
            del self.held[name]


def test_short_ones_pass_a_big_one_that_must_wait() -> None:
    site = Site()
    long = [site.ask(ONE, 2 * HOUR) for _ in range(2)]
    assert site.begun() == long
    four = site.ask(FOUR, HOUR)
    too_long, unlimited, short, shorter = (
        site.ask(ONE, 3 * HOUR), site.ask(ONE), site.ask(ONE, 2 * HOUR), site.ask(ONE, HOUR)
    )  # fmt: skip
    assert site.begun() == [short, shorter]
    site.now = HOUR
    site.end(shorter)
    assert site.begun() == []  # whoever is left would still run when the four could begin
    site.now = 2 * HOUR
    site.end(*long, short)
    assert site.begun() == [four]
    site.now = 3 * HOUR
    site.end(four)
    assert site.begun() == [too_long, unlimited]


def test_where_no_end_is_known_nobody_passes() -> None:
    site = Site()
    site.ask(ONE)
    site.plan()
    site.ask(FOUR)
    site.ask(ONE, 60.0)
    assert site.begun() == []


def test_slices_pass_on_devices_that_the_big_one_does_not_wait_for() -> None:
    site = Site(count=2, terms=SLICES)
    first = [site.ask(small(40), 2 * HOUR), site.ask(small(40), 4 * HOUR)]
    assert [len(shares) for shares in site.plan().values()] == [1, 1]
    big, other, third = (
        site.ask(small(80), HOUR),
        site.ask(small(40), 9 * HOUR),
        site.ask(small(40), 9 * HOUR),
    )
    found = site.plan()
    # The big one waits for the device whose session ends after two hours; the other device is not touched.
    waits_for, beside = (site.held[name].shares[0].device_uuid for name in first)
    assert {name: shares[0].device_uuid for name, shares in found.items()} == {other: beside}
    site.now = 2 * HOUR
    site.end(first[0])
    assert {name: shares[0].device_uuid for name, shares in site.plan().items()} == {big: waits_for}
    assert third in site.queue


def test_room_beside_a_reservation_is_used() -> None:
    """The big one needs 40 of the device's 80 GiB: a small one on the same device is not in its way."""
    site = Site(count=1, terms=SLICES)
    site.ask(small(40), HOUR)
    site.ask(small(20), 3 * HOUR)
    site.plan()
    big, small_one, next_one = site.ask(small(40), HOUR), site.ask(small(20), 9 * HOUR), site.ask(small(10))
    assert site.begun() == [small_one]
    site.now = HOUR
    site.end("lease-1")
    assert site.begun() == [big]
    assert next_one in site.queue


def test_who_waited_too_long_is_the_first() -> None:
    fair = FairShare()
    site = Site(count=1, fair=fair, patience_seconds=10 * HOUR)
    fair.add_past("ada", "", 8, -100 * HOUR, 0)
    site.ask(ONE, HOUR, user="ben")
    site.plan()
    ada = site.ask(ONE, HOUR, user="ada")
    for hour in range(1, 10):
        site.now = hour * HOUR
        site.end(*site.held)
        light = site.ask(ONE, HOUR, user=f"user-{hour}")
        assert site.begun() == [light]
    site.now = 10 * HOUR
    site.end(*site.held)
    site.ask(ONE, HOUR, user="eve", priority=9)
    assert site.begun() == [ada]


def test_priority_then_guarantee_then_use_for_weight() -> None:
    fair = FairShare()
    fair.add_past("u1", "heavy", 1, -3 * HOUR, 0)
    fair.add_past("u2", "weighted", 1, -6 * HOUR, 0)
    fair.add_past("u3", "promised", 1, -9 * HOUR, 0)
    site = Site(count=0, fair=fair)
    heavy = site.ask(ONE, group="heavy", user="u1")
    weighted = site.ask(ONE, group="weighted", user="u2", weight=3)
    promised = site.ask(ONE, group="promised", user="u3", guaranteed_devices=1)
    beyond = site.ask(ONE, group="promised", user="u3", guaranteed_devices=1)
    urgent = site.ask(ONE, group="heavy", user="u1", priority=1)
    lineup, order = site.queue.lineup(0.0), []
    for waiting in lineup:
        order.append(waiting.lease_id)
        lineup.placed(waiting, 1.0)
    assert order == [urgent, promised, weighted, heavy, beyond]


def lab(**more: object) -> SessionHold:
    given = {"group": "cs", "want": ONE, "count": 2, "from_seconds": HOUR, "begins_seconds": 2 * HOUR,
             "ends_seconds": 4 * HOUR, **more}  # fmt: skip
    return SessionHold(**given)  # type: ignore[arg-type]


def test_capacity_is_kept_for_a_lab_session() -> None:
    site = Site(count=3, sessions=(lab(),))
    before = site.ask(ONE)
    assert site.begun() == [before]  # the lead time has not begun
    site.now = HOUR
    unlimited, long, short = site.ask(ONE), site.ask(ONE, 1.5 * HOUR), site.ask(ONE, HOUR)
    assert site.begun() == [short]  # it ends as the session begins; the other place is kept as well
    site.now = 2 * HOUR
    site.end(short)
    late, student, other = site.ask(ONE, 60.0), site.ask(ONE, group="cs"), site.ask(ONE, group="cs")
    third = site.ask(ONE, group="cs")
    assert site.begun() == [student, other]
    site.now = 4 * HOUR
    site.end(student)
    assert site.begun() == [unlimited]
    assert [each.lease_id for each in site.queue.in_order()] == [long, late, third]


def test_a_lab_session_that_uses_less_leaves_the_rest() -> None:
    site = Site(count=3, sessions=(lab(count=1),), now=2 * HOUR)
    names = [site.ask(ONE, HOUR) for _ in range(3)]
    assert site.begun() == names[:2]


# The order against its plain definition.

asks = st.tuples(
    st.sampled_from(["a", "b", "c"]),  # group
    st.sampled_from(["u", "v", "w", "x"]),
    st.integers(0, 1),  # priority
    st.booleans(),  # has waited too long
)
past = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvwx"), st.integers(0, 9)), max_size=6)


@settings(max_examples=150)
@given(st.lists(asks, max_size=10), past, st.sets(st.integers(0, 9)))
def test_the_order_is_the_least_key_again_and_again(
    line: list[tuple[str, str, int, bool]], before: list[tuple[str, str, int]], served: set[int]
) -> None:
    """`served` are those who get a device in their turn: it counts as use for those behind them."""
    fair, weights, promised = FairShare(), {"a": 1.0, "b": 2.0, "c": 4.0}, {"a": 0.0, "b": 1.0, "c": 2.0}
    for group, user, hours in before:
        fair.add_past(user, group, 1, -hours * HOUR, 0)
    queue = Queue((), fair, patience_seconds=100.0)
    line = sorted(line, key=lambda each: not each[3])  # who waited longest came first
    for number, (group, user, priority, late) in enumerate(line):
        claim = Claim(group, priority, weights[group], promised[group])
        queue.add(Waiting(number, str(number), ONE, user, -100.0 if late else 0.0, claim))
    left = {each.number: each for each in queue.in_order()}
    oldest = {}
    for each in left.values():
        oldest.setdefault((each.claim.priority, each.claim.group), each.number)
    users: Counter[str] = Counter()
    groups: Counter[str] = Counter()

    def key(each: Waiting) -> tuple[object, ...]:
        claim = each.claim
        if each.since_seconds <= -100.0:
            return (0, each.number)
        own = fair.user_use(each.user, 0) + users[each.user] * PREPAID_SECONDS
        use = fair.group_use(claim.group, 0) + groups[claim.group] * PREPAID_SECONDS
        beyond = groups[claim.group] >= claim.guaranteed_devices
        first = oldest[claim.priority, claim.group]
        return (1, -claim.priority, beyond, use / claim.weight, first, own, each.number)

    lineup, expected, found = queue.lineup(0.0), [], []
    for waiting in lineup:
        found.append(waiting.number)
        chosen = min(left.values(), key=key)
        expected.append(chosen.number)
        del left[chosen.number]
        if waiting.number in served:
            users[waiting.user] += 1
            groups[waiting.claim.group] += 1
            lineup.placed(waiting, 1.0)
        assert found == expected
    assert left == {}


# The bound on waiting.

L, A = 4, 6
"""In minutes: the longest session, and the patience of the queue."""
arrivals = st.lists(
    st.tuples(
        st.integers(0, 3),  # minutes since the one before
        st.sampled_from(["one", "pair", "four", "10", "40", "80"]),
        st.integers(1, L),  # the longest that it may take
        st.integers(1, L),  # what it takes
        st.sampled_from(["ada", "ben", "eve"]),
        st.integers(0, 2),  # priority
        st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(arrivals, st.booleans())
def test_nobody_waits_longer_than_the_bound(
    line: list[tuple[int, str, int, int, str, int, str]], sliced: bool
) -> None:
    """Minute by minute: no device holds too much, and nobody waits longer than A + (m + 1) L."""
    wants = {"one": ONE, "pair": PAIR, "four": FOUR, "10": small(10), "40": small(40), "80": small(80)}
    site = Site(count=4, terms=SLICES if sliced else WHOLE, fair=FairShare(60.0), patience_seconds=A)
    coming, at = [], 0
    for gap, want, limit, takes, user, priority, group in line:
        at += gap
        if all(suits(wants[want], kind) for kind in site.kinds):
            coming.append((at, wants[want], limit, min(limit, takes), user, priority, group))
    ends: dict[str, int] = {}
    latest: dict[str, float] = {}
    takes_of: dict[str, int] = {}
    minute = 0
    while coming or len(site.queue) or site.held:
        site.now = float(minute)
        site.end(*[name for name in list(site.held) if ends[name] <= minute])
        while coming and coming[0][0] <= minute:
            _, want, limit, takes, user, priority, group = coming.pop(0)
            earlier = len(site.queue)
            name = site.ask(
                want, float(limit), user=user, name=f"{site.number + 1}", priority=priority, group=group
            )
            latest[name] = minute + A + (earlier + 1) * L
            takes_of[name] = takes
        for name in site.plan():
            assert minute <= latest[name]
            ends[name] = minute + takes_of[name]
        check_rooms(site.rooms().values())
        assert all(minute <= latest[each.lease_id] for each in site.queue.in_order())
        minute += 1


def check_rooms(rooms: Iterable[Room]) -> None:
    for room in rooms:
        assert sum(share.memory_bytes for share in room.shares) <= room.device.memory_bytes
        assert len(room.shares) <= 1 or room.terms.sliced


@pytest.mark.parametrize("waiting", [0, 3])
def test_the_bound_is_reached_by_who_deserves_least(waiting: int) -> None:
    """Patience counts from the arrival: a heavy user's request starts within one session after it."""
    fair = FairShare(60.0)
    fair.add_past("heavy", "", 4, -500.0, 0.0)
    site = Site(count=1, fair=fair, patience_seconds=A)
    for _ in range(waiting):
        site.ask(ONE, L, user="heavy")
    mine, started = site.ask(ONE, L, user="heavy"), None
    for minute in range(A + (waiting + 2) * L):
        site.now = float(minute)
        if minute % L == 0:
            site.end(*site.held)
        site.ask(ONE, L, user=f"new-{minute}")
        if mine in site.plan():
            started = minute
            break
    assert started is not None
    assert A <= started <= A + (waiting + 1) * L
