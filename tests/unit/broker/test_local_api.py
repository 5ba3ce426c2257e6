"""The API on the unix socket: the very routes that are behind the hub's login, and who the author is."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gpuspawner.broker.api.public.actions import Actions
from gpuspawner.broker.api.public.classes import class_routes
from gpuspawner.broker.api.public.history import HistoryTools, history_routes
from gpuspawner.broker.api.public.images import image_routes
from gpuspawner.broker.api.public.leases import lease_routes
from gpuspawner.broker.api.public.limits import BURST
from gpuspawner.broker.api.public.local import PREFIX, LocalServers, local_routes
from gpuspawner.broker.api.public.rules import joined, public_rules
from gpuspawner.broker.api.socket import bind_socket, make_app
from gpuspawner.broker.leases.hub_api import HubServer
from gpuspawner.broker.ledger import Result, Search
from gpuspawner.broker.observe.checkup import Checkup
from gpuspawner.protocol.public_openapi import OPERATIONS, public_openapi
from tornado.httpserver import HTTPServer
from tornado.web import RequestHandler

from tests.unit.broker.test_pages_handlers import FakeBroker
from tests.unit.class_bench import ClassBench

ME = getpass.getuser()


class Door:
    """A client on the socket, with a class behind it."""

    def __init__(self, bench: ClassBench, routes: list[Any], client: aiohttp.ClientSession) -> None:
        self.bench, self.routes, self.client = bench, routes, client

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        async with self.client.request(method, f"http://b/api/{path}", data=data) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else text

    async def log(self) -> list[tuple[str, str, str, str, Result]]:
        found = await self.bench.broker.ledger.audited(Search())
        return [(w.author, w.via, w.action, w.subject, w.result) for _, w in reversed(found)]


@pytest.fixture
async def door(tmp_path: Path, times: Any) -> AsyncIterator[Door]:
    bench = ClassBench(tmp_path, times)
    await bench.open()
    broker = bench.broker
    servers = LocalServers("hub", broker.allocator.leases, bench.ender.release)
    actions = Actions(broker.rules, servers, broker.allocator.lease, broker.rules.rulebook.known.tiers)
    checkup = Checkup(tuple, times.now)
    more = joined(
        lambda site: lease_routes(site, actions),
        public_rules(broker.site, broker.rules, broker.endings),
        class_routes(bench.tools),
        image_routes(tuple),
        history_routes(
            HistoryTools(broker.site, broker.rules, broker.endings, broker.ledger, checkup, times.now)
        ),
    )
    routes = local_routes(FakeBroker(), "hub", more)
    path = str(tmp_path / "door.sock")
    server = HTTPServer(make_app(broker.site, routes))
    server.add_socket(bind_socket(path))
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as client:
        yield Door(bench, routes, client)
    server.stop()
    await server.close_all_connections()
    checkup.close()
    await bench.close()


def test_the_socket_has_each_operation_of_the_api(door: Door) -> None:
    """The description is the API's own: not one operation is missing here, and no other one is there."""
    served = {
        (pattern, method)
        for pattern, handler, *_ in door.routes
        for method in ("get", "post", "delete")
        if getattr(handler, method) is not getattr(RequestHandler, method)
    }
    assert {pattern.startswith(f"{PREFIX}api/") for pattern, _ in served} == {True}
    assert len(served - {("/api/openapi.json", "get")}) == len(OPERATIONS)


async def test_the_description_is_served_here_too(door: Door) -> None:
    assert await door.ask("GET", "openapi.json") == (200, json.loads(json.dumps(public_openapi(PREFIX))))


async def test_the_author_is_the_account_of_the_process(door: Door) -> None:
    change = {"subject": "group:students", "values": {"devices": 2}, "reason": "exam"}
    assert await door.ask("POST", "quotas", change) == (204, "")
    assert await door.ask("POST", "quotas", {**change, "author": "noether"}) == (204, "")  # as with sudo
    ada = await door.bench.run(1, "ada")
    assert (await door.ask("DELETE", f"leases/{ada}", {"reason": "too hot"}))[0] == 200
    await door.bench.run(2, "bob")
    assert await door.ask("POST", "classes/students/stop", {"everybody": True}) == (
        200, {"done": 1, "refused": []},
    )  # fmt: skip
    assert await door.log() == [
        (ME, "socket", "change quota", "group:students", Result.DONE),
        ("noether", "socket", "change quota", "group:students", Result.DONE),
        (ME, "socket", "stop", "user:ada", Result.DONE),
        (ME, "socket", "stop servers", "group:students", Result.DONE),
    ]
    assert door.bench.states() == {}


async def test_reads_answer_as_behind_the_login(door: Door) -> None:
    status, document = await door.ask("GET", "status")
    assert (status, [each["user"] for each in document["leases"]]) == (200, ["anna", "bob"])
    assert [each["free"] for each in document["devices"]] == [False, False]
    await door.bench.run(1, "ada")
    assert (await door.ask("GET", "classes/students"))[1]["counts"] == {"running": 1, "never": 3}
    assert (await door.ask("GET", "sessions"))[1]["sessions"] == []
    assert (await door.ask("PUT", "quotas"))[0] == 405


async def test_a_script_is_not_slowed_down(door: Door) -> None:
    asked = [door.ask("POST", "quotas", {"subject": "everybody", "values": {}}) for _ in range(2 * BURST)]
    assert {status for status, _ in await asyncio.gather(*asked)} == {400}


async def test_a_server_that_only_the_hub_can_stop_is_named(door: Door) -> None:
    door.bench.hub.running = {"bob": (HubServer("", "cpu", None),)}
    status, answer = await door.ask("POST", "classes/students/stop", {"everybody": True})
    assert (status, answer["message"].partition(". ")[2]) == (
        409,
        "bob: JupyterHub stops servers without a GPU: send an API token of JupyterHub, or use its Admin "
        "page.",
    )
