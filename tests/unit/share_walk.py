"""The allocator on devices of several pools, on one node or several, beside a naive model: the shares of a
device never exceed it, and the devices of a lease are of one node.

A walk takes random steps: requests for whole devices, MIG instances and slices; ends; running containers
that the ledger does not know; devices lost and found; restarts, after which devices may be gone or in
another pool. The model sums up shares by looking at everything, and checks every choice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import EndedProcess
from gpuspawner.core.errors import LeaseConflict, NoCapacity
from gpuspawner.core.model import Device, DeviceHealth, GpuRequest, Lease, LeaseState, Mode
from gpuspawner.core.want import Want

GIB, MIB = 1 << 30, 1 << 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAITING, RESERVED = LeaseState.WAITING, LeaseState.RESERVED
RUNNING, RELEASING, CLOSED = LeaseState.RUNNING, LeaseState.RELEASING, LeaseState.CLOSED
ASLEEP = LeaseState.ASLEEP
FLEET = (
    *(Device(f"GPU-{n}", "H100", 80 * GIB, index=n) for n in range(4)),
    *(Device(f"GPU-{n}", "A100", 40 * GIB, index=n) for n in (4, 5)),
    Device("MIG-0", "H100 MIG 1g.10gb", 10 * GIB, index=6, mig_profile="1g.10gb"),
    Device("MIG-1", "H100 MIG 3g.40gb", 40 * GIB, index=7, mig_profile="3g.40gb"),
)
QUARTERS = SharingRules("quarters", Mode.SLICE, slices=4, mps=True, reserve_bytes=GIB)
SIZES = SharingRules("sizes", Mode.SLICE, sizes_bytes=(8 * GIB, 24 * GIB, 64 * GIB))
WHOLE, MIG = SharingRules("whole"), SharingRules("mig", Mode.MIG)
SEATS = SharingRules("seats", Mode.TURNS, reserve_bytes=GIB, seats=5)
LAYOUTS = (
    (WHOLE, QUARTERS, QUARTERS, SIZES, WHOLE, QUARTERS, MIG, MIG),
    (SIZES, QUARTERS, WHOLE, SIZES, QUARTERS, WHOLE, MIG, MIG),
    (QUARTERS, SIZES, SIZES, WHOLE, WHOLE, WHOLE, MIG, replace(MIG, pool="other")),
    (SEATS, SEATS, SEATS, WHOLE, QUARTERS, WHOLE, MIG, MIG),
)
"""Which device is in which pool; a restart may come with another one."""
WANTS = (
    Want(1), Want(1, "a100"), Want(2), Want(1, pool="whole"),
    Want(1, mode=Mode.MIG), Want(1, mode=Mode.MIG, mig_profile="3g.40gb"), Want(2, mode=Mode.MIG),
    Want(1, mode=Mode.SLICE), Want(1, None, Mode.SLICE, "quarters"), Want(1, None, Mode.SLICE, "sizes"),
    Want(1, mode=Mode.SLICE, memory_bytes=8 * GIB), Want(1, mode=Mode.SLICE, memory_bytes=24 * GIB),
    Want(1, mode=Mode.SLICE, memory_bytes=12 * GIB, compute_percent=10.0),
    Want(1, mode=Mode.SLICE, memory_bytes=64 * GIB), Want(1, "A100", Mode.SLICE),
    Want(1, mode=Mode.SLICE, memory_bytes=81 * GIB), Want(1, mode=Mode.MIG, mig_profile="7g.80gb"),
    Want(1, mode=Mode.TURNS), Want(1, mode=Mode.TURNS, memory_bytes=24 * GIB), Want(1, "h100", Mode.TURNS),
)  # fmt: skip
MOST = 24


class MemoryLedger:
    """What a ledger keeps, without a disk: a restart reads it again."""

    def __init__(self) -> None:
        self.rows: dict[str, Lease] = {}
        self.records: list[EndedProcess] = []

    async def record(self, *items: EndedProcess) -> None:
        """Keep what the guard did."""
        self.records.extend(items)

    async def ended(self, limit: int = 100) -> tuple[EndedProcess, ...]:
        """The youngest first."""
        return tuple(self.records[::-1][:limit])

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to give back."""

    async def save(
        self, *leases: Lease, at: datetime, ago_seconds: float = 0, erase: Any = (), take_over: bool = False
    ) -> None:
        """Insert or replace; the order is that of the first time."""
        self.rows.update((lease.id, lease) for lease in leases)

    async def sessions(self, since: Any, most: int) -> tuple[Any, ...]:
        """Nothing has ended."""
        return ()

    async def wait_errors(self) -> tuple[float, ...]:
        """Nothing was estimated."""
        return ()

    async def add_wait_errors(self, sides: Any) -> None:
        """Nobody asks for them."""

    async def living(self) -> tuple[Lease, ...]:
        """All that are not closed."""
        return tuple(lease for lease in self.rows.values() if lease.state is not CLOSED)

    async def find(self, lease_id: str) -> Lease | None:
        """One, in whatever state."""
        return self.rows.get(lease_id)

    async def before_start(self, request: Any, since: Any) -> tuple[Lease | None, tuple[Any, ...]]:
        """As `find`; nobody has a budget here."""
        return self.rows.get(request.lease_id), ()


