"""A real hub with its broker on the manager of a Swarm: a lab is a service, is reached, and is counted."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network

from tests.hubstart import end_hub
from tests.swarm.cluster import Cluster
from tests.swarm.test_services import GATEWAY_IMAGE, container_of

pytestmark = pytest.mark.docker
ROOT = Path(__file__).resolve().parents[2]
NAME = f"swarmhub-{secrets.token_hex(3)}"
SUBNET = "10.213.32.0/24"
PORT = 8000
SOON_SECONDS = 60.0


class SwarmHub:
    """A hub that runs on machine a; what is asked of it is asked there."""

    def __init__(self, machines: Cluster, folder: Path) -> None:
        self.machines, self.folder = machines, folder
        self.token = secrets.token_hex(16)
        self.log_path = folder / "hub.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "spawner"), os.environ.get("PYTHONPATH", "")]),
            "DOCKER_HOST": machines.manager.docker_host,
            "GPUSPAWNER_ENGINE": "swarm",
            "GPUSPAWNER_PORT": str(PORT),
            "GPUSPAWNER_STATE_DIR": str(folder),
            "GPUSPAWNER_PASSWORD": secrets.token_hex(16),
            "GPUSPAWNER_ADMIN_PASSWORD": secrets.token_hex(24),
            "GPUSPAWNER_NAME": NAME,
            "GPUSPAWNER_SUBNET": SUBNET,
            "GPUSPAWNER_IMAGE": "gpuspawner-hubtest/lab",
            "GPUSPAWNER_SIMULATED": "2 x H100 80GB",
            "GPUSPAWNER_CONFIG": str(ROOT / "tests" / "swarm" / "hub_config.py"),
            "GPUSPAWNER_TEST_TOKEN": self.token,
            "GPUSPAWNER_TEST_GATEWAY": GATEWAY_IMAGE,
        }

    def start(self) -> None:
        """Starts it, and returns when its API answers."""
        config = str(ROOT / "tests" / "swarm" / "hub_config.py")
        command = self.machines.manager.inside(
            "unshare", "--uts", "sh", "-c", 'hostname a; exec "$@"', "sh",
            sys.executable, "-m", "jupyterhub", "-f", config,
        )  # fmt: skip
        with self.log_path.open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self.until(lambda: self.call("GET", "/hub/api/info")[0] == 200)

    def close(self) -> None:
        """Ends hub, proxy and broker."""
        if self._process is not None:
            end_hub(self._process)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """One request through the proxy, on machine a: status and text; 0 if nobody answers."""
        command = self.machines.manager.inside(
            "curl", "-s", "-m", "90", "-X", method, "-w", "\n%{http_code}",
            "-H", f"Authorization: token {self.token}",
            *(["-d", json.dumps(body)] if body is not None else []),
            f"http://127.0.0.1:{PORT}{path}",
        )  # fmt: skip
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
        text, _, status = said.rpartition("\n")
        return int(status or 0), text

    def until(self, condition: Any) -> None:
        """Waits until it is so; fails after SOON_SECONDS with the hub's log."""
        deadline = time.monotonic() + SOON_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.log_path.read_text()[-6000:]
            time.sleep(0.2)

    def server(self, user: str) -> dict[str, Any]:
        """The hub's model of the user's server; empty if there is none."""
        _, text = self.call("GET", f"/hub/api/users/{user}")
        found: dict[str, Any] = json.loads(text).get("servers", {}).get("", {})
        return found

    def leases(self) -> list[tuple[str, str]]:
        """User and state of the broker's leases."""
        command = ["curl", "-s", "--unix-socket", str(self.folder / "broker.sock"), "http://b/api/status"]
        document = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        return sorted((lease["user"], lease["state"]) for lease in document["leases"])


@pytest.fixture
def hub(machines: Cluster, engine: docker.APIClient) -> Iterator[SwarmHub]:
    """A started hub; its services, gateway and network are removed at the end."""
    if shutil.which("configurable-http-proxy") is None:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")
    client = machines.manager.client
    list(client.load_image(b"".join(engine.get_image(GATEWAY_IMAGE))))
    ensure_network(calls_of(client), NAME, SUBNET)
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    found = SwarmHub(machines, folder)
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
