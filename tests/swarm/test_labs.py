"""Hub, broker, agents and labs of three machines together: each lab has a GPU of its machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
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

pytestmark = pytest.mark.docker


@dataclass
class Site:
    """The hub on machine a, whose broker has a's GPU, and the agents of b and c."""

    machines: Cluster
    hub: SwarmHub
    agents: dict[str, Agent]

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
        for agent in found.agents.values():
            agent.join()
            agent.start()
        hub.until(lambda: hub.serving() == sorted(map(uuid_of, "abc")))
        yield found
    finally:
        for agent in found.agents.values():
            agent.kill()
        hub.close()
        print(found.log())  # pytest shows it when a test fails
        for service in client.services(filters={"label": f"gpuspawner.hub={NAME}"}):
            client.remove_service(service["ID"])
        with suppress(APIError):
            client.remove_container(f"{NAME}-gateway", force=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("machine", ["b", "a", "c"])
def test_a_lab_has_the_gpu_of_the_machine_that_it_is_on(site: Site, machine: str) -> None:
    hub = site.hub
    hub.spawn(f"ada-{machine}", f"on-{machine}")
    assert hub.call("GET", f"/user/ada-{machine}/api") == (200, '{"version": "stub"}\n')
    assert hub.leases() == [(f"ada-{machine}", "running")]
    environment = site.environment(f"ada-{machine}", machine)
    assert environment["NVIDIA_VISIBLE_DEVICES"] == uuid_of(machine)
    hub.stop(f"ada-{machine}")
    assert hub.leases() == []