@dataclass
class Entry:
    """A lease as the model knows it; `held` is its bytes of each device."""

    request: GpuRequest
    state: LeaseState = WAITING
    held: dict[str, int] = field(default_factory=dict)
    home: str = ""
    """The first of its devices."""


@dataclass
class Model:
    """The rules, naively: everything is found by looking at everything."""

    fleet: dict[str, Device] = field(default_factory=dict)
    terms: dict[str, SharingRules] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    leases: dict[str, Entry] = field(default_factory=dict)

    def on(self, uuid: str) -> list[int]:
        """What is held of a device, lease by lease."""
        return [entry.held[uuid] for entry in self.leases.values() if uuid in entry.held]

    def size(self, request: GpuRequest, uuid: str) -> int | None:
        """What the request would get of the device if nobody else were there; None if it does not suit."""
        device, terms, want = self.fleet[uuid], self.terms[uuid], request.want
        if terms.mode is not want.mode or want.pool not in (None, terms.pool):
            return None
        if want.mig_profile not in (None, device.mig_profile):
            return None
        if (want.model or "").lower() not in device.model.lower():
            return None
        if want.mode is Mode.TURNS:
            return want.memory_bytes or device.memory_bytes - GIB
        if want.mode is not Mode.SLICE:
            return device.memory_bytes
        if terms.pool == "quarters":
            most, sizes = (device.memory_bytes - GIB) // 4 // MIB * MIB, None
        else:
            sizes = [size for size in (8 * GIB, 24 * GIB, 64 * GIB) if size <= device.memory_bytes]
            most = max(sizes)
        size = most if want.memory_bytes is None else want.memory_bytes
        if size > most or (sizes is not None and size not in sizes):
            return None
        return None if want.compute_percent is not None and not terms.mps else size

    def suiting(self, request: GpuRequest) -> set[str]:
        return {uuid for uuid in self.fleet if self.size(request, uuid) is not None}

    def most(self, uuids: set[str]) -> int:
        """How many of these devices the node has that has the most."""
        nodes = [self.fleet[uuid].node for uuid in uuids]
        return max(map(nodes.count, nodes), default=0)

    def beside(self, uuid: str, uuids: set[str]) -> set[str]:
        """Those of the same node."""
        return {each for each in uuids if self.fleet[each].node == self.fleet[uuid].node}

    def able(self, request: GpuRequest) -> set[str]:
        """The devices that have room for the request now."""
        return {uuid for uuid in self.suiting(request) - self.withdrawn if self.fits(request, uuid)}

    def fits(self, request: GpuRequest, uuid: str) -> bool:
        held, size, terms = self.on(uuid), self.size(request, uuid), self.terms[uuid]
        assert size is not None
        if terms.in_turns:
            return self.has_seat(self.fleet[uuid].node)
        if not terms.sliced or self.has_turns(uuid):
            return not held
        usable = self.fleet[uuid].memory_bytes - terms.reserve_bytes
        return sum(held) + size <= usable and (terms.slices is None or len(held) < terms.slices)

    def has_turns(self, uuid: str) -> bool:
        """Whether leases in turns hold it, as those from before its pool changed."""
        on_it = [entry for entry in self.leases.values() if uuid in entry.held]
        return any(entry.request.want.mode is Mode.TURNS for entry in on_it)

    def has_seat(self, node: str) -> bool:
        """Whether the node's pool of turns has one, and none of its GPUs has a holder of another mode."""
        pool = {uuid for uuid in self.fleet if self.terms[uuid].in_turns and self.fleet[uuid].node == node}
        holders = [entry for entry in self.leases.values() if pool & entry.held.keys()]
        present = pool - self.withdrawn
        others = [each for each in holders if each.request.want.mode is not Mode.TURNS]
        if any(present & entry.held.keys() for entry in others):
            return False
        return len(holders) < (SEATS.seats or 0)

    def advance(self, chosen: Callable[[str], Lease]) -> None:
        """Serve who can be served, in order; who can't keeps what suits them from those behind."""
        blocked: set[str] = set()
        for lease_id, entry in self.leases.items():
            if entry.state is not WAITING:
                continue
            able = self.able(entry.request) - blocked
            if self.most(able) < entry.request.want.device_count:
                if self.most(self.suiting(entry.request) - self.withdrawn) >= entry.request.want.device_count:
                    blocked |= self.suiting(entry.request)
                continue
            lease = chosen(lease_id)
            sizes = {uuid: self.size(entry.request, uuid) for uuid in lease.device_uuids}
            assert set(lease.device_uuids) <= able
            assert self.beside(lease.device_uuids[0], set(lease.device_uuids)) == set(lease.device_uuids)
            if lease.mode is Mode.TURNS:
                able = self.beside(lease.device_uuids[0], able)
                assert set(lease.device_uuids) == able
                assert {lease.memory_bytes} == set(sizes.values())
            else:
                assert len(sizes) == len(lease.device_uuids) == entry.request.want.device_count
                assert lease.memory_bytes == sum(size or 0 for size in sizes.values())
            self.check_spread(lease, able)
            entry.held = {uuid: size or 0 for uuid, size in sizes.items()}
            entry.state, entry.home = RESERVED, lease.device_uuids[0]

    def check_spread(self, lease: Lease, able: Iterable[str]) -> None:
        """A slice goes to the emptiest of devices that are alike."""
        if lease.mode is Mode.SLICE:
            (uuid,) = lease.device_uuids
            like = [
                each
                for each in able
                if (self.fleet[each].model, self.terms[each]) == (self.fleet[uuid].model, self.terms[uuid])
            ]
            assert len(self.on(uuid)) == min(len(self.on(each)) for each in like)
        if lease.mode is Mode.TURNS:
            homes = [entry.home for entry in self.leases.values() if entry.held and entry.home in able]
            assert homes.count(lease.device_uuids[0]) == min(homes.count(each) for each in able)


