"""Which devices a request gets, by example and against a naive answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from gpuspawner.broker.decide.place.placement import (
    Kind,
    Room,
    Share,
    kind_of,
    place,
    rank,
    take,
    whole_share,
)
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.core.model import Device, Mode
from gpuspawner.core.want import Want
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
A0 = Device("GPU-a0", "A100 40GB", 40 * GIB, index=0)
A1 = Device("GPU-a1", "A100 40GB", 40 * GIB, index=1)
H2 = Device("GPU-h2", "H100 80GB", 80 * GIB, index=2)
H3 = Device("GPU-h3", "H100 80GB", 80 * GIB, index=3)
H10 = Device("GPU-h10", "H100 80GB", 80 * GIB, index=10)
NAMELESS = Device("GPU-z", "H100 80GB", 80 * GIB)


def rooms_of(devices: Iterable[Device]) -> dict[Kind, list[Room]]:
    rooms: dict[Kind, list[Room]] = {}
    for device in devices:
        rooms.setdefault(kind_of(device), []).append(Room(device))
    return {kind: sorted(listed, key=rank) for kind, listed in rooms.items()}


@pytest.mark.parametrize(
    ("want", "devices", "expected"),
    [
        (Want(1, None), [], None),
        (Want(1, None), [H2], [H2]),
        (Want(1, None), [H2, A1, A0], [A0]),  # the smallest that does: an H100 stays for who asks for it
        (Want(1, "h100"), [A0, H10, H3], [H3]),  # 3 before 10: by index, not by text
        (Want(1, "H100"), [NAMELESS, H10], [H10]),  # no index: last
        (Want(1, "V100"), [A0, H2], None),
        (Want(2, None), [A0, H3, H2], [H2, H3]),  # two of one kind rather than a small and a large one
        (Want(2, None), [A0, A1, H2, H3], [A0, A1]),
        (Want(3, None), [H3, H2, A0], [A0, H2, H3]),  # mixed only where nothing else does
        (Want(3, "h100"), [H3, H2, A0], None),
        (Want(4, None), [H3, H2, A0], None),
    ],
)
def test_by_example(want: Want, devices: list[Device], expected: list[Device] | None) -> None:
    shares = None if expected is None else tuple(map(whole_share, expected))
    assert place(want, rooms_of(devices)) == shares


A5, B6, B7 = (
    replace(H2, uuid="GPU-5", node="a"),
    replace(H2, uuid="GPU-6", node="b"),
    replace(H3, uuid="GPU-7", node="b"),
)
SMALL = replace(A0, uuid="GPU-8", node="a")


@pytest.mark.parametrize(
    ("want", "devices", "expected"),
    [
        (Want(1, None), [A5, B6, B7], [A5]),  # node b keeps two for who asks for two
        (Want(1, None), [B6, A5], [A5]),  # equal: by name
        (Want(2, None), [A5, B6, B7], [B6, B7]),
        (Want(2, None), [A5, SMALL, B6], [SMALL, A5]),  # of two kinds, but never of two nodes
        (Want(2, None), [A5, B6], None),
        (Want(3, None), [A5, SMALL, B6, B7], None),
        (Want(1, None, node="b"), [A5, B6, B7], [B6]),  # the user's files are on b
        (Want(2, None, node="a"), [A5, B6, B7], None),
        (Want(1, None, node="c"), [A5, B6, B7], None),
    ],
)
def test_devices_of_a_lease_are_of_one_node(
    want: Want, devices: list[Device], expected: list[Device] | None
) -> None:
    shares = None if expected is None else tuple(map(whole_share, expected))
    assert place(want, rooms_of(devices)) == shares
    assert place(want, rooms_of(devices[::-1])) == shares


def test_a_slice_goes_to_the_emptiest_device_of_all_nodes() -> None:
    terms = SharingRules("s", Mode.SLICE, slices=4)
    held = Share(A5.uuid, GIB, 25.0)
    rooms = {
        kind_of(A5, terms): [Room(A5, (held,), terms)],
        kind_of(B6, terms): [Room(B7, (), terms), Room(B6, (replace(held, device_uuid=B6.uuid),), terms)],
    }
    (share,) = place(Want(1, mode=Mode.SLICE), rooms) or ()
    assert share == Share(B7.uuid, 20 * GIB, 100.0)


def test_a_seat_in_turns_is_on_the_node_with_the_fewest_leases_for_each_device() -> None:
    terms = SharingRules("t", Mode.TURNS, seats=8)
    seats = [Share(A5.uuid, GIB, 100.0, in_turns=True)] * 2
    others = [[replace(each, device_uuid=b.uuid) for each in (*seats, seats[0])] for b in (B6, B7)]
    rooms = {
        kind_of(A5, terms): [Room(A5, tuple(seats), terms)],
        kind_of(B6, terms): [Room(B6, tuple(others[0]), terms), Room(B7, tuple(others[1]), terms)],
    }
    shares = place(Want(1, mode=Mode.TURNS), rooms) or ()
    assert [share.device_uuid for share in shares] == [B6.uuid, B7.uuid]


@pytest.mark.parametrize(
    ("want", "first", "expected"),
    [
        (Want(1, None), {"b"}, [B6]),  # has the image; by the other rules, a comes first
        (Want(1, None), {"a", "b"}, [A5]),
        (Want(1, None), {"c"}, [A5]),
        (Want(1, None, node="a"), {"b"}, [A5]),  # the user's files are there
        (Want(2, None), {"a"}, [B6, B7]),  # a has one only
    ],
)
def test_a_node_with_the_image_comes_first(want: Want, first: set[str], expected: list[Device]) -> None:
    assert place(want, rooms_of([A5, B6, B7]), first) == tuple(map(whole_share, expected))


def test_an_image_takes_no_larger_device_than_needed() -> None:
    rooms = rooms_of([SMALL, B6])
    assert place(Want(1, None), rooms, {"b"}) == (whole_share(SMALL),)
    other = replace(B6, model="A80 80GB", node="c")  # as much memory, and earlier in the alphabet
    assert place(Want(1, None), rooms_of([B6, other]), {"b"}) == (whole_share(B6),)


def test_slices_and_seats_in_turns_go_where_the_image_is() -> None:
    held = Share(B6.uuid, GIB, 25.0)
    for mode, terms in (
        (Mode.SLICE, SharingRules("s", Mode.SLICE, slices=4)),
        (Mode.TURNS, SharingRules("t", Mode.TURNS, seats=4)),
    ):
        taken = replace(held, in_turns=mode is Mode.TURNS)
        rooms = {kind_of(A5, terms): [Room(A5, (), terms)], kind_of(B6, terms): [Room(B6, (taken,), terms)]}
        for first, node in (((), A5), ({"b"}, B6)):
            shares = place(Want(1, mode=mode), rooms, first) or ()
            assert [share.device_uuid for share in shares] == [node.uuid]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([40, 80])), min_size=1, max_size=6),
    st.sets(st.sampled_from("abc")),
    st.integers(1, 3),
)
def test_the_image_decides_only_among_equals(
    found: list[tuple[str, int]], first: set[str], count: int
) -> None:
    """Against a naive answer: of the nodes with enough devices of the smallest size, one with the image."""
    devices = [
        Device(f"GPU-{number}", f"G{size}", size * GIB, index=number, node=node)
        for number, (node, size) in enumerate(found)
    ]
    shares = place(Want(count), rooms_of(devices), first)
    able = [(size, node) for size in (40, 80) for node in "abc" if found.count((node, size)) >= count]
    if not able:  # of several sizes, or none
        assert (shares is None) == all(sum(each[0] == node for each in found) < count for node in "abc")
        return
    smallest = min(size for size, _ in able)
    nodes = {node for size, node in able if size == smallest}
    by_uuid = {device.uuid: device for device in devices}
    given = [by_uuid[share.device_uuid] for share in shares or ()]
    assert {device.memory_bytes for device in given} == {smallest * GIB}
    assert len({device.node for device in given}) == 1
    assert given[0].node in (nodes & first or nodes)


def test_whole_needs_an_untouched_room() -> None:
    touched = Room(A0, (Share(A0.uuid, GIB, 10.0),))
    assert place(Want(1, None), {kind_of(A0): [touched]}) is None
    assert place(Want(1, None), {kind_of(A0): [touched, Room(A1)]}) == (whole_share(A1),)


def test_room_arithmetic() -> None:
    half = Share(A0.uuid, 20 * GIB, 50.0)
    room = Room(A0).plus(half)
    assert (room.free_memory_bytes, room.free_compute_percent, room.full) == (20 * GIB, 50.0, False)
    assert (room.has(half), room.has(whole_share(A0))) == (True, False)
    full = room.plus(half)
    assert (full.free_memory_bytes, full.free_compute_percent, full.full) == (0, 0.0, True)
    assert not full.has(Share(A0.uuid, 0, 0.0))
    assert full.minus(half) == room
    assert room.minus(half) == Room(A0)
    with pytest.raises(ValueError, match="not in tuple"):
        Room(A0).minus(half)
    twice = room.plus(
        whole_share(A0)
    )  # a ledger that gives a device twice: nothing is free, nothing is negative
    assert (twice.free_memory_bytes, twice.free_compute_percent, twice.full) == (0, 0.0, True)


def test_take_leaves_what_is_not_full() -> None:
    rooms = rooms_of([A0, A1, H2])
    take(rooms, [whole_share(A0), Share(H2.uuid, 20 * GIB, 25.0)])
    left = Room(H2, (Share(H2.uuid, 20 * GIB, 25.0),))
    assert rooms == {kind_of(A0): [Room(A1)], kind_of(H2): [left]}


MODELS = ["A100 40GB", "A100 80GB", "H100 80GB", "h100 nvl"]


@st.composite
def fleets(draw: st.DrawFn) -> list[Device]:
    models = draw(st.lists(st.sampled_from(MODELS), max_size=8))
    indices = draw(st.lists(st.none() | st.integers(0, 9), min_size=len(models), max_size=len(models)))
    sizes = {model: draw(st.integers(1, 4)) * GIB for model in MODELS}
    return [
        Device(f"GPU-{number}", model, sizes[model], index=index)
        for number, (model, index) in enumerate(zip(models, indices, strict=True))
    ]


wants = st.builds(Want, st.integers(1, 4), st.sampled_from([None, "", "a100", "H100", "80GB", "tpu"]))


@given(fleets(), wants, st.randoms(use_true_random=False))
def test_against_the_naive_answer(devices: list[Device], want: Want, random: object) -> None:
    able = [d for d in devices if want.model is None or want.model in d.model.lower()]
    rooms = rooms_of(devices)
    before = {kind: list(listed) for kind, listed in rooms.items()}
    placed = place(want, rooms)
    assert rooms == before
    if len(able) < want.device_count:
        assert placed is None
        return
    assert placed is not None
    chosen = {share.device_uuid: share for share in placed}
    assert len(chosen) == len(placed) == want.device_count
    by_uuid = {device.uuid: device for device in able}
    assert all(share == whole_share(by_uuid[uuid]) for uuid, share in chosen.items())
    counts = {model: sum(d.model == model for d in able) for model in MODELS}
    enough = {model for model, count in counts.items() if count >= want.device_count}
    models = {by_uuid[uuid].model for uuid in chosen}
    if enough:
        (model,) = models
        smallest = min(by_uuid[uuid].memory_bytes for uuid in by_uuid if by_uuid[uuid].model in enough)
        assert by_uuid[placed[0].device_uuid].memory_bytes == smallest
        same = sorted((Room(d) for d in able if d.model == model), key=rank)
        assert [share.device_uuid for share in placed] == [r.device.uuid for r in same][: want.device_count]
    shuffled = list(devices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert place(want, rooms_of(shuffled)) == placed
