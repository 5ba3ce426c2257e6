"""Quotas through a real hub: groups and their properties, named servers, refusals without a traceback."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.hub.hubprocess import HubProcess

pytestmark = pytest.mark.docker

HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_QUOTAS": json.dumps([{"group": "students", "devices": 1}])}


async def make_group(hub: HubProcess, name: str, users: list[str], properties: dict[str, object]) -> None:
    """A group of the hub as an admin makes it."""
    await hub.add_users(*users)
    assert (await hub.call("POST", f"/groups/{name}"))[0] == 201
    assert (await hub.call("POST", f"/groups/{name}/users", {"users": users}))[0] == 200
    assert (await hub.call("PUT", f"/groups/{name}/properties", properties))[0] == 200


async def test_a_limit_holds_over_named_servers_even_in_the_same_instant(hub: HubProcess) -> None:
    await make_group(hub, "students", ["ada"], {})
    answers = await asyncio.gather(*(hub.spawn("ada", {"profile": "gpu"}, name) for name in ("a", "b")))
    started = [name for name, each in zip(("a", "b"), answers, strict=True) if each.ready]
    refused = [each for each in answers if not each.ready]
    assert (len(started), len(refused)) == (1, 1)
    assert "of 1 GPU in server" in refused[0].body + " ".join(refused[0].messages)
    status, body = await hub.post("ada", {"profile": "gpu"}, "c")
    assert status == 403
    assert f"You hold 1 of 1 GPU in server '{started[0]}': stop it, or choose CPU." in body
    assert (await hub.spawn("ada", {"profile": "cpu"}, "c")).ready
    await hub.stop_server("ada", started[0])
    await hub.stop_server("ada", "c")
    assert (await hub.spawn("ada", {"profile": "gpu"}, "c")).ready
    await hub.stop_server("ada", "c")
    assert "Traceback" not in hub.log


async def test_a_group_s_properties_are_limits(hub: HubProcess) -> None:
    await make_group(hub, "guests", ["eve"], {"tiers": ["cpu"], "color": "red"})
    status, body = await hub.post("eve", {"profile": "gpu"})
    assert (status, "Your quota does not include the tier 'One GPU': choose 'CPU'." in body) == (403, True)
    assert (await hub.call("PUT", "/groups/guests/properties", {"tiers": ["cpu", "gpu"]}))[0] == 200
    assert (await hub.spawn("eve", {"profile": "gpu"})).ready
    await hub.stop_server("eve")
