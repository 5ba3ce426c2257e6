"""Devices that work but that no new container may get: who is refused, who is left alone, and until when."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from gpuspawner.broker.decide.snapshot import Change
from gpuspawner.broker.enforce.closures import ClosureParts, Closures
from gpuspawner.broker.enforce.way_in import WayIn
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.errors import ConfigError, DeviceFault, EngineFault, NoCapacity
from gpuspawner.core.model import DeviceHealth, LeaseState
from gpuspawner.core.units import format_time
from gpuspawner.node.api import Access, Injection, NodeFacts, Process

from tests.unit.lease_examples import NOON, A, B, C, D, request

X, Y, Z = ("a" * 64, "b" * 64, "c" * 64)
STALE = "The spec is old: run `nvidia-ctk`"
LEFT = (
    "Process 7 (python) of a server that has ended still uses it: run `kill -9 7`; if it stays, restart "
    "the machine"
)


@dataclass
class Machine:
    """Node and engine, as far as this asks them."""

    access: Access | Exception = field(default_factory=lambda: Access(Injection.CDI))
    running: dict[str, tuple[Process, ...] | Exception] = field(default_factory=dict)
    containers: set[str] = field(default_factory=set)
    down: bool = False

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.down:
            raise EngineFault("Docker is down")
        return {}, {}

    async def exists(self, container_id: str) -> bool:
        if self.down:
            raise EngineFault("Docker is down")
        return container_id in self.containers

    async def way_in(self, info: object, version: object, uuids: Iterable[str]) -> Access:
        if isinstance(self.access, Exception):
            raise self.access
        return self.access

    async def processes(self, uuid: str) -> tuple[Process, ...]:
        found = self.running.get(uuid, ())
        if isinstance(found, Exception):
            raise found
        return found


class Bench:
    """The real closures on that machine; the health that they set goes to the real allocator."""

    def __init__(self, allocator: Allocator) -> None:
        self.machine, self.allocator = Machine(), allocator
        self.closed: dict[str, DeviceHealth] = {}
        machine: Any = self.machine
        parts = ClosureParts(
            node=machine,
            engine=machine,
            way_in=WayIn(machine, machine, lambda: ("GPU-0", "GPU-1"), lambda: NodeFacts("here")),
            devices=lambda: ("GPU-0", "GPU-1"),
            leases=allocator.leases,
            close=self.close,
            metrics=Metrics(),
            log=logging.getLogger("closures"),
        )
        self.closures = Closures(parts)

    async def close(self, closed: Iterable[DeviceHealth]) -> None:
        before, self.closed = self.closed, {health.uuid: health for health in closed}
        for uuid in before.keys() | self.closed.keys():
            await self.allocator.set_health(self.closed.get(uuid, DeviceHealth(uuid, True)))


@pytest.fixture
def bench(allocator: Allocator) -> Bench:
    return Bench(allocator)


async def test_where_no_container_gets_a_device_a_start_is_refused_before_the_queue(bench: Bench) -> None:
    """Labs that run are told nothing, who waits already is told why, and a repair is seen."""
    allocator = bench.allocator
    await allocator.acquire(request(A, 2))
    held = await allocator.set_running(A, X)
    waiting = await allocator.acquire(request(B))
    bench.machine.access = ConfigError(STALE)
    await bench.closures.round()
    assert bench.closed == {
        uuid: DeviceHealth(uuid, False, STALE, new_only=True, needs_admin=True) for uuid in ("GPU-0", "GPU-1")
    }
    assert allocator.lease(A) == held
    when = format_time(NOON)
    with pytest.raises(NoCapacity) as caught:
        await allocator.acquire(request(C))
    assert caught.value.message == (
        "No new server can get a GPU until an admin has repaired this: GPU 0 has been out of service since "
        f"{when}: {STALE}. GPU 1 has been out of service since {when}: {STALE}. Choose another tier, or CPU."
    )
    assert (await allocator.find(C)) is None
    async with allocator.watch(waiting.id) as changes:
        change: Change = await anext(aiter(changes))
        assert STALE in change.obstacle
    bench.machine.access = Access(Injection.CDI)
    await bench.closures.round()
    assert bench.closed == {}
    assert (await allocator.acquire(request(D))).state is LeaseState.WAITING


async def test_one_device_without_a_way_leaves_the_other_to_be_leased(bench: Bench) -> None:
    bench.machine.access = Access(Injection.CDI, {"GPU-0": STALE})
    await bench.closures.round()
    assert (await bench.allocator.acquire(request(A))).device_uuids == ("GPU-1",)
    assert (await bench.allocator.acquire(request(B))).state is LeaseState.WAITING  # GPU 1 will do
    with pytest.raises(NoCapacity, match="No new server can get 2 GPUs until an admin"):
        await bench.allocator.acquire(request(C, 2))


async def test_a_process_that_outlives_its_container_keeps_the_device(bench: Bench, times: Any) -> None:
    allocator, machine = bench.allocator, bench.machine
    lease = await allocator.set_running((await allocator.acquire(request(A))).id, X)
    other = await allocator.set_running((await allocator.acquire(request(B))).id, Y)
    assert lease.device_uuids == ("GPU-0",)
    machine.containers = {Y, Z}
    machine.running = {
        "GPU-0": (Process(7, 70, "python", (X,)), Process(8, 80, "Xorg", ())),
        "GPU-1": (Process(9, 90, "python", (Y,)),),
    }
    await allocator.begin_release(A, "stopped")
    await bench.closures.before_close(lease)
    await allocator.close(A)
    assert bench.closed == {"GPU-0": DeviceHealth("GPU-0", False, LEFT, new_only=True)}
    waiting = await allocator.acquire(request(C))
    assert waiting.state is LeaseState.WAITING  # it may end by itself, so the request waits
    async with allocator.watch(C) as changes:
        assert LEFT not in (await anext(aiter(changes))).obstacle  # the other GPU could serve it
    await bench.closures.round()
    assert "GPU-0" in bench.closed
    machine.running["GPU-0"] = DeviceFault("NVML does not answer")  # unknown is not free
    await bench.closures.round()
    assert "GPU-0" in bench.closed
    machine.running["GPU-0"] = (Process(8, 80, "Xorg", ()), Process(11, 1, "python", (Z,)))
    await bench.closures.round()  # what somebody else's container does is the guard's business
    assert bench.closed == {}
    served = allocator.lease(C)
    assert served is not None
    assert served.device_uuids == ("GPU-0",)
    assert allocator.lease(B) == other


async def test_a_broker_that_starts_finds_what_was_left(bench: Bench) -> None:
    """By Docker's answer: it has no such container."""
    bench.machine.running = {"GPU-1": (Process(7, 70, "python", (X,)), Process(9, 90, "a", (X,)))}
    bench.machine.down = True
    with pytest.raises(EngineFault):
        await bench.closures.round()
    assert bench.closed == {}
    bench.machine.down = False
    await bench.closures.round()
    assert bench.closed["GPU-1"].reason == (
        "Processes 7 (python), 9 (a) of a server that has ended still use it: run `kill -9 7 9`; if they "
        "stay, restart the machine"
    )


async def test_docker_that_does_not_answer_changes_nothing(bench: Bench) -> None:
    bench.machine.access = Access(Injection.CDI, {"GPU-0": STALE})
    await bench.closures.round()
    bench.machine.down, bench.machine.access = True, Access(Injection.CDI)
    with pytest.raises(EngineFault):
        await bench.closures.round()
    assert set(bench.closed) == {"GPU-0"}


async def test_a_lease_without_a_container_leaves_nothing(bench: Bench) -> None:
    lease = await bench.allocator.acquire(request(A))
    bench.machine.running = {"GPU-0": DeviceFault("silent")}
    await bench.closures.before_close(lease)
    await bench.closures.before_close(await bench.allocator.set_running(A, X))
    assert bench.closed == {}
