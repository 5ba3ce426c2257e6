"""A machine of a Swarm as the broker's rounds see it: containers, and services without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from gpuspawner.broker.leases.services import ServiceEngine, enter_swarm
from gpuspawner.core.errors import ConfigError, EngineFault
from gpuspawner.core.labels import ContainerLabels
from gpuspawner.node.engine import Container
from gpuspawner.node.swarm import Service

from tests.unit.service_bench import FakeEngine

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
