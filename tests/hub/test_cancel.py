"""A start that is cancelled on a busy hub, where it needs longer to end than JupyterHub waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.hub.hubprocess import HubProcess, eventually

pytestmark = pytest.mark.docker

HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(Path(__file__).with_name("slow_cancel.py"))}


async def begin(hub: HubProcess, user: str) -> asyncio.Task[Any]:
    """A start that waits for the first answer of a server that never gives one."""
    start = asyncio.create_task(hub.post(user, {"profile": "mute"}))

    async def has_a_container() -> bool:
        return [container["State"] for container in hub.containers(user)] == ["running"]

    await eventually(has_a_container)
    return start


async def nothing(hub: HubProcess, user: str) -> None:
    """Returns when hub and Docker have nothing of the user any more."""

    async def gone() -> bool:
        model = await hub.server(user)
        return (model is None or model["stopped"]) and hub.containers(user) == []

    await eventually(gone)


async def test_it_is_stopped_all_the_same_and_the_next_start_works(hub: HubProcess) -> None:
    start = await begin(hub, "kim")
    page = asyncio.create_task(hub.progress("kim"))
    status, said = await hub.call("DELETE", "/users/kim/server")
    assert status in (202, 204), said
    await start
    last = (await page)[-1]
    assert (last["failed"], last["message"]) == (True, "The start was cancelled.")
    await nothing(hub, "kim")
    assert (await hub.spawn("kim", {"profile": "cpu"})).ready
    await hub.stop_server("kim")


async def test_a_start_before_that_is_refused_with_a_sentence(hub: HubProcess) -> None:
    """JupyterHub would stop the new server in place of the cancelled one."""
    first = await begin(hub, "lea")
    cancel = asyncio.create_task(hub.call("DELETE", "/users/lea/server"))
    await asyncio.sleep(0.3)  # within JupyterHub's second
    assert await hub.post("lea", {"profile": "cpu"}) == (
        409,
        "The last start of this server is still being cancelled: try again in a few seconds.",
    )
    assert (await cancel)[0] in (202, 204)
    await first
    await nothing(hub, "lea")
    assert (await hub.spawn("lea", {"profile": "cpu"})).ready
    await hub.stop_server("lea")


async def test_a_hub_that_ends_while_pages_follow_a_start_says_so_without_a_traceback(
    hub: HubProcess,
) -> None:
    start = await begin(hub, "max")
    pages = [asyncio.create_task(hub.progress("max")) for _ in range(2)]
    await hub.progress("max", until="Server requested")  # asked later, so the two are followed by now
    await asyncio.sleep(1)
    before = len(hub.log)
    hub.stop()
    await asyncio.gather(start, *pages, return_exceptions=True)
    said = hub.log[before:]
    cut_off = said.count("The hub ends while a page follows a start: GET /hub/api/users/max/server/progress")
    ended = said.count("200 GET /hub/api/users/max/server/progress")  # the start's end came first
    assert cut_off + ended >= len(pages), said
    assert "asynchronous generator" not in said
    hub.start()
