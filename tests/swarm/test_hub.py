"""A real hub with its broker on the manager of a Swarm: a lab is a service, is reached, and is counted."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from tests.swarm.cluster import Cluster
from tests.swarm.swarm_hub import NAME, PORT, SwarmHub, prepared_hub
from tests.swarm.test_services import container_of

pytestmark = pytest.mark.docker


@pytest.fixture
def hub(machines: Cluster, engine: docker.APIClient) -> Iterator[SwarmHub]:
    """A started hub with simulated GPUs."""
    with prepared_hub(machines, engine) as found:
        found.environment["GPUSPAWNER_SIMULATED"] = "2 x H100 80GB"
        found.start()
        yield found


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
