"""A real hub with its broker on the manager of a Swarm: a lab is a service, is reached, and is counted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest
from docker.errors import APIError
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network

from tests.swarm.cluster import Cluster
from tests.swarm.swarm_hub import NAME, PORT, SUBNET, SwarmHub
from tests.swarm.test_services import GATEWAY_IMAGE, container_of

pytestmark = pytest.mark.docker


@pytest.fixture
def hub(machines: Cluster, engine: docker.APIClient) -> Iterator[SwarmHub]:
    """A started hub; its services, gateway and network are removed at the end."""
    if shutil.which("configurable-http-proxy") is None:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")
    client = machines.manager.client
    list(client.load_image(b"".join(engine.get_image(GATEWAY_IMAGE))))
    ensure_network(calls_of(client), NAME, SUBNET)
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    found = SwarmHub(machines, folder, GATEWAY_IMAGE)
    found.environment["GPUSPAWNER_SIMULATED"] = "2 x H100 80GB"
    try:
        found.start()
        yield found
    finally:
        found.close()
        print(found.log_path.read_text()[-8000:])  # pytest shows it when the test fails
        for service in client.services(filters={"label": f"gpuspawner.hub={NAME}"}):
            client.remove_service(service["ID"])
        with suppress(APIError):
            client.remove_container(f"{NAME}-gateway", force=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_server_with_a_gpu_starts_answers_and_stops_and_a_restarted_hub_finds_it(
    hub: SwarmHub, machines: Cluster
) -> None:
    hub.call("POST", "/hub/api/users/ada")
    status, text = hub.call("POST", "/hub/api/users/ada/server", {"profile": "gpu"})
    assert status in (201, 202), text
    hub.until(lambda: hub.server("ada").get("ready"))
    assert hub.call("GET", "/user/ada/api") == (200, '{"version": "stub"}\n')
    assert hub.leases() == [("ada", "running")]
    found = container_of(machines, "a", "ada")
    environment = dict(line.split("=", 1) for line in found["Config"]["Env"])
    assert environment["JUPYTERHUB_API_URL"] == f"http://hub:{PORT + 2}/hub/api"
    assert found["Config"]["Labels"]["com.docker.swarm.service.name"].startswith(NAME)

    hub.close()
    hub.start()
    assert hub.call("GET", "/user/ada/api") == (200, '{"version": "stub"}\n')
    assert hub.leases() == [("ada", "running")]

    assert hub.call("DELETE", "/hub/api/users/ada/server")[0] in (202, 204)
    hub.until(lambda: not hub.server("ada"))
    hub.until(lambda: hub.leases() == [])
    assert machines.manager.client.services(filters={"label": f"gpuspawner.hub={NAME}"}) == []
