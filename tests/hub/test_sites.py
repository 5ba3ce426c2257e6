"""What happens at real sites: a pruned network, and names that JupyterHub takes for one."""

from __future__ import annotations

import time

import docker
import pytest

from tests.hub.hubprocess import NAME, HubProcess, eventually

pytestmark = pytest.mark.docker

REPAIR_SECONDS = 10.0
"""Longer than this nobody may be without a hub after a prune."""


async def test_a_hub_whose_network_was_pruned_is_reached_again_and_says_so(
    hub: HubProcess, engine: docker.APIClient
) -> None:
    await hub.add_users("pruned")
    said = hub.log.count("The labs' network")
    began = time.monotonic()
    engine.remove_network(NAME)

    async def repaired() -> bool:
        status, _ = await hub.call("GET", "/users/pruned")
        return status == 200 and hub.log.count("The labs' network") > said

    await eventually(repaired, REPAIR_SECONDS)
    assert time.monotonic() - began < REPAIR_SECONDS
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
