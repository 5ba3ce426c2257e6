"""`active_server_limit` counts servers that run: any number of people may wait for a GPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from gpuspawner.hub.launch import NO_PLACE

from tests.hub.hubprocess import HubProcess, eventually

pytestmark = pytest.mark.docker

HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(Path(__file__).with_name("places.py"))}
FULL = (
    "This hub runs at most 2 servers at a time, and all of these run. Try again when somebody has stopped "
    "a server."
)


async def test_people_wait_for_a_gpu_although_as_many_servers_run_as_may(hub: HubProcess) -> None:
    for user in ("one", "two"):
        assert (await hub.spawn(user, {"profile": "gpu"})).ready
    waiting = [f"waits{number}" for number in range(4)]
    for user in waiting:
        assert (await hub.post(user, {"profile": "gpu"}))[0] == 202
        await hub.progress(user, until="in line")
    shown = await hub.server(waiting[0])
    assert shown is not None
    assert shown["pending"] == "spawn"  # the hub's own pages show it as ever
    status, sentence = await hub.post("plain", {"profile": "cpu"})
    assert (status, sentence) == (429, FULL)
    first = asyncio.create_task(hub.progress(waiting[0]))
    await hub.stop_server("one")  # its GPU and its place go to the first in line
    assert (await first)[-1]["ready"]
    assert (await hub.post("plain", {"profile": "cpu"}))[0] == 429
    for user in (*waiting[1:], waiting[0], "two"):
        await hub.stop_server(user)
    assert (await hub.spawn("plain", {"profile": "cpu"})).ready
    await hub.stop_server("plain")


async def test_who_gets_a_gpu_in_a_full_hub_starts_with_the_next_place(hub: HubProcess) -> None:
    """A restarted hub counts the servers that run, too."""
    for user in ("one", "two"):
        assert (await hub.spawn(user, {"profile": "cpu"})).ready
    hub.stop()
    hub.start()
    assert (await hub.post("three", {"profile": "gpu"}))[0] == 202
    events = await hub.progress("three", until=NO_PLACE)
    assert events[-1]["message"] == NO_PLACE
    assert await hub.leases() == [("three", "", "reserved")]
    started = asyncio.create_task(hub.progress("three"))
    await hub.stop_server("two")
    assert (await started)[-1]["ready"]

    async def running() -> bool:
        return await hub.leases() == [("three", "", "running")]

    await eventually(running)
    for user in ("one", "three"):
        await hub.stop_server(user)
