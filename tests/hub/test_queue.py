"""When all is taken: a place in line, shown in the progress stream, given up at once, never a trap."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.hub.hubprocess import HubProcess, Spawned, eventually

pytestmark = pytest.mark.docker

TIMEOUT = "GPUSPAWNER_TEST_QUEUE_TIMEOUT"
HUB_ENVIRONMENT = {TIMEOUT: "120"}
"""Nobody's place is lost to a busy machine."""


@asynccontextmanager
async def both_gpus_taken(hub: HubProcess) -> AsyncIterator[None]:
    for user in ("one", "two"):
        assert (await hub.spawn(user, {"profile": "gpu"})).ready
    try:
        yield
    finally:
        for user in ("one", "two"):
            await hub.stop_server(user)


@asynccontextmanager
async def timeout_of(hub: HubProcess, seconds: str) -> AsyncIterator[None]:
    """The hub with another timeout of the queue."""
    usual = hub.environment[TIMEOUT]

    def restart(value: str) -> None:
        hub.stop()
        hub.environment[TIMEOUT] = value
        hub.start()

    restart(seconds)
    try:
        yield
    finally:
        restart(usual)


async def waiting(hub: HubProcess) -> list[tuple[str, int]]:
    """Who waits, with the place in line."""
    document = await hub.broker_status()
    return [(entry["user"], entry["position"]) for entry in document["queue"]]


async def queue(hub: HubProcess, user: str, place: int) -> asyncio.Task[tuple[int, str]]:
    """A start that waits in line at `place`."""
    task = asyncio.create_task(hub.post(user, {"profile": "gpu"}))

    async def in_line() -> bool:
        return (user, place) in await waiting(hub)

    await eventually(in_line)
    return task


async def test_places_in_line_move_up_and_end_in_a_server(hub: HubProcess) -> None:
    async with both_gpus_taken(hub):
        third = await queue(hub, "three", 1)
        fourth = await queue(hub, "four", 2)
        seen = asyncio.create_task(hub.progress("four"))
        late = await hub.progress("four", until="in line")
        assert [event["message"] for event in late][-1] == "2nd in line for a simulated GPU"
        await hub.call("DELETE", "/users/three/server")
        await hub.progress("four", until="1st in line")  # told before the next change: two may be told as one
        assert await waiting(hub) == [("four", 1)]
        await hub.stop_server("one")
        events = await seen
        assert events[-1].get("ready") is True
        assert [event["message"] for event in events][:6] == [
            "Server requested",
            "Asking for a GPU",
            "2nd in line for a simulated GPU",
            "1st in line for a simulated GPU",
            "1 simulated GPU reserved for you",
            "Container created",
        ]
        await asyncio.gather(third, fourth)
        await hub.stop_server("four")


async def test_cancelling_gives_the_place_back_at_once_and_cpu_starts(hub: HubProcess) -> None:
    async with both_gpus_taken(hub):
        task = await queue(hub, "kim", 1)
        cancel = asyncio.create_task(hub.call("DELETE", "/users/kim/server"))

        async def nobody_waits() -> bool:
            return await waiting(hub) == []

        await eventually(nobody_waits)  # of the 120 that the place would last by itself
        assert (await cancel)[0] in (202, 204)
        await task
        # The hub removes the route, which isn't there yet: nobody has to read that.
        assert not re.search(
            r"^\[[WE] .*(api_request to proxy failed|already deleted)", hub.log, re.MULTILINE
        )
        assert (await hub.spawn("kim", {"profile": "cpu"})).ready
        await hub.stop_server("kim")


async def test_after_the_timeout_a_sentence_offers_cpu_and_cpu_starts(hub: HubProcess) -> None:
    async with timeout_of(hub, "12"), both_gpus_taken(hub):
        task = await queue(hub, "tim", 1)
        events = await hub.progress("tim")
        assert events[-1]["failed"] is True
        message = events[-1]["message"]
        assert message.startswith("Spawn failed: ")
        assert "CPU" in message
        assert re.findall(r'href="([^"]*)">([^<]*)<', events[-1]["html_message"]) == [
            ("/hub/spawn/tim?opt-profile=cpu", "Start with CPU now"),
            ("/hub/spawn/tim?opt-profile=gpu", "Wait again"),
            ("/hub/spawn/tim", "Choose again"),
        ]
        await task
        assert await waiting(hub) == []
        assert hub.containers("tim") == []
        assert (await hub.spawn("tim", {"profile": "cpu"})).ready
        await hub.stop_server("tim")


async def test_eight_users_on_two_gpus_are_all_served(hub: HubProcess) -> None:
    names = [f"herd{number}" for number in range(8)]
    await hub.add_users(*names)

    async def turn(user: str) -> Spawned:
        spawned = await hub.spawn(user, {"profile": "gpu"})
        if spawned.ready:
            await hub.stop_server(user)
        return spawned

    results = await asyncio.gather(*(turn(user) for user in names))
    assert [result.ready for result in results] == [True] * 8

    async def free() -> bool:
        return await hub.leases() == []

    await eventually(free)
    assert hub.containers() == []
