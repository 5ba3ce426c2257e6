"""A machine of a Swarm as the broker's rounds see it: containers, and services without one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import pytest
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.engines import Engines
from gpuspawner.broker.leases.leasing import LeaseService, Parts
from gpuspawner.broker.leases.services import ServiceEngine, enter_swarm
from gpuspawner.broker.ledger import Ledger
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core import labels
from gpuspawner.core.errors import ConfigError, EngineFault
from gpuspawner.core.labels import ContainerLabels
from gpuspawner.core.model import ContainerPatch, Device, GpuRequest, Lease, LeaseState
from gpuspawner.core.units import utc_now
from gpuspawner.core.want import Want
from gpuspawner.node.engine import Container
from gpuspawner.node.swarm import Service

from tests.unit.service_bench import FakeEngine, FakeFolders

ADA, BEN = "a" * 32, "b" * 32


@dataclass
class FakeSwarm:
    """The manager: services by id, each with its machine. `before` is called before each answer."""

    all: dict[str, tuple[str, Service]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    before: Callable[[], None] = lambda: None

    def _call(self) -> None:
        if self.fault:
            raise EngineFault(self.fault)

    async def services(self, machine: str) -> tuple[Service, ...]:
        self._call()
        found = tuple(each for place, each in self.all.values() if place == machine and not each.is_removed)
        self.before()
        return found

    async def of_lease(self, lease_id: str) -> tuple[Service, ...]:
        self._call()
        return tuple(each for _, each in self.all.values() if each.labels.lease_id == lease_id)

    async def remove(self, service_id: str) -> None:
        self._call()
        self.all.pop(service_id, None)

    async def name_machine(self, node_id: str, name: str) -> str:
        if node_id not in self.names:
            return f"the machine {name} isn't in the Swarm of the hub's machine"
        self.names[node_id] = name
        return ""


@pytest.fixture
def swarm() -> FakeSwarm:
    return FakeSwarm()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def labs(swarm: FakeSwarm, engine: FakeEngine) -> ServiceEngine:
    """What is asked about the labs of machine b."""
    return ServiceEngine("b", engine, swarm)  # type: ignore[arg-type]


def service(id_: str, lease_id: str = ADA, *, is_removed: bool = False) -> Service:
    return Service(id_, ContainerLabels(lease_id), "lab-ada", 7, may_run=is_removed, is_removed=is_removed)


def container(id_: str, service_id: str, lease_id: str = ADA) -> Container:
    return Container(id_, ContainerLabels(lease_id), "running", service_id=service_id)


async def test_a_service_counts_as_created_until_its_container_is_there(
    labs: ServiceEngine, swarm: FakeSwarm, engine: FakeEngine
) -> None:
    swarm.all = {"s1": ("b", service("s1")), "s2": ("c", service("s2", BEN))}
    created = Container("s1", ContainerLabels(ADA), "created", "lab-ada", 7, "s1")
    assert await labs.list() == (created,)
    assert await labs.list(ADA) == (created,)
    engine.boxes["c1"] = container("c1", "s1")
    assert await labs.list() == (engine.boxes["c1"],)
    assert await labs.list(ADA) == (engine.boxes["c1"],)


async def test_a_container_that_starts_between_the_two_answers_is_seen(
    labs: ServiceEngine, swarm: FakeSwarm, engine: FakeEngine
) -> None:
    """Its service may be made and started while Swarm's answer is on its way, or removed."""
    swarm.before = lambda: engine.boxes.update(c1=container("c1", "s1"))
    assert await labs.list() == (container("c1", "s1"),)


async def test_a_task_of_a_removed_service_keeps_its_lease(labs: ServiceEngine, swarm: FakeSwarm) -> None:
    """Swarm may still start its container: on a machine that was told to, and not yet that it is over."""
    swarm.all = {"s1": ("b", service("s1", is_removed=True))}
    assert await labs.list() == ()
    assert await labs.list(ADA) == (Container("s1", ContainerLabels(ADA), "removing", "lab-ada", 7, "s1"),)


async def test_removing_a_lab_removes_its_service_too(
    labs: ServiceEngine, swarm: FakeSwarm, engine: FakeEngine
) -> None:
    swarm.all = {"s1": ("b", service("s1")), "s2": ("b", service("s2", BEN))}
    engine.boxes = {"c1": container("c1", "s1"), "own": container("own", "", BEN)}
    await labs.list()
    await labs.remove("c1")
    assert (swarm.all.keys(), engine.boxes.keys()) == ({"s2"}, {"own"})
    await labs.remove("s2")  # one without a container
    await labs.remove("own")  # one that no Swarm knows
    assert (swarm.all, engine.boxes) == ({}, {})


