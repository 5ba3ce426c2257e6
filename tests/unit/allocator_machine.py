"""The allocator beside a naive model: one rule for each thing that can happen.

The model knows the rules in their plainest form: a list of leases in the order of arrival, and a loop over
all of them. It does not choose devices: it takes the allocator's choice and checks that it was allowed.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core.errors import LeaseConflict, LedgerFault, NoCapacity
from gpuspawner.core.model import Device, DeviceHealth, GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Want
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

GIB = 1 << 30
FLEET = tuple(
    Device(f"GPU-{number}", model, size * GIB, index=number)
    for number, (model, size) in enumerate([("A100 40GB", 40)] * 3 + [("H100 80GB", 80)] * 2)
)
USERS = 7
WAITING, RESERVED = LeaseState.WAITING, LeaseState.RESERVED
RUNNING, RELEASING = LeaseState.RUNNING, LeaseState.RELEASING

Chosen = Callable[[str], tuple[str, ...]]
Op = Callable[["Model"], None]


@dataclass
class Entry:
    """A lease as the model knows it."""

    request: GpuRequest
    state: LeaseState = WAITING
    devices: tuple[str, ...] = ()
    container: str | None = None


@dataclass
class Model:
    """The rules, naively: everything is found by looking at everything."""

    fleet: dict[str, Device] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    leases: dict[str, Entry] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)

    def suiting(self, request: GpuRequest) -> set[str]:
        part = (request.want.model or "").lower()
        return {uuid for uuid, device in self.fleet.items() if part in device.model.lower()}

    def held(self) -> set[str]:
        return {uuid for entry in self.leases.values() for uuid in entry.devices}

    def advance(self, chosen: Chosen) -> None:
        """Serve who can be served, in order; who can't keeps what suits them from those behind."""
        blocked: set[str] = set()
        for lease_id, entry in self.leases.items():
            if entry.state is not WAITING:
                continue
            able = self.suiting(entry.request) - self.withdrawn - self.held() - blocked
            if len(able) < entry.request.want.device_count:
                if len(self.suiting(entry.request) - self.withdrawn) >= entry.request.want.device_count:
                    blocked |= self.suiting(entry.request)
                continue
            entry.devices = chosen(lease_id)
            assert len(set(entry.devices)) == len(entry.devices) == entry.request.want.device_count
            assert set(entry.devices) <= able
            entry.state = RESERVED

    def position(self, lease_id: str) -> tuple[int, int]:
        mine = self.leases[lease_id].request
        rivals = [
            other
            for other, entry in self.leases.items()
            if entry.state is WAITING
            and (
                other == lease_id
                or len(self.suiting(entry.request) - self.withdrawn) >= entry.request.want.device_count
            )
            and (self.suiting(mine) & self.suiting(entry.request) or mine.want == entry.request.want)
        ]
        return rivals.index(lease_id) + 1, len(rivals)

    def end(self, lease_id: str) -> None:
        entry = self.leases[lease_id]
        if entry.state is WAITING:
            self.drop(lease_id)
        else:
            entry.state = RELEASING

    def drop(self, lease_id: str) -> None:
        del self.leases[lease_id]
        self.closed = [*self.closed[-20:], lease_id]

    def shown(self) -> list[tuple[str, LeaseState, tuple[str, ...], str | None]]:
        return [(each, entry.state, entry.devices, entry.container) for each, entry in self.leases.items()]


def shown(leases: tuple[Lease, ...]) -> list[tuple[str, LeaseState, tuple[str, ...], str | None]]:
    return [(lease.id, lease.state, lease.device_uuids, lease.container_id) for lease in leases]


