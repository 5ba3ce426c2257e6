"""docs/several-machines.md word by word: from three engines that know nothing of each other to a lab."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import docker
import pytest
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network

from tests.docker.engine import missing
from tests.swarm.cluster import Cluster, Machine, cluster
from tests.swarm.conftest import LAB_IMAGES
from tests.swarm.swarm_hub import (
    CONFIG,
    NAME,
    ROOT,
    SUBNET,
    Agent,
    SwarmHub,
    as_host,
    script_of,
    uuid_of,
)
from tests.swarm.test_services import GATEWAY_IMAGE

pytestmark = [pytest.mark.docker, pytest.mark.slow]
PAGE = (ROOT / "docs" / "several-machines.md").read_text()
ADDRESS = "10.0.0.1"
"""Of the hub's machine, on the page."""


def on_page(begin: str) -> str:
    """A command of the page that begins like this."""
    words = re.escape(begin).replace("\\ ", r"\s+")  # a line may end within a command
    found = re.search(rf"(?:^ *|`)({words}[^`]*?)(?:`|$)", PAGE, re.MULTILINE)
    assert found is not None, begin
    return " ".join(found[1].split())


def settings() -> str:
    """The settings of the page's fourth step."""
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return "\n".join(line.strip() for line in found[1].splitlines())


def type_in(machine: Machine, command: str, environment: Mapping[str, str], *, may_fail: bool = False) -> str:
    """Types a command in the shell of this machine; returns what it prints.

    The hub's machine has `jupyterhub_config.py` in the current folder.
    """
    programs = str(Path(sys.executable).parent)
    shell = as_host(machine, "sh", "-c", f'PATH="{programs}:$PATH"; {command}')
    environment = {**environment, "DOCKER_HOST": machine.docker_host}
    return subprocess.run(
        shell, env=environment, cwd=machine.folder, stdout=subprocess.PIPE, text=True, check=not may_fail
    ).stdout


def test_the_page_word_by_word(engine: docker.APIClient, images: None) -> None:
    if (why := missing()) is not None or shutil.which("configurable-http-proxy") is None:
        pytest.skip(why or "configurable-http-proxy is not on the PATH: run `make test`")
    with cluster(joined=False) as machines, tempfile.TemporaryDirectory(prefix="gh-") as folder:
        a = machines.manager
        machines.load(engine, *LAB_IMAGES[:1])
        list(a.client.load_image(b"".join(engine.get_image(GATEWAY_IMAGE))))
        (a.folder / "jupyterhub_config.py").write_text(f"load_subconfig({str(CONFIG)!r})\n")
        hub = SwarmHub(machines, Path(folder), GATEWAY_IMAGE)
        hub.use_script(script_of(a))
        del hub.environment["GPUSPAWNER_ENGINE"]
        try:
            _walk(machines, hub)
        finally:
            hub.close()
            print(hub.log_path.read_text()[-8000:] if hub.log_path.exists() else "")


def _walk(machines: Cluster, hub: SwarmHub) -> None:
    """The steps of "Setting up", and a server on gpu-b."""
    a, b = machines["a"], machines["b"]
    said = type_in(a, on_page("docker swarm init").replace(ADDRESS, a.address), hub.environment)
    [join] = [line.strip() for line in said.splitlines() if line.strip().startswith("docker swarm join ")]
    agent = Agent(b, hub)
    type_in(b, join, agent.environment)
    hub.environment["GPUSPAWNER_TEST_SETTINGS"] = settings().replace(ADDRESS, a.address)
    ensure_network(calls_of(a.client), NAME, SUBNET)
    hub.start()
    line = type_in(a, on_page("gpuspawner node token"), hub.environment).strip()
    said = type_in(b, on_page("gpuspawner node join").replace("LINE", line), agent.environment)
    [by_hand] = [each for each in said.splitlines() if each.strip().startswith("GPUSPAWNER_STATE_DIR=")]
    runs = subprocess.Popen(as_host(b, "sh", "-c", f"exec env {by_hand.strip()}"), env=agent.environment)
    try:
        listing = on_page("gpuspawner node list")
        hub.until(lambda: uuid_of("b") in hub.serving())
        assert "gpu-b" in type_in(a, listing, hub.environment)
        hub.spawn("ada", "cpu")  # her home is on the hub's machine
        hub.stop("ada")
        moved = type_in(a, on_page("gpuspawner homes move ada gpu-b"), hub.environment)
        assert "is on gpu-b now" in moved
        hub.spawn("ada", "on-b")
        [found] = b.client.containers(filters={"label": "gpuspawner.user=ada"})
        environment = b.client.inspect_container(found["Id"])["Config"]["Env"]
        assert f"NVIDIA_VISIBLE_DEVICES={uuid_of('b')}" in environment
        node = next(each for each in machines.nodes() if each["Description"]["Hostname"] == "b")
        assert node["Spec"]["Labels"] == {"gpuspawner.node": "gpu-b"}
        hub.stop("ada")
        found = type_in(a, on_page("gpuspawner doctor"), hub.environment, may_fail=True)
        assert "gpu-b" in found, found
        _take_out(machines, hub, agent)
    finally:
        runs.send_signal(signal.SIGTERM)
        runs.wait()


def _take_out(machines: Cluster, hub: SwarmHub, agent: Agent) -> None:
    """The steps of "Taking a machine out". The host name of gpu-b is b here."""
    a, b = machines["a"], machines["b"]
    listing = on_page("gpuspawner node list")
    said = type_in(a, on_page("gpuspawner node drain gpu-b"), hub.environment)
    assert said.startswith("Nothing new starts on gpu-b (1 GPU)")
    assert "draining" in type_in(a, listing, hub.environment)
    type_in(a, on_page("gpuspawner node undrain"), hub.environment)
    assert "draining" not in type_in(a, listing, hub.environment)
    said = type_in(b, on_page("gpuspawner node leave"), agent.environment)
    assert said == "Left. On the broker's machine: gpuspawner node forget NAME\n"
    type_in(b, on_page("docker swarm leave"), agent.environment)
    said = type_in(a, on_page("gpuspawner node forget"), hub.environment)
    assert said.startswith("Forgot gpu-b: its leases end within seconds.")
    hub.until(lambda: "gpu-b" not in type_in(a, listing, hub.environment))
    hub.until(lambda: hub.serving() == [uuid_of("a")])
    remove = on_page("docker node rm --force gpu-b").replace("gpu-b", "b")
    type_in(a, remove, hub.environment)
    assert [each["Description"]["Hostname"] for each in machines.nodes()] == ["a"]