@pytest.mark.parametrize("silent", ["swarm", "engine"])
async def test_if_one_of_the_two_does_not_answer_nothing_is_known(
    labs: ServiceEngine, swarm: FakeSwarm, engine: FakeEngine, silent: str
) -> None:
    swarm.all, engine.boxes = {"s1": ("b", service("s1"))}, {"c1": container("c1", "s1")}
    await labs.list()
    (swarm if silent == "swarm" else engine).fault = "no answer"
    for call in (labs.list(), labs.list(ADA), labs.remove("c1")):
        with pytest.raises(EngineFault, match="no answer"):
            await call
    assert "c1" in engine.boxes


async def test_a_machine_gets_its_name_in_the_swarm(swarm: FakeSwarm) -> None:
    swarm.names = {"n1": ""}
    await enter_swarm(swarm, "b", {"Swarm": {"NodeID": "n1"}})
    assert swarm.names == {"n1": "b"}
    with pytest.raises(ConfigError, match=r"^Labs are services of a Swarm, and the machine c isn.t in"):
        await enter_swarm(swarm, "c", {"Swarm": {"NodeID": "n2"}})
    with pytest.raises(ConfigError, match=r"the machine c is in none: run `docker swarm join-token worker`"):
        await enter_swarm(swarm, "c", {"Swarm": {"NodeID": ""}})


@dataclass
class Rounds:
    """A broker's lease service that asks about machine b's labs."""

    service: LeaseService
    allocator: Allocator
    swarm: FakeSwarm
    engine: FakeEngine

    def add(self, lease: Lease, *, is_removed: bool = False) -> None:
        """The hub has made the lease's service."""
        found = labels.parse({**labels.lease_labels(lease), **labels.broker_label("here")})
        made = Service("s1", found, may_run=is_removed, is_removed=is_removed)
        self.swarm.all["s1"] = ("b", made)

    def run(self, lease: Lease) -> None:
        """The service's container runs."""
        found = labels.parse({**labels.lease_labels(lease), **labels.broker_label("here")})
        self.engine.boxes["c1"] = Container("c1", found, "running", service_id="s1")

    async def becomes(self, lease: Lease, state: str) -> None:
        """Rounds until the lease has this state."""
        async with asyncio.timeout(20):
            while await self.state(lease) != state:
                await asyncio.sleep(0.01)

    async def stays(self, lease: Lease, state: str) -> None:
        """Some more rounds don't change it."""
        for _ in range(5):
            assert await self.state(lease) == state
            await asyncio.sleep(0.01)

    async def state(self, lease: Lease) -> str:
        """The lease's state after a round; "" if there is no such lease."""
        await self.service.reconcile()
        found = await self.allocator.find(lease.id)
        return "" if found is None else found.state.value


@pytest.fixture
async def rounds(
    ledger: Ledger, swarm: FakeSwarm, engine: FakeEngine, labs: ServiceEngine
) -> AsyncIterator[Rounds]:
    allocator = Allocator(ledger)
    await allocator.load([Device("GPU-1", "H100 80GB", 80 << 30, node="b")])
    parts = Parts(
        "here", allocator, ledger, Engines(labs), FakeFolders(), lambda lease: ContainerPatch(), Metrics()
    )
    service = LeaseService(parts, logging.getLogger("rounds"))
    service.restore()
    service.reachable()
    yield Rounds(service, allocator, swarm, engine)
    await service.close()


def asked(lease_id: str = ADA) -> GpuRequest:
    return GpuRequest(lease_id, "hub", "ada", "", "gpu", Want(1))


async def test_a_hub_that_dies_between_create_and_start_leaves_no_service(rounds: Rounds) -> None:
    lease = await rounds.allocator.acquire(asked())
    rounds.add(lease)
    with rounds.service.hold(ADA):
        await rounds.stays(lease, "reserved")
        assert "s1" in rounds.swarm.all
    await rounds.becomes(lease, "closed")
    assert rounds.swarm.all == {}


async def test_a_lease_is_closed_when_swarm_has_ended_the_task_of_its_removed_service(rounds: Rounds) -> None:
    lease = await rounds.allocator.acquire(asked())
    rounds.add(lease)
    rounds.run(lease)
    await rounds.becomes(lease, "running")
    del rounds.engine.boxes["c1"]
    rounds.add(lease, is_removed=True)  # and its task may still start on a machine that is slow
    await rounds.becomes(lease, "releasing")
    await rounds.stays(lease, "releasing")
    assert not [call for call in rounds.engine.calls if call.startswith("remove")]  # it is Swarm's to end
    rounds.swarm.all.clear()
    await rounds.becomes(lease, "closed")


async def test_a_running_lab_without_a_lease_is_adopted_and_a_service_without_one_removed(
    rounds: Rounds,
) -> None:
    lost = replace(_lease(), device_uuids=("GPU-1",))
    rounds.add(lost)
    async with asyncio.timeout(20):
        while rounds.swarm.all:
            await rounds.stays(lost, "")
    rounds.add(lost)
    rounds.run(lost)
    await rounds.becomes(lost, "running")
    assert "s1" in rounds.swarm.all


def _lease() -> Lease:
    now = utc_now()
    return Lease(BEN, "hub", "ben", "", "gpu", LeaseState.RUNNING, Want(1), now, now)
