"""First come, first served among competitors: by example and against a naive queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from gpuspawner.broker.decide.line.backfill import Fleet, plan
from gpuspawner.broker.decide.line.fairshare import FairShare
from gpuspawner.broker.decide.line.queue import Claim, Lineup, Place, Queue, Waiting, claim_from, competes
from gpuspawner.broker.decide.place.placement import Kind, Room, kind_of, rank, servable, whole_share
from gpuspawner.core.model import Device
from gpuspawner.core.quota import Allowance
from gpuspawner.core.want import Want
from hypothesis import given
from hypothesis import strategies as st

MODELS = ["A100 40GB", "A100 80GB", "H100 80GB"]
ANY, A100, H100, PAIR = Want(1, None), Want(1, "A100"), Want(1, "H100"), Want(2, None)


def kind(model: str) -> Kind:
    return kind_of(Device("GPU", model, 40 << 30))


HEALTHY = {kind(model): 9 for model in MODELS}


def fleet(rooms: Mapping[Kind, list[Room]], healthy: Mapping[Kind, int]) -> Fleet:
    """Devices of which the others are held by nobody knows whom, for nobody knows how long."""
    by_uuid = {room.device.uuid: room for each in rooms.values() for room in each}
    return Fleet(rooms, lambda want: servable(want, healthy), lambda: by_uuid)


def queue_of(*wants: Want) -> Queue:
    queue = Queue(map(kind, MODELS))
    for number, want in enumerate(wants, 1):
        queue.add(Waiting(number, f"lease-{number}", want))
    return queue


def rooms_of(*models: str) -> dict[Kind, list[Room]]:
    rooms: dict[Kind, list[Room]] = {}
    for number, model in enumerate(models):
        rooms.setdefault(kind(model), []).append(Room(Device(f"GPU-{number}", model, 40 << 30, index=number)))
    return rooms


def test_place_counts_those_who_compete() -> None:
    queue = queue_of(A100, H100, ANY, H100, A100)
    places = {waiting.lease_id: queue.place_of(waiting.lease_id) for waiting in queue.in_order()}
    assert places == {
        "lease-1": Place(1, 3),
        "lease-2": Place(1, 3),
        "lease-3": Place(3, 5),
        "lease-4": Place(3, 3),
        "lease-5": Place(3, 3),
    }
    assert (queue.count(A100), queue.count(H100), queue.count(PAIR), queue.count(Want(1, "V100"))) == (
        3,
        3,
        5,
        0,
    )
    assert queue.place_of("nobody") is None


def test_leaving_moves_everybody_up() -> None:
    queue = queue_of(ANY, ANY, ANY)
    queue.remove("lease-2")
    assert [queue.place_of(f"lease-{number}") for number in (1, 2, 3)] == [Place(1, 2), None, Place(2, 2)]
    assert ("lease-2" in queue, "lease-3" in queue, len(queue)) == (False, True, 2)


def test_nobody_waits_twice() -> None:
    queue = queue_of(ANY)
    with pytest.raises(ValueError, match="lease lease-1 is in the queue already"):
        queue.add(Waiting(2, "lease-1", ANY))
    with pytest.raises(KeyError):
        queue.remove("lease-2")


def test_other_devices_other_competitors() -> None:
    queue = queue_of(A100, H100)
    assert queue.place_of("lease-2") == Place(1, 1)
    queue.set_kinds([kind("A100 faked as H100")])
    assert queue.place_of("lease-2") == Place(2, 2)


@pytest.mark.parametrize(
    ("wants", "models", "placed"),
    [
        ([ANY, ANY], ["A100 40GB"], {1: [0]}),
        ([H100, ANY], ["A100 40GB"], {2: [0]}),  # other devices: passed by
        ([PAIR, ANY], ["A100 40GB"], {}),  # the pair keeps the first of its two from all who came later
        ([PAIR, ANY], ["A100 40GB", "A100 40GB"], {1: [0, 1]}),
        ([PAIR, ANY], ["A100 40GB", "A100 40GB", "H100 80GB"], {1: [0, 1], 2: [2]}),
        ([H100, ANY, H100], ["H100 80GB", "H100 80GB"], {1: [0], 2: [1]}),
        ([Want(2, "H100"), ANY, H100], ["H100 80GB", "A100 40GB"], {2: [1]}),
    ],
)
def test_plan_by_example(wants: list[Want], models: list[str], placed: dict[int, list[int]]) -> None:
    rooms = rooms_of(*models)
    expected = {f"lease-{who}": tuple(f"GPU-{which}" for which in got) for who, got in placed.items()}
    found = plan(queue_of(*wants).lineup(), fleet(rooms, HEALTHY))
    assert {who: tuple(share.device_uuid for share in shares) for who, shares in found.items()} == expected


wants = st.builds(Want, st.integers(1, 3), st.sampled_from([None, "A100", "h100", "80gb", "V100"]))


@given(
    st.lists(wants, max_size=8),
    st.lists(st.sampled_from(MODELS), max_size=6),
    st.lists(st.sampled_from(MODELS), max_size=3),
    st.integers(0, 9),
)
def test_plan_against_the_naive_queue(
    line: list[Want], models: list[str], leased: list[str], skipped: int
) -> None:
    """`models` are free, `leased` healthy and held by others; nothing else is in service."""
    rooms = rooms_of(*models)
    healthy = Counter(map(kind, models + leased))
    before = {kind: list(listed) for kind, listed in rooms.items()}
    skip = f"lease-{skipped}"
    found = plan(queue_of(*line).lineup(without=skip), fleet(rooms, healthy))
    assert rooms == before
    free = {f"GPU-{number}": model for number, model in enumerate(models)}
    blocked: set[str] = set()
    for number, want in enumerate(line, 1):
        if number == skipped:
            assert skip not in found
            continue
        able = {u for u, m in free.items() if u not in blocked and (want.model or "") in m.lower()}
        shares = found.get(f"lease-{number}")
        if len(able) < want.device_count:
            assert shares is None
            in_service = [m for m in models + leased if (want.model or "") in m.lower()]
            if len(in_service) < want.device_count:
                continue
            blocked |= {u for u, m in free.items() if (want.model or "") in m.lower()}
            continue
        assert shares is not None
        chosen = [share.device_uuid for share in shares]
        assert len(set(chosen)) == want.device_count
        assert set(chosen) <= able
        for uuid in chosen:
            del free[uuid]


@given(
    st.lists(wants, max_size=10), st.lists(st.sampled_from(MODELS), max_size=3), st.sets(st.integers(1, 10))
)
def test_places_against_the_naive_queue(line: list[Want], models: list[str], leavers: set[int]) -> None:
    queue = queue_of(*line)
    kinds = list(map(kind, models))
    queue.set_kinds(kinds)
    for number in leavers & set(range(1, len(line) + 1)):
        queue.remove(f"lease-{number}")
    left = [(number, want) for number, want in enumerate(line, 1) if number not in leavers]
    assert queue.in_order() == [Waiting(number, f"lease-{number}", want) for number, want in left]
    for number, want in left:
        rivals = [n for n, other in left if other == want or competes(want, other, kinds)]
        assert queue.place_of(f"lease-{number}") == Place(rivals.index(number) + 1, len(rivals))


def test_planning_does_not_look_at_everybody() -> None:
    """10,000 who want the same cost as much as one: only who is next is tried."""
    queue = Queue(map(kind, MODELS))
    for number in range(10_000):
        queue.add(Waiting(number, f"lease-{number}", ANY))
    read = 0

    class Counted(Lineup):
        def __iter__(self) -> Iterator[Waiting]:
            nonlocal read
            for waiting in super().__iter__():
                read += 1
                yield waiting

    device = Device("GPU-0", "H100 80GB", 80 << 30)
    lineup = queue.lineup()
    lineup.__class__ = Counted
    found = plan(lineup, fleet({kind_of(device): [Room(device)]}, HEALTHY))
    assert found == {"lease-0": (whole_share(device),)}
    assert read <= 2
    assert rank(Room(device)) == (80 << 30, 100.0, 1 << 30, "GPU-0")


def test_what_a_quota_gives_a_request() -> None:
    allowed = Allowance(group="a", priority=3, weight=2.0, guaranteed_devices=1.0, session_seconds=3600.0)
    assert claim_from(allowed) == Claim("a", 3, 2.0, 1.0, 3600.0)
    assert claim_from(allowed, Allowance(group="lab", weight=5.0, priority=9)) == Claim(
        "lab", 3, 5.0, 0.0, 3600.0
    )
    assert claim_from(allowed, None, 60.0).session_seconds == 60.0
    assert claim_from(Allowance()).session_seconds is None
    assert claim_from(Allowance(), None, 60.0).session_seconds == 60.0


@given(st.data())
def test_who_only_counts_sees_the_order_of_a_walk_on_which_nothing_is_placed(data: st.DataObject) -> None:
    fair = data.draw(st.sampled_from([None, FairShare()]))
    queue = Queue(map(kind, MODELS), fair, patience_seconds=50.0)
    names, number = st.sampled_from("abc"), st.integers(0, 2)
    for index in range(data.draw(st.integers(0, 12))):
        claim = Claim(data.draw(names), data.draw(number), 1.0 + data.draw(number), 1.0 * data.draw(number))
        since = 60.0 + data.draw(st.integers(0, 40)) + index
        queue.add(Waiting(index, f"lease-{index}", data.draw(wants), data.draw(names), since, claim))
    for _ in range(data.draw(number) if fair is not None else 0):
        fair.hold(data.draw(names), data.draw(names), 1.0, 50.0)
    without = data.draw(st.sampled_from([None, "lease-0", "lease-3"]))
    for _ in range(2):
        walked = list(queue.lineup(130.0, without))
        assert queue.lineup(130.0, without).if_nothing_is_placed() == walked
    for waiting in queue.in_order():
        rivals = [each for each in queue.lineup(130.0) if competes(each.want, waiting.want, HEALTHY)]
        if rivals:
            place = Place(rivals.index(waiting) + 1, len(rivals))
            assert queue.place_of(waiting.lease_id, 130.0) == place
            queue.changed()
            for _ in ("counted by itself", "counted with all"):
                assert queue.place_of(waiting.lease_id, 130.0) == place
