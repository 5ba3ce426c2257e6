"""Hub, broker, agents and labs of three machines together."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import docker
import pytest

from tests.swarm.cluster import Cluster
from tests.swarm.swarm_hub import NAME, Agent, SwarmHub, prepared_hub, script_of, uuid_of
from tests.swarm.test_services import container_of


@dataclass
class Site:
    """The hub on machine a, whose broker has a's GPU, and the agents of b and c."""

    machines: Cluster
    hub: SwarmHub
    agents: dict[str, Agent]

    @property
    def all(self) -> list[str]:
        """The GPUs of all machines."""
        return sorted(map(uuid_of, "abc"))

    def home(self, user: str, machine: str) -> str:
        """The volume that the user's lab on that machine has as its home."""
        mounts = container_of(self.machines, machine, user)["Mounts"]
        return next(str(each["Name"]) for each in mounts if each["Type"] == "volume")

    def labs(self, machine: str) -> list[str]:
        """Whose labs run on that machine."""
        client = self.machines[machine].client
        found = client.containers(filters={"label": [f"gpuspawner.hub={NAME}", "gpuspawner.user"]})
        return sorted(each["Labels"]["gpuspawner.user"] for each in found)

    def environment(self, user: str, machine: str) -> dict[str, str]:
        """The environment of the user's lab, which must run on that machine."""
        found = container_of(self.machines, machine, user)["Config"]["Env"]
        return dict(line.split("=", 1) for line in found)

    def agents_log(self) -> str:
        """What the agents have written last."""
        return "\n".join(f"agent of {name}:\n{agent.log[-3000:]}" for name, agent in self.agents.items())


@pytest.fixture(scope="module")
def site(machines: Cluster, engine: docker.APIClient) -> Iterator[Site]:
    """Everything runs, and the GPUs of all three machines are in service."""
    with open_site(machines, engine) as found:
        yield found


@contextmanager
def open_site(machines: Cluster, engine: docker.APIClient, settings: str = "") -> Iterator[Site]:
    """The same with more settings of the hub."""
    with prepared_hub(machines, engine) as hub:
        hub.use_script(script_of(machines.manager))
        hub.environment["GPUSPAWNER_TEST_MORE"] = settings
        found = Site(machines, hub, {name: Agent(machines[name], hub) for name in ("b", "c")})
        try:
            hub.start()
            with ThreadPoolExecutor() as pool:
                list(pool.map(Agent.enter, found.agents.values()))
            hub.until(lambda: hub.serving() == found.all)
            yield found
        finally:
            for agent in found.agents.values():
                agent.kill()
            print(found.agents_log())  # pytest shows it when a test fails
