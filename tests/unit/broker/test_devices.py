"""The devices and who holds which share of them: what would be free if shares were given back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations

from gpuspawner.broker.decide.place.devices import MISSING, Devices
from gpuspawner.broker.decide.place.placement import Room, Share, kind_of
from gpuspawner.broker.decide.place.sharing_rules import WHOLE, SharingRules
from gpuspawner.core.decision import Drain, drain_of
from gpuspawner.core.model import Device, DeviceHealth, Lease, LeaseState
from gpuspawner.core.want import Mode, Want

from tests.unit.lease_examples import lease

GIB = 1 << 30
RULES = SharingRules("slices", Mode.SLICE, 4)
GPU = Device("GPU-0", "H100", 80 * GIB, index=0)
SLICE = Want(1, mode=Mode.SLICE, memory_bytes=20 * GIB)
TURN = Want(1, mode=Mode.TURNS, memory_bytes=19 * GIB)


def held(number: int, compute_percent: float) -> Lease:
    """A lease with 19 GiB of the GPU."""
    whole = lease(str(number) * 32, LeaseState.RUNNING, GPU.uuid)
    return replace(whole, want=SLICE, memory_bytes=19 * GIB, compute_percent=compute_percent)


def full(*compute_percent: float) -> tuple[Devices, list[Lease]]:
    """One GPU of which leases with these percentages hold 19 GiB each; the leases in their order."""
    devices = Devices([GPU], {GPU.uuid: RULES})
    leases = [held(number, percent) for number, percent in enumerate(compute_percent)]
    for each in leases:
        devices.hold(each)
    return devices, leases


def shares_of(devices: Devices, leases: Iterable[Lease]) -> tuple[Share, ...]:
    """What these hold, in their order."""
    return tuple(share for each in leases for share in devices.shares(each))


def test_several_freed_leases_of_one_device_all_give_back_theirs() -> None:
    """The room is there once, with what is left after all of them; the devices stay as they are."""
    devices, leases = full(20.0, 21.0, 22.0, 23.0)
    kind = kind_of(GPU, RULES)
    for count in range(1, 5):
        for freed in combinations(leases, count):
            left = shares_of(devices, (each for each in leases if each not in freed))
            assert devices.rooms(freed) == {kind: [Room(GPU, left, RULES)]}
            assert devices.healthy_rooms(freed) == {GPU.uuid: Room(GPU, left, RULES)}
    assert devices.rooms() == {kind: []}


def test_equal_shares_are_given_back_one_by_one() -> None:
    """Two leases with the same share of a device: giving it back twice leaves two of four."""
    devices, leases = full(25.0, 25.0, 25.0, 25.0)
    left = shares_of(devices, leases[2:])
    assert devices.rooms(leases[:2]) == {kind_of(GPU, RULES): [Room(GPU, left, RULES)]}


def test_what_is_freed_on_a_device_out_of_service_is_not_open() -> None:
    devices, leases = full(20.0, 21.0, 22.0, 23.0)
    devices.set_health(DeviceHealth(GPU.uuid, healthy=False, reason="Xid 79"))
    assert devices.rooms(leases) == {kind_of(GPU, RULES): []}


def test_a_seat_whose_home_is_gone_is_given_back() -> None:
    """Two seats; both begin on a GPU that is there no more. One of them ends: there is one seat."""
    rules = SharingRules("seats", Mode.TURNS, reserve_bytes=GIB, seats=2)
    devices = Devices([GPU], {GPU.uuid: rules})
    leases = [replace(held(number, 100.0), want=TURN, device_uuids=("GPU-9", GPU.uuid)) for number in (1, 2)]
    for each in leases:
        devices.hold(each)
    (full_room,), (room,) = (
        devices.rooms()[kind_of(GPU, rules)],
        devices.rooms(leases[:1])[kind_of(GPU, rules)],
    )
    assert (full_room.free_seats, room.free_seats) == (0, 1)
    assert devices.healthy_rooms(leases[:1]) == {GPU.uuid: room}


DRAIN = Drain(datetime(2026, 3, 1, 12, tzinfo=UTC), "root", "new fans")


def counted(devices: Devices) -> tuple[object, ...]:
    """What the queue and the placement see."""
    return devices.rooms(), devices.healthy_rooms(), devices.servable(SLICE), devices.count(SLICE)


def test_a_drained_device_gets_nothing_and_keeps_what_it_has() -> None:
    devices, shares = full(20.0)
    before = counted(devices)
    assert devices.set_drained({GPU.uuid: DRAIN})
    assert devices.drained(SLICE) == 1
    kind = kind_of(GPU, RULES)
    assert counted(devices) == ({kind: []}, {}, False, (0, 0))
    assert devices.rooms(shares) == {kind: []}  # what ends there isn't placed again
    assert (devices.drain(GPU.uuid), devices.in_service(GPU.uuid)) == (DRAIN, False)
    assert devices.health(GPU.uuid).healthy
    assert devices.can_hold(held(2, 20.0))  # a lease that Docker shows there is adopted all the same
    assert not devices.set_drained({GPU.uuid: DRAIN})
    assert devices.set_drained({})
    assert devices.drained(SLICE) == 0
    assert counted(devices) == before


def test_drained_and_out_of_service_are_two_things() -> None:
    devices = Devices([GPU], {GPU.uuid: RULES})
    before = counted(devices)
    broken, well = (DeviceHealth(GPU.uuid, healthy=each) for each in (False, True))
    devices.set_drained({GPU.uuid: DRAIN})
    devices.set_health(broken)
    devices.set_drained({})
    assert not devices.in_service(GPU.uuid)
    devices.set_drained({GPU.uuid: DRAIN})
    devices.set_health(well)
    assert not devices.in_service(GPU.uuid)
    devices.set_drained({})
    assert counted(devices) == before


def test_a_drain_waits_for_its_device() -> None:
    devices = Devices()
    assert (devices.known(SLICE), devices.servable(SLICE)) == ({}, False)
    devices.set_drained({GPU.uuid: DRAIN})
    devices.add(GPU, RULES)
    assert devices.known(SLICE) == {"": 1}
    assert (devices.in_service(GPU.uuid), devices.servable(SLICE)) == (False, False)
    assert devices.unhealthy(SLICE) == [
        (
            GPU,
            DeviceHealth(GPU.uuid, True, "an admin lets no new server start on it (new fans)", DRAIN.since),
        )
    ]
    devices.set_drained({})
    assert devices.rooms() == {kind_of(GPU, RULES): [Room(GPU, (), RULES)]}


def test_of_several_machines_only_those_count_that_have_enough_devices() -> None:
    def device(number: int, node: str) -> Device:
        return Device(f"GPU-{number}", "H100", GIB, index=number, node=node)

    devices = Devices([device(0, "a"), device(1, "a"), device(2, "b")])
    assert [devices.count(Want(count)) for count in (1, 2, 3)] == [(3, 3), (2, 2), (0, 0)]
    assert devices.known(Want(2)) == {"a": 2, "b": 1}
    alone = Devices([device(0, "a")])
    assert (alone.count(Want(2)), alone.several_nodes, devices.several_nodes) == ((1, 1), False, True)


def test_a_machine_is_drained_with_the_devices_that_it_has_later() -> None:
    here, late = replace(GPU, node="b"), replace(GPU, uuid="GPU-1", index=1, node="b")
    devices = Devices([here, replace(GPU, uuid="GPU-2", node="c")])
    assert devices.set_drained({drain_of("b"): DRAIN})
    devices.add(late, WHOLE)
    found = {device.uuid: devices.drain(device.uuid) for device in devices.all()}
    assert found == {"GPU-0": DRAIN, "GPU-1": DRAIN, "GPU-2": None}
    assert [room.device.uuid for listed in devices.rooms().values() for room in listed] == ["GPU-2"]
    assert devices.drained(Want(1)) == 2
    assert devices.set_drained({"GPU-1": DRAIN})
    assert [devices.in_service(uuid) for uuid in ("GPU-0", "GPU-1", "GPU-2")] == [True, False, True]


def test_what_a_machine_has_that_has_not_reported_yet_is_told_as_that() -> None:
    why = "the machine b hasn't reported yet since the broker started"
    devices = Devices()
    devices.set_awaited({"b": why})
    of_b, of_c = (
        replace(lease(str(number) * 32, LeaseState.RUNNING, uuid), node=node)
        for number, (uuid, node) in enumerate((("GPU-b", "b"), ("GPU-c", "c")))
    )
    for each in (of_b, of_c):
        devices.hold(each)
    assert (devices.health("GPU-b").reason, devices.health("GPU-b").machine_away) == (why, True)
    assert (devices.health("GPU-c").reason, devices.health("GPU-c").machine_away) == (MISSING, False)
    assert devices.set_awaited({}) == ("GPU-b",)  # it has reported, without this device
    assert (devices.health("GPU-b").reason, devices.health("GPU-b").machine_away) == (MISSING, False)
