"""Hub, broker, agents and labs of three machines together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.errors import APIError
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network

from tests.swarm.cluster import Cluster
from tests.swarm.swarm_hub import NAME, SUBNET, Agent, SwarmHub, script_of, uuid_of
from tests.swarm.test_services import GATEWAY_IMAGE, container_of


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

    def log(self) -> str:
        """What hub, broker and agents have written last."""
        parts = [self.hub.log_path.read_text()[-8000:]]
        parts += [f"agent of {name}:\n{agent.log[-3000:]}" for name, agent in self.agents.items()]
        return "\n".join(parts)


@pytest.fixture(scope="module")
def site(machines: Cluster, engine: docker.APIClient) -> Iterator[Site]:
    """Everything runs, and the GPUs of all three machines are in service."""
    if shutil.which("configurable-http-proxy") is None:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")
    client = machines.manager.client
    list(client.load_image(b"".join(engine.get_image(GATEWAY_IMAGE))))
    ensure_network(calls_of(client), NAME, SUBNET)
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    hub = SwarmHub(machines, folder, GATEWAY_IMAGE)
    hub.use_script(script_of(machines.manager))
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
        hub.close()
        print(found.log())  # pytest shows it when a test fails
        client = machines.manager.client  # another one, if it was started again
        for service in client.services(filters={"label": f"gpuspawner.hub={NAME}"}):
            client.remove_service(service["ID"])
        with suppress(APIError):
            client.remove_container(f"{NAME}-gateway", force=True)
        shutil.rmtree(folder, ignore_errors=True)