class AllocatorMachine(RuleBasedStateMachine):
    """Each rule does one thing to the allocator and to the model; then both must look the same."""

    folder: Path
    times: Any
    ledger_kind: type[Ledger]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ids = itertools.count(1)
        self.times = type(self).times()
        self.path = Path(tempfile.mkdtemp(dir=self.folder)) / "ledger.sqlite"
        shutil.copy(self.folder / "empty", self.path)
        self.model = Model()
        self.unsure: list[tuple[Model, Op]] = []
        self.awake_seconds = 0.0
        self.faulty = False
        self.ledger: Any
        self.allocator: Allocator
        self.run = self.loop.run_until_complete

    @initialize(faulty=st.booleans())
    def begin(self, faulty: bool) -> None:
        """Half of the runs are without faults: there, what was charged must be exact."""
        self.faulty = faulty
        self.open(FLEET)

    def open(self, devices: tuple[Device, ...]) -> None:
        self.ledger = self.times.make_ledger(self.path, self.ledger_kind)
        self.run(self.ledger.open())
        self.allocator = Allocator(self.ledger, clock=self.times.now)
        self.run(self.allocator.load(devices))
        self.model.fleet = {device.uuid: device for device in devices}
        self.model.withdrawn = set()

    def teardown(self) -> None:
        try:
            self.check_charged()
        finally:
            self.close_all()

    def close_all(self) -> None:
        self.run(self.ledger.close())
        self.loop.close()
        shutil.rmtree(self.path.parent)

    def step(self, work: Awaitable[Any], op: Op, fault: str = "") -> str:
        """Do `work` to the allocator and `op` to the model: "done", or "failed" or "killed" at its commit."""
        self.ledger.fault = fault.removesuffix(", killed") if self.faulty else ""
        written = self.ledger.written
        try:
            self.run(work)
        except LedgerFault:
            assert self.faulty
            assert fault
            self.unsure.append((copy.deepcopy(self.model), op))
            if fault.endswith("killed"):
                self.restart_with(FLEET)
                return "killed"
            return "failed"
        finally:
            self.ledger.fault = ""
        if self.ledger.written > written:
            self.unsure.clear()
        op(self.model)
        self.model.advance(self.chosen)
        return "done"

    def chosen(self, lease_id: str) -> tuple[str, ...]:
        lease = self.allocator.lease(lease_id)
        assert lease is not None
        return lease.device_uuids

    def pick(self, which: int, *states: LeaseState) -> str:
        found = [lease_id for lease_id, entry in self.model.leases.items() if entry.state in states]
        return found[which % len(found)]

    def has(self, *states: LeaseState) -> bool:
        return any(entry.state in states for entry in self.model.leases.values())

    whiches = st.integers(0, 20)
    faults = st.sampled_from(["", "", "", "", "before", "after", "before, killed", "after, killed"])

    @precondition(lambda self: len(self.model.leases) < USERS)
    @rule(which=whiches, count=st.integers(1, 3), model=st.sampled_from([None, "a100", "H100"]), fault=faults)
    def acquire(self, which: int, count: int, model: str | None, fault: str) -> None:
        busy = {entry.request.user for entry in self.model.leases.values()}
        free = [user for user in (f"user-{number}" for number in range(1, USERS + 1)) if user not in busy]
        user = free[which % len(free)]
        request = GpuRequest(f"{next(self.ids):032x}", "hub", user, "", "gpu", Want(count, model))
        if len(self.model.suiting(request)) < count:
            with pytest.raises(NoCapacity):
                self.run(self.allocator.acquire(request))
            return

        def op(on: Model) -> None:
            on.leases[request.lease_id] = Entry(request)

        if self.step(self.allocator.acquire(request), op, fault) == "failed":
            # The same id again: as if it never was.
            self.step(self.allocator.acquire(request), op)

    @precondition(lambda self: self.has(*LeaseState))
    @rule(which=whiches)
    def acquire_again(self, which: int) -> None:
        lease_id = self.pick(which, *LeaseState)
        entry = self.model.leases[lease_id]
        with pytest.raises(LeaseConflict):  # another lease for the same server
            self.run(self.allocator.acquire(replace(entry.request, lease_id="f" * 32)))
        lost = len(self.model.suiting(entry.request)) < entry.request.want.device_count
        if entry.state is RELEASING:
            with pytest.raises(LeaseConflict):
                self.run(self.allocator.acquire(entry.request))
        elif entry.state is WAITING and lost:
            with pytest.raises(NoCapacity):
                self.run(self.allocator.acquire(entry.request))
            self.model.drop(lease_id)
            self.model.advance(self.chosen)
        else:
            assert self.run(self.allocator.acquire(entry.request)) == self.allocator.lease(lease_id)

    @precondition(lambda self: self.model.closed)
    @rule(which=whiches)
    def acquire_closed(self, which: int) -> None:
        lease_id = self.model.closed[which % len(self.model.closed)]
        with pytest.raises(LeaseConflict):
            self.run(self.allocator.acquire(GpuRequest(lease_id, "hub", "user-0", "", "gpu", Want(1))))

    @precondition(lambda self: self.has(RESERVED, RUNNING))
    @rule(which=whiches, fault=faults)
    def set_running(self, which: int, fault: str) -> None:
        lease_id = self.pick(which, RESERVED, RUNNING)

        def op(on: Model) -> None:
            on.leases[lease_id].state = RUNNING
            on.leases[lease_id].container = f"container-{lease_id}"

        self.step(self.allocator.set_running(lease_id, f"container-{lease_id}"), op, fault)

    @precondition(lambda self: self.has(*LeaseState))
    @rule(which=whiches, fault=faults)
    def begin_release(self, which: int, fault: str) -> None:
        lease_id = self.pick(which, *LeaseState)
        self.step(self.allocator.begin_release(lease_id, "stopped"), lambda on: on.end(lease_id), fault)

    @precondition(lambda self: self.has(RELEASING))
    @rule(which=whiches, fault=faults)
    def close(self, which: int, fault: str) -> None:
        lease_id = self.pick(which, RELEASING)
        self.step(self.allocator.close(lease_id), lambda on: on.drop(lease_id), fault)

    @precondition(lambda self: self.has(WAITING, RESERVED, RUNNING))
    @rule(which=whiches)
    def close_too_early(self, which: int) -> None:
        with pytest.raises(LeaseConflict):
            self.run(self.allocator.close(self.pick(which, WAITING, RESERVED, RUNNING)))

    @rule(count=st.integers(1, 2), at=st.integers(0, 4), fault=faults)
    def adopt(self, count: int, at: int, fault: str) -> None:
        """A running container that the ledger does not know."""
        uuids = tuple(f"GPU-{(at + n) % 5}" for n in range(count))
        lease_id = f"{next(self.ids):032x}"
        now = self.times.now()
        lease = Lease(
            lease_id, "hub", "user-0", lease_id, "gpu", RUNNING, Want(count), now, now,
            device_uuids=uuids, container_id=f"container-{lease_id}",
        )  # fmt: skip
        if set(uuids) & self.model.held() or not set(uuids) <= set(self.model.fleet):
            with pytest.raises(LeaseConflict):
                self.run(self.allocator.adopt(lease))
            return
        request = GpuRequest(lease_id, "hub", "user-0", lease_id, "gpu", Want(count))

        def op(on: Model) -> None:
            on.leases[lease_id] = Entry(request, RUNNING, uuids, f"container-{lease_id}")

        if self.step(self.allocator.adopt(lease), op, fault) == "failed":
            self.step(self.allocator.adopt(lease), op)

    @rule(number=st.integers(0, 5), healthy=st.booleans(), fault=faults)
    def set_health(self, number: int, healthy: bool, fault: str) -> None:
        uuid = f"GPU-{number}"
        health = DeviceHealth(uuid, healthy, "" if healthy else "XID 79")
        if uuid not in self.model.fleet:
            assert self.run(self.allocator.set_health(health)) == ()
            return

        def op(on: Model) -> None:
            (on.withdrawn.discard if healthy else on.withdrawn.add)(uuid)

        if self.step(self.allocator.set_health(health), op, fault) == "failed":
            if not healthy:  # a fault does not make a broken device usable
                self.model.withdrawn.add(uuid)
            self.step(self.allocator.set_health(health), op)

    @rule(seconds=st.integers(0, 1000), jump=st.sampled_from([0, 0, 3600, -3600]))
    def time_passes(self, seconds: int, jump: int) -> None:
        running = sum(len(e.devices) for e in self.model.leases.values() if e.state is RUNNING)
        self.awake_seconds += running * seconds
        self.times.pass_seconds(seconds)
        self.times.set_clock(jump)

    @precondition(lambda self: self.has(*LeaseState))
    @rule(which=whiches, turns=st.integers(0, 3))
    def cancelled(self, which: int, turns: int) -> None:
        """The caller is gone; the step is finished all the same."""
        lease_id = self.pick(which, *LeaseState)

        async def give_up() -> None:
            task = asyncio.ensure_future(self.allocator.begin_release(lease_id, "stopped"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.allocator.begin_release(lease_id, "stopped")

        self.step(give_up(), lambda on: on.end(lease_id))

    @rule(gone=st.sets(st.integers(0, 4), max_size=2))
    def restart(self, gone: set[int]) -> None:
        """The broker is killed; when it comes back, some devices may be missing."""
        self.restart_with(tuple(device for number, device in enumerate(FLEET) if number not in gone))

    def restart_with(self, devices: tuple[Device, ...]) -> None:
        living = self.run(self.ledger.living())
        self.check_charged()
        self.run(self.ledger.close())
        self.recognize(living)
        self.unsure.clear()
        self.open(devices)
        self.model.advance(self.chosen)

    def recognize(self, living: tuple[Lease, ...]) -> None:
        """The ledger must be what memory was, or what a commit made it whose answer was lost."""
        if shown(living) == self.model.shown():
            return
        devices = {lease.id: lease.device_uuids for lease in living}
        for before, op in reversed(self.unsure):
            after = copy.deepcopy(before)
            op(after)
            try:
                after.advance(lambda lease_id: devices.get(lease_id, ()))
            except AssertionError:
                continue
            if shown(living) == after.shown():
                self.model = after
                return
        raise AssertionError(f"the ledger has {shown(living)}, memory had {self.model.shown()}")

    @invariant()
    def looks_the_same(self) -> None:
        snapshot = self.allocator.snapshot()
        assert shown(snapshot.leases) == self.model.shown()
        places = {entry.lease.id: (entry.position, entry.waiting) for entry in snapshot.queue}
        waiting = [i for i, e in self.model.leases.items() if e.state is WAITING]
        assert list(places) == waiting
        assert places == {lease_id: self.model.position(lease_id) for lease_id in waiting}

    @invariant()
    def one_owner_a_device(self) -> None:
        views = {view.device.uuid: view for view in self.allocator.snapshot().devices}
        assert set(views) == set(self.model.fleet) | self.model.held()
        for uuid, view in views.items():
            owners = [i for i, e in self.model.leases.items() if uuid in e.devices]
            assert [lease.id for lease in view.holders] == owners
            assert len(owners) <= 1
            assert view.health.healthy == (uuid in self.model.fleet and uuid not in self.model.withdrawn)
            for lease in view.holders:
                told = lease.state in (RESERVED, RUNNING) and any(
                    not views[each].health.healthy for each in lease.device_uuids
                )
                if lease.state is not RELEASING:
                    assert ("Save your work" in lease.notice) == told

    def check_charged(self) -> None:
        if self.faulty:
            return  # an interval whose commit failed began or ended when it was settled
        users = [f"user-{number}" for number in range(USERS + 1)]
        ever = datetime(1990, 1, 1, tzinfo=UTC)
        charged = sum(self.run(self.ledger.gpu_seconds(user, ever)) for user in users)
        assert charged == pytest.approx(self.awake_seconds)
