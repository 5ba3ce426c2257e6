"""Members' servers are started in turns before the class; the hub is a real HTTP server of the test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gpuspawner.broker.leases.hub_api import HubApi
from gpuspawner.broker.leases.prestart import ROUND_SECONDS, Prestart
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.config.quotas import Known
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.decision import DecisionKind
from gpuspawner.core.errors import HubFault

LAB = {
    "name": "cs231n", "group": "class a", "tier": "gpu", "seats": 3, "first": "2026-11-26",
    "begins": "10:00", "length_seconds": 7200, "prestart_seconds": 900, "timezone": "UTC",
}  # fmt: skip


class FakeHub:
    """Groups and starts, as the hub's API has them."""

    def __init__(self) -> None:
        self.members: list[str] = ["cid", "ada", "bob", "dan"]
        self.running = {"bob"}
        self.asked: list[Any] = []
        self.url = ""

    async def group(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "token t0ken"
        if request.match_info["name"] != "class a":
            return web.json_response({"message": "No such group"}, status=404)
        return web.json_response({"name": "class a", "users": self.members})

    async def start(self, request: web.Request) -> web.Response:
        user = request.match_info["name"]
        self.asked.append((user, await request.json()))
        if user in self.running:
            return web.json_response({"message": f"{user} is already running"}, status=400)
        return web.Response(status=202)


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    hub = FakeHub()
    app = web.Application()
    app.router.add_get("/hub/api/groups/{name}", hub.group)
    app.router.add_post("/hub/api/users/{name}/server", hub.start)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hub/api"
    yield hub
    await runner.cleanup()


def api(hub: FakeHub) -> HubApi:
    return HubApi({"JUPYTERHUB_API_URL": hub.url, "JUPYTERHUB_API_TOKEN": "t0ken"})


async def test_members_are_started_in_turns_and_once(path: Path, times: Any, hub: FakeHub) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=9, minute=30)
    ledger = times.make_ledger(path)
    await ledger.open()
    rulebook = Rulebook(ledger, [], Known(parse_tiers([{"name": "gpu", "devices": 1}])), clock=times.now)
    await rulebook.decide(rulebook.decision(DecisionKind.SESSION, "cs231n", LAB, "noether", ""))
    running: set[str] = set()
    prestart = Prestart(rulebook, api(hub), lambda: running, 2, logging.getLogger("test"), times.now)
    seen = []
    for minute in range(40):
        if minute == 16:
            running.add("ada")  # bob's is slow
        await prestart.round()
        seen.append((f"{times.now():%H:%M}", sorted(user for user, _ in hub.asked)))
        hub.asked.clear()
        times.pass_seconds(60)
    assert [(at, users) for at, users in seen if users] == [("09:45", ["ada", "bob"]), ("09:46", ["cid"])]
    await ledger.close()


async def test_what_the_hub_refuses_stops_nobody_else(path: Path, times: Any, hub: FakeHub) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=9, minute=59)
    ledger = times.make_ledger(path)
    await ledger.open()
    rulebook = Rulebook(ledger, [], Known(parse_tiers([{"name": "gpu", "devices": 1}])), clock=times.now)
    for group in ("gone", "class a"):
        lab = {**LAB, "name": group.replace(" ", "-"), "group": group}
        await rulebook.decide(rulebook.decision(DecisionKind.SESSION, lab["name"], lab, "noether", ""))
    await Prestart(rulebook, api(hub), set, 4, logging.getLogger("test"), times.now).round()
    assert sorted(user for user, _ in hub.asked) == ["ada", "bob", "cid"]
    assert all(body == {"profile": "gpu"} for _, body in hub.asked)
    with pytest.raises(HubFault, match="404"):
        await api(hub).members("gone")
    with pytest.raises(HubFault):
        await HubApi({"JUPYTERHUB_API_URL": "http://127.0.0.1:1", "JUPYTERHUB_API_TOKEN": "t"}).members("a")
    await ledger.close()


class SlowHub:
    """A hub whose servers run `seconds` after their start, by the test's clock."""

    def __init__(self, times: Any, seconds: float) -> None:
        self._times, self._seconds = times, seconds
        self.begun: dict[str, datetime] = {}
        self.most = 0

    async def members(self, group: str) -> list[str]:
        return [f"student-{number:02}" for number in range(24)]

    async def start(self, user: str, tier: str) -> None:
        self.begun[user] = self._times.now()
        self.most = max(self.most, len(self.begun) - len(self.running()))

    def running(self) -> set[str]:
        now = self._times.now()
        return {user for user, at in self.begun.items() if (now - at).total_seconds() >= self._seconds}


@pytest.mark.parametrize(
    ("at_once", "seconds", "ready_before_seconds"),
    [(4, 25.0, 750), (4, 90.0, 360), (1, 25.0, 300), (1, 60.0, None), (8, 110.0, 570)],
)
async def test_24_labs_are_ready_when_the_class_begins(
    path: Path, times: Any, at_once: int, seconds: float, ready_before_seconds: int | None
) -> None:
    """Rounds every 5 s for 15 minutes; how long before the class the last one runs, None: not in time."""
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=9, minute=45)
    ledger = times.make_ledger(path)
    await ledger.open()
    rulebook = Rulebook(ledger, [], Known(parse_tiers([{"name": "gpu", "devices": 1}])), clock=times.now)
    lab = {**LAB, "seats": 24}
    await rulebook.decide(rulebook.decision(DecisionKind.SESSION, "cs231n", lab, "noether", ""))
    hub = SlowHub(times, seconds)
    prestart = Prestart(rulebook, hub, hub.running, at_once, logging.getLogger("test"), times.now)
    ready: int | None = None
    for left in range(900, 0, -5):
        await prestart.round()
        if ready is None and len(hub.running()) == 24:
            ready = left
        times.pass_seconds(ROUND_SECONDS)
    assert (ready, hub.most) == (ready_before_seconds, at_once)
    await ledger.close()
