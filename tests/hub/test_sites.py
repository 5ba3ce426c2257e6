"""What happens at real sites: a pruned network, and from inside a lab the fence around it."""

from __future__ import annotations

from urllib.parse import unquote

import docker
import pytest
from gpuspawner.hub.network import gateway_of

from tests.hub.hubprocess import NAME, SUBNET, HubProcess, eventually

pytestmark = pytest.mark.docker

SAME = ("a%1Fb", "a%01fb")
"""Two users, as addresses name them, whom DockerSpawner's own escape takes for one."""


async def test_a_hub_whose_network_was_pruned_is_reached_again_and_says_so(
    hub: HubProcess, engine: docker.APIClient
) -> None:
    await hub.add_users("pruned")
    said = hub.log.count("The labs' network")
    engine.remove_network(NAME)

    async def repaired() -> bool:
        status, _ = await hub.call("GET", "/users/pruned")
        return status == 200 and hub.log.count("The labs' network") > said

    await eventually(repaired)
    assert (await hub.spawn("pruned", {"profile": "gpu"})).ready
    await hub.stop_server("pruned")
    assert engine.inspect_network(NAME)["Labels"] == {"gpuspawner.network": NAME}


async def test_a_network_made_for_a_prune_s_filter_is_spared(
    hub: HubProcess, engine: docker.APIClient
) -> None:
    before = engine.inspect_network(NAME)["Id"]
    # Only this hub's own: another run's networks on this engine are not ours to prune.
    engine.prune_networks({"label": [f"gpuspawner.network={NAME}"], "label!": ["gpuspawner.network"]})
    assert engine.inspect_network(NAME)["Id"] == before


async def test_a_name_that_cant_be_printed_is_refused_with_a_sentence(hub: HubProcess) -> None:
    for user in SAME:
        await hub.add_users(user)
        status, sentence = await hub.post(user, {"profile": "cpu"})
        assert status == 400
        assert sentence == (
            f"The user name {unquote(user)!r} has characters that can't be printed, so no server starts "
            "under it. Ask the admin of this hub to rename you."
        )


async def test_a_named_server_and_a_user_of_that_name_are_two_clients(hub: HubProcess) -> None:
    """JupyterHub calls the OAuth client of both "jupyterhub-user-ada-b"; the second would take it over."""
    clients = set()
    for user, server in (("ada", "b"), ("ada-b", "")):
        await hub.add_users(user)
        assert (await hub.spawn(user, {"profile": "cpu"}, server=server)).ready
        environment = hub.inspect(user)["Config"]["Env"]
        clients.add(next(each for each in environment if each.startswith("JUPYTERHUB_CLIENT_ID=")))
    assert clients == {
        "JUPYTERHUB_CLIENT_ID=jupyterhub-user-ada!b",
        "JUPYTERHUB_CLIENT_ID=jupyterhub-user-ada-b",
    }
    for user, server in (("ada", "b"), ("ada-b", "")):
        await hub.stop_server(user, server)


async def test_a_lab_reaches_the_hub_and_neither_another_lab_nor_what_is_behind_the_hub(
    hub: HubProcess, engine: docker.APIClient
) -> None:
    """As a student would try it, from inside."""
    for user in ("inside", "neighbour"):
        assert (await hub.spawn(user, {"profile": "cpu"})).ready
    inside, neighbour = hub.inspect("inside"), hub.inspect("neighbour")
    other = neighbour["NetworkSettings"]["Networks"][NAME]["IPAddress"]
    host = gateway_of(SUBNET)

    def connects(address: str, port: int) -> bool:
        # Not wget: a static busybox's wget ends with a segmentation fault on some machines.
        command = ["/bin/busybox", "nc", "-w", "3", address, str(port), "-e", "/bin/busybox", "true"]
        exec_id = engine.exec_create(inside["Id"], command)["Id"]
        engine.exec_start(exec_id)
        return bool(engine.exec_inspect(exec_id)["ExitCode"] == 0)

    reached = {
        "itself": connects("127.0.0.1", 8888),
        "the hub's API": connects(host, hub.port + 2),
        "the other lab": connects(other, 8888),
        "the proxy": connects(host, hub.port),
        "the proxy's API": connects(host, hub.port + 1),
        "the GPU page's own port": connects(host, hub.port + 3),
    }
    assert reached == {
        "itself": True,
        "the hub's API": True,
        "the other lab": False,
        "the proxy": False,
        "the proxy's API": False,
        "the GPU page's own port": False,
    }
    look = ["/bin/busybox", "ls", "-d", "/var/run/docker.sock", "/run/docker.sock", str(hub.folder)]
    exec_id = engine.exec_create(inside["Id"], look)["Id"]
    assert b"No such file" in engine.exec_start(exec_id)
    assert engine.exec_inspect(exec_id)["ExitCode"] == 1
    settings = inside["HostConfig"]
    assert (settings["Privileged"], settings["CapDrop"], settings["CapAdd"]) == (False, ["ALL"], None)
    assert settings["SecurityOpt"] == ["no-new-privileges"]
    for user in ("inside", "neighbour"):
        await hub.stop_server(user)


async def test_a_server_that_is_cut_from_the_network_is_connected_again(
    hub: HubProcess, engine: docker.APIClient
) -> None:
    """Also where the hub starts while it is cut: neither the hub's start nor the server fails."""
    assert (await hub.spawn("cut", {"profile": "cpu"})).ready
    address = hub.inspect("cut")["NetworkSettings"]["Networks"][NAME]["IPAddress"]

    async def connected() -> bool:
        networks = hub.inspect("cut")["NetworkSettings"]["Networks"]
        return bool(networks.get(NAME, {}).get("IPAddress") == address)

    engine.disconnect_container_from_network(hub.inspect("cut")["Id"], NAME, force=True)
    await eventually(connected)
    hub.stop()
    engine.disconnect_container_from_network(hub.inspect("cut")["Id"], NAME, force=True)
    hub.start()
    await eventually(connected)
    await hub.stop_server("cut")
    assert hub.containers("cut") == []
