"""What the broker asks a real manager: services, tasks of removed ones, names of machines."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator

import pytest
from gpuspawner.core.labels import ContainerLabels
from gpuspawner.node.docker_engine import DockerEngine
from gpuspawner.node.docker_swarm import DockerSwarm
from gpuspawner.node.swarm import Service

from tests.swarm.cluster import Cluster

pytestmark = pytest.mark.docker
LEASE = "d" * 32


@pytest.fixture
async def swarm(machines: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DockerSwarm]:
    """The manager of the Swarm, asked by its Docker Engine."""
    monkeypatch.setenv("DOCKER_HOST", machines.manager.docker_host)
    engine = DockerEngine(log=logging.getLogger("test"))
    yield DockerSwarm(engine)
    await engine.close()


def create(machines: Cluster, machine: str) -> str:
    """A service with the lease on that machine; returns its id when its task runs."""
    client = machines.manager.client
    labels = {"gpuspawner.lease": LEASE, "gpuspawner.node": machine}
    made = machines.create_service(machine, "swarm-test", labels)
    deadline = time.monotonic() + 60
    while not any(each["Status"]["State"] == "running" for each in client.tasks(filters={"service": made})):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return made


async def test_a_removed_service_is_seen_until_its_machine_has_ended_its_task(
    machines: Cluster, swarm: DockerSwarm
) -> None:
    made = create(machines, "b")
    (found,) = await swarm.services("b")
    created = found.created_unix_seconds
    assert found == Service(made, ContainerLabels(LEASE), "swarm-test", created)
    assert await swarm.services("c") == ()
    assert await swarm.of_lease(LEASE) == (
        Service(made, ContainerLabels(LEASE), "swarm-test", created, may_run=True),
    )
    machines["b"].cut()
    try:
        await swarm.remove(made)
        await swarm.remove(made)  # no error
        assert await swarm.services("b") == ()
        (left,) = await swarm.of_lease(LEASE)
        assert (left.id, left.labels, left.is_removed) == (made, ContainerLabels(LEASE), True)
    finally:
        machines["b"].mend()
    deadline = time.monotonic() + 60
    while await swarm.of_lease(LEASE):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert machines["b"].client.containers(filters={"label": f"gpuspawner.lease={LEASE}"}) == []


async def test_a_machine_is_named(machines: Cluster, swarm: DockerSwarm) -> None:
    node = machines.node_id("c")

    def label() -> str:
        (found,) = [each for each in machines.nodes() if each["ID"] == node]
        return str(found["Spec"]["Labels"].get("gpuspawner.node"))

    assert await swarm.name_machine(node, "gpu-c") == ""
    assert label() == "gpu-c"
    assert await swarm.name_machine(node, "b") == (
        "another machine of the Swarm has the name b (see `docker node ls`)"
    )
    assert await swarm.name_machine("x" * 25, "d") == "the machine d isn't in the Swarm of the hub's machine"
    assert await swarm.name_machine(node, "c") == ""
    assert label() == "c"
