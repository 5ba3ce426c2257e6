"""The labs' own network, on the real engine: made when missing, told apart from another of its name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace

import docker
import docker.errors
import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub.container import ContainerPlan
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network
from gpuspawner.hub.spawner import GpuDockerSpawner
from traitlets.config import Config

from tests.hub.hubprocess import IMAGE, NAME
from tests.hubstart import own_subnet

pytestmark = pytest.mark.docker

NETWORK = f"{NAME}-missing"
SUBNET = own_subnet()
FIRST, SECOND = (str(ip_network(SUBNET)[number]) for number in (1, 2))


@pytest.fixture
def missing(engine: docker.APIClient, images: None) -> Iterator[docker.APIClient]:
    """An engine without the network, before and after."""

    def remove() -> None:
        with suppress(docker.errors.NotFound):
            engine.remove_container(NETWORK, force=True)
        with suppress(docker.errors.NotFound):
            engine.remove_network(NETWORK)

    remove()
    yield engine
    remove()


async def repaired(spawner: GpuDockerSpawner, fault: EngineFault, container: str) -> bool:
    """Whether the spawner's network takes the container now."""
    repair = spawner.lab_network.repair
    return await spawner.shared.docker.run(lambda call: repair(call, fault, container))


async def test_a_start_makes_the_network_that_somebody_pruned(missing: docker.APIClient) -> None:
    config = Config({"GpuDockerSpawner": {"network_name": NETWORK, "subnet": SUBNET}})
    spawner = GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))
    host = missing.create_host_config(network_mode=NETWORK)
    missing.create_container(IMAGE, name=NETWORK, host_config=host)
    with pytest.raises(EngineFault) as fault:
        await spawner.docker("start", NETWORK)
    assert await repaired(spawner, fault.value, NETWORK)
    await spawner.docker("start", NETWORK)
    container = missing.inspect_container(NETWORK)
    assert spawner.lab_network.address_of(container) == (SECOND, 8888)
    options = missing.inspect_network(NETWORK)["Options"]
    assert options["com.docker.network.bridge.enable_icc"] == "false"


async def test_a_start_takes_another_address_where_docker_holds_its_own(missing: docker.APIClient) -> None:
    config = Config({"GpuDockerSpawner": {"network_name": NETWORK, "subnet": SUBNET}})
    spawner = GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))
    ensure_network(calls_of(missing), NETWORK, SUBNET)
    networking = spawner.lab_network.endpoint(calls_of(missing))
    assert networking is not None
    ids = []
    try:
        for number in range(2):
            host = missing.create_host_config(network_mode=NETWORK)
            made = missing.create_container(
                IMAGE, name=f"{NETWORK}-{number}", host_config=host, networking_config=networking
            )
            ids.append(made["Id"])
        missing.start(ids[0])
        with pytest.raises(EngineFault) as fault:
            await spawner.docker("start", ids[1])
        assert await repaired(spawner, fault.value, ids[1])
        await spawner.docker("start", ids[1])
        first, second = (spawner.lab_network.address_of(missing.inspect_container(each))[0] for each in ids)
        assert ip_address(second) in ip_network(SUBNET)
        assert first != second
    finally:
        for each in ids:
            missing.remove_container(each, force=True)


async def test_a_network_of_extra_host_config_is_the_only_one(missing: docker.APIClient) -> None:
    """Docker (20.10, 28.5) joins the network of an address that is asked for, whatever the mode says."""
    config = Config({"GpuDockerSpawner": {"network_name": NETWORK, "subnet": SUBNET}})
    spawner = GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))
    ensure_network(calls_of(missing), NETWORK, SUBNET)
    networks = []
    for mode in (NETWORK, "none"):
        plan = ContainerPlan({"image": IMAGE, "name": NETWORK}, {"network_mode": mode}, ())
        container_id = await spawner.create_container(plan)
        missing.start(container_id)
        networks.append(list(missing.inspect_container(container_id)["NetworkSettings"]["Networks"]))
        missing.remove_container(container_id, force=True)
    assert networks == [[NETWORK], ["none"]]


async def test_another_fault_of_a_start_is_left_alone(missing: docker.APIClient) -> None:
    config = Config({"GpuDockerSpawner": {"network_name": NETWORK, "subnet": SUBNET}})
    spawner = GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))
    with pytest.raises(EngineFault) as fault:
        await spawner.docker("start", NETWORK)
    assert not await repaired(spawner, fault.value, NETWORK)


def test_the_command_makes_it_once_and_refuses_another_subnet(
    missing: docker.APIClient, tmp_path: Path
) -> None:
    config = tmp_path / "config.py"

    def run(subnet: str) -> tuple[int, str]:
        config.write_text(
            f"c = get_config()\nc.GpuDockerSpawner.network_name = {NETWORK!r}\n"
            f"c.GpuDockerSpawner.subnet = {subnet!r}\n"
        )
        command = [sys.executable, "-m", "gpuspawner.tools.make_network", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert run(SUBNET) == (0, f"{FIRST}\n")
    assert run(SUBNET) == (0, f"{FIRST}\n")
    assert run("10.214.9.0/24") == (
        1,
        f"the network '{NETWORK}' has the addresses {SUBNET}, not 10.214.9.0/24: set GPUSPAWNER_SUBNET to "
        f"them, or run 'docker network rm {NETWORK}'\n",
    )
    assert run("nonsense") == (
        1,
        "c.GpuDockerSpawner.subnet: the network 'nonsense' can't be read: write it like \"10.213.0.0/20\"\n",
    )
    config.unlink()
    command = [sys.executable, "-m", "gpuspawner.tools.make_network", "--config", str(config)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