class Walk:
    """One walk with one random number generator, on one event loop."""

    def __init__(self, draw: random.Random, ledger: Any, nodes: int = 1) -> None:
        self.draw = draw
        self.fleet = tuple(replace(each, node=f"node-{n % nodes}") for n, each in enumerate(FLEET))
        self.loop = asyncio.new_event_loop()
        self.run = self.loop.run_until_complete
        self.ledger = ledger
        self.model = Model()
        self.number = 0
        self.allocator: Allocator
        self.run(ledger.open())
        self.open(self.fleet, LAYOUTS[0])

    def open(self, devices: Iterable[Device], layout: tuple[SharingRules, ...]) -> None:
        """The broker starts on these devices, in these pools."""
        devices = tuple(devices)
        terms = {device.uuid: each for device, each in zip(self.fleet, layout, strict=True)}
        self.allocator = Allocator(self.ledger, clock=lambda: NOW)
        self.run(self.allocator.load(devices, terms))
        self.model.fleet = {device.uuid: device for device in devices}
        self.model.terms = terms
        self.model.withdrawn = set()
        self.model.advance(self.chosen)

    def chosen(self, lease_id: str) -> Lease:
        lease = self.allocator.lease(lease_id)
        assert lease is not None
        return lease

    def step(self) -> None:
        """Something happens; then allocator and model must agree, and no device be exceeded."""
        steps = (
            self.acquire, self.acquire, self.acquire, self.set_running, self.end, self.end, self.end,
            self.adopt, self.set_health, self.restart, self.find_late, self.turn,
        )  # fmt: skip
        weights = (6, 6, 6, 6, 7, 7, 7, 1, 3, 1, 1, 4)
        self.draw.choices(steps, weights)[0]()
        self.check()

    def acquire(self) -> None:
        if len(self.model.leases) >= MOST:
            return
        self.number += 1
        want = self.draw.choice(WANTS)
        request = GpuRequest(f"{self.number:032x}", "hub", f"user-{self.number}", "", "tier", want)
        if self.model.most(self.model.suiting(request)) < want.device_count:
            with pytest.raises(NoCapacity):
                self.run(self.allocator.acquire(request))
            return
        lease = self.run(self.allocator.acquire(request))
        self.model.leases[request.lease_id] = Entry(request)
        self.model.advance(self.chosen)
        assert self.run(self.allocator.acquire(request)) == lease  # asked again: the same

    def pick(self, *states: LeaseState) -> str | None:
        found = [lease_id for lease_id, entry in self.model.leases.items() if entry.state in states]
        return self.draw.choice(found) if found else None

    def set_running(self) -> None:
        lease_id = self.pick(RESERVED)
        if lease_id is not None:
            entry = self.model.leases[lease_id]
            turns = entry.request.want.mode is Mode.TURNS
            self.run(self.allocator.set_running(lease_id, f"container-{lease_id}"))
            entry.state = ASLEEP if turns else RUNNING

    def turn(self) -> None:
        """A lease in turns gets a GPU, or has none any more; its shares stay."""
        lease_id = self.pick(ASLEEP, RUNNING)
        if lease_id is None or self.model.leases[lease_id].request.want.mode is not Mode.TURNS:
            return
        entry = self.model.leases[lease_id]
        sleeps = entry.state is ASLEEP
        wrong, right = self.allocator.sleep, self.allocator.wake
        wrong, right = (wrong, right) if sleeps else (right, wrong)
        assert self.run(wrong(lease_id)) is None
        lease = self.run(right(lease_id))
        entry.state = RUNNING if sleeps else ASLEEP
        assert lease is not None
        assert lease.state is entry.state

    def end(self) -> None:
        """A lease ends; every now and then only its release begins, and it is closed later."""
        lease_id = self.pick(WAITING, RESERVED, RUNNING, ASLEEP, RELEASING)
        if lease_id is None:
            return
        self.run(self.allocator.begin_release(lease_id, "stopped"))
        entry = self.model.leases[lease_id]
        if entry.state is not WAITING and self.draw.random() < 0.3:
            entry.state = RELEASING
            return
        self.run(self.allocator.close(lease_id))
        del self.model.leases[lease_id]
        self.model.advance(self.chosen)

    def adopt(self) -> None:
        """A running container that the ledger does not know, as its labels describe it."""
        if len(self.model.leases) >= MOST:
            return
        self.number += 1
        device = self.draw.choice(self.fleet)
        if self.model.terms[device.uuid].in_turns:
            return  # of one GPU alone; test_turn_leases.py adopts those
        sliced = self.model.terms[device.uuid].sliced and self.draw.random() < 0.8
        size = self.draw.choice([8, 12, 40]) * GIB if sliced else device.memory_bytes
        mode = Mode.SLICE if sliced else Mode.MIG if device.is_mig else Mode.WHOLE
        want = Want(1, mode=mode, memory_bytes=size if sliced else None)
        lease = Lease(
            f"{self.number:032x}", "hub", f"user-{self.number}", "", "tier", RUNNING, want, NOW, NOW,
            device_uuids=(device.uuid,), memory_bytes=size,
            container_id=f"container-{self.number}",
        )  # fmt: skip
        if not self.has_room(device.uuid, size):
            with pytest.raises(LeaseConflict):
                self.run(self.allocator.adopt(lease))
            return
        assert self.run(self.allocator.adopt(lease)).memory_bytes == size
        request = GpuRequest(lease.id, "hub", lease.user, "", "tier", want)
        self.model.leases[lease.id] = Entry(request, RUNNING, {device.uuid: size})

    def has_room(self, uuid: str, size: int) -> bool:
        if uuid not in self.model.fleet:
            return False
        held, terms, whole = self.model.on(uuid), self.model.terms[uuid], self.model.fleet[uuid].memory_bytes
        if not held:
            return size <= whole
        if not terms.sliced or (terms.slices is not None and len(held) >= terms.slices):
            return False
        if self.model.has_turns(uuid):
            return False
        return sum(held) + size <= whole - terms.reserve_bytes

    def set_health(self) -> None:
        uuid, healthy = self.draw.choice(self.fleet).uuid, self.draw.random() < 0.7
        self.run(self.allocator.set_health(DeviceHealth(uuid, healthy, "" if healthy else "XID 79", NOW)))
        if uuid in self.model.fleet:
            (self.model.withdrawn.discard if healthy else self.model.withdrawn.add)(uuid)
            self.model.advance(self.chosen)

    def restart(self) -> None:
        """The broker is killed; devices may be gone then, or in other pools."""
        gone = self.draw.sample(range(len(FLEET)), self.draw.choice([0, 0, 1, 2]))
        left = [device for number, device in enumerate(self.fleet) if number not in gone]
        self.open(left, self.draw.choice(LAYOUTS))

    def find_late(self) -> None:
        """A device that was gone at the last restart can be read after all; a known one changes nothing."""
        device = self.draw.choice(self.fleet)
        self.run(self.allocator.add([device], self.model.terms))
        self.model.fleet.setdefault(device.uuid, device)
        self.model.advance(self.chosen)

    def check(self) -> None:
        """What the allocator shows is what the model has, and no device has more holders than it can have."""
        snapshot = self.allocator.snapshot()
        found = [(lease.id, lease.state, set(lease.device_uuids)) for lease in snapshot.leases]
        assert found == [(i, entry.state, set(entry.held)) for i, entry in self.model.leases.items()]
        for view in snapshot.devices:
            uuid, held = view.device.uuid, self.model.on(view.device.uuid)
            owners = [i for i, entry in self.model.leases.items() if uuid in entry.held]
            assert sorted(lease.id for lease in view.holders) == sorted(owners)
            if uuid not in self.model.fleet:
                continue
            modes = {lease.mode for lease in view.holders}
            if modes == {Mode.TURNS}:  # one of them has it at a time
                assert max(held) <= view.device.memory_bytes
                assert len(owners) <= (SEATS.seats or 0)
            else:
                assert sum(held) <= view.device.memory_bytes
            assert len(owners) <= 1 or modes in ({Mode.SLICE}, {Mode.TURNS})
            if view.terms.sliced:
                assert all(0 < lease.compute_percent <= 100 for lease in view.holders)

    def close(self) -> None:
        self.run(self.ledger.close())
        self.loop.close()
