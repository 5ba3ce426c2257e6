"""Members and servers from the hub: read by pages, kept, and what is said when the hub is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from gpuspawner.broker.leases.hub_api import PAGE_SIZE, HubApi, HubServer
from gpuspawner.broker.leases.hub_people import HubPeople, Members, Servers
from gpuspawner.core.errors import HubFault

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Wall clock and monotonic clock of the test."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return 1000.0 + self.seconds


class ScriptedHub:
    """Answers, or fails while `fault` is set; counts what it was asked."""

    def __init__(self) -> None:
        self.fault = ""
        self.names = ["ada", "bob"]
        self.asked: list[str] = []

    async def members(self, group: str) -> list[str]:
        self.asked.append(group)
        await asyncio.sleep(0)
        if self.fault:
            raise HubFault(self.fault)
        return list(self.names)

    async def servers(self) -> dict[str, tuple[HubServer, ...]]:
        self.asked.append("servers")
        if self.fault:
            raise HubFault(self.fault)
        return {"ada": (HubServer("", "cpu", NOON),)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub() -> ScriptedHub:
    return ScriptedHub()


@pytest.fixture
def people(hub: ScriptedHub, clock: Clock) -> HubPeople:
    return HubPeople(hub, clock.now, clock.monotonic)


async def test_many_pages_at_once_ask_the_hub_once(people: HubPeople, hub: ScriptedHub) -> None:
    found = await asyncio.gather(*(people.members("cs1") for _ in range(20)))
    assert set(found) == {Members(("ada", "bob"), NOON)}
    assert hub.asked == ["cs1"]


async def test_an_answer_is_kept_for_a_while(people: HubPeople, hub: ScriptedHub, clock: Clock) -> None:
    await people.members("cs1")
    hub.names = ["ada"]
    clock.seconds = 29
    assert (await people.members("cs1")).names == ("ada", "bob")
    clock.seconds = 31
    assert await people.members("cs1") == Members(("ada",), NOON + timedelta(seconds=31))


async def test_a_silent_hub_empties_no_class(people: HubPeople, hub: ScriptedHub, clock: Clock) -> None:
    await people.members("cs1")
    hub.fault, clock.seconds = "no answer", 31
    found = await people.members("cs1")
    assert found == Members(("ada", "bob"), NOON, "The hub's list of members can't be read: no answer.")
    hub.fault, clock.seconds = "", 35
    assert (await people.members("cs1")).fault != ""  # not asked again at once
    clock.seconds = 37
    assert await people.members("cs1") == Members(("ada", "bob"), NOON + timedelta(seconds=37))


async def test_a_hub_that_never_answered(people: HubPeople, hub: ScriptedHub) -> None:
    hub.fault = "no answer"
    assert await people.members("cs1") == Members(
        (), None, "The hub's list of members can't be read: no answer."
    )
    assert await people.servers() == Servers({}, None, "The hub's list of servers can't be read: no answer.")


async def test_strangers_names_don_t_fill_the_memory(people: HubPeople, hub: ScriptedHub) -> None:
    for number in range(600):
        await people.members(f"group-{number}")
    hub.asked.clear()
    await people.members("group-599")
    await people.members("group-0")
    assert hub.asked == ["group-0"]


# ---- the hub's REST API


def user(number: int) -> dict[str, Any]:
    server = {
        "name": "", "started": "2026-03-01T12:00:00.000000Z", "ready": True,
        "user_options": {"profile": "cpu"}, "pending": {1: "stop", 2: "spawn"}.get(number),
    }  # fmt: skip
    if number == 2:
        server["ready"] = False
    return {"name": f"user{number:03}", "servers": {"": server}}


@pytest.fixture
async def api() -> AsyncIterator[tuple[HubApi, list[str]]]:
    users, asked = [user(number) for number in range(PAGE_SIZE + 5)], []

    async def listed(request: web.Request) -> web.Response:
        assert request.headers["Accept"] == "application/jupyterhub-pagination+json"
        asked.append(request.query_string)
        offset, limit = int(request.query["offset"]), int(request.query["limit"])
        following = {"offset": offset + limit} if offset + limit < len(users) else None
        body = {"items": users[offset : offset + limit], "_pagination": {"next": following}}
        return web.json_response(body, content_type="application/jupyterhub-pagination+json")

    app = web.Application()
    app.router.add_get("/hub/api/users", listed)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hub/api"
    yield HubApi({"JUPYTERHUB_API_URL": url, "JUPYTERHUB_API_TOKEN": "t"}), asked
    await runner.cleanup()


async def test_servers_are_read_page_by_page(api: tuple[HubApi, list[str]]) -> None:
    found = await api[0].servers()
    assert len(found) == PAGE_SIZE + 5
    assert found["user000"] == (HubServer("", "cpu", NOON, True),)
    assert found["user001"] == (HubServer("", "cpu", NOON, ready=False, ending=True),)
    assert found["user002"] == (HubServer("", "cpu", NOON, ready=False),)
    assert api[1] == ["state=active&offset=0&limit=200", "state=active&offset=200&limit=200"]


async def test_a_hub_without_that_page_is_a_fault(api: tuple[HubApi, list[str]]) -> None:
    with pytest.raises(HubFault, match="404"):
        await api[0].members("cs1")
