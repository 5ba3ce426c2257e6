"""Buttons and calls that stop, extend or move a server: who may, what the hub is asked, what is recorded."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from gpuspawner.broker.api.answers import About, View
from gpuspawner.broker.api.public.actions import Actions
from gpuspawner.broker.api.public.hub_servers import HubServers
from gpuspawner.broker.ledger import Result, Search
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.broker.observe.sampler import Sampler
from gpuspawner.broker.pages.own.desk import BrokerDesk
from gpuspawner.core.decision import DecisionKind
from gpuspawner.core.errors import LeaseConflict
from gpuspawner.core.model import GpuRequest, LeaseState, Tier
from gpuspawner.core.text import plain
from gpuspawner.core.want import Want
from gpuspawner.node.api import NodeFacts

from tests.unit.broker.test_pages_handlers import USERS, Pages, serving
from tests.unit.rules_bench import Served

ANNAS, BOBS = "a" * 32, "b" * 32
TIERS = (Tier("gpu", "One GPU", want=Want(1)), Tier("cpu", "CPU only"))


@dataclass
class Bench:
    """The service with a broker behind it, in which anna and bob have a GPU each."""

    pages: Pages
    broker: Served
    turns: list[tuple[str, str]]

    async def call(
        self, method: str, path: str, token: str | None, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON of a call of the API."""
        if token is not None:
            headers["Authorization"] = f"token {token}"
        data = body if isinstance(body, str | None) else json.dumps(body)
        async with self.pages.client.request(
            method, f"{self.pages.url}api/leases/{path}", data=data, headers=headers
        ) as answer:
            return answer.status, json.loads(await answer.text())

    async def press(self, path: str, xsrf: str, **values: str) -> tuple[int, str, str]:
        """Status, Location and text of a button's form."""
        async with self.pages.client.post(
            f"{self.pages.url}own/{path}", data={"_xsrf": xsrf, **values}, allow_redirects=False
        ) as answer:
            return answer.status, answer.headers.get("Location", ""), await answer.text()

    async def log(self) -> list[tuple[str, str, str, str, Result]]:
        """Who did what by which way for whom, the oldest first."""
        found = [write for _, write in await self.broker.ledger.audited(Search())]
        return [(each.author, each.via, each.action, each.subject, each.result) for each in reversed(found)]


@pytest.fixture
async def bench(tmp_path: Path, times: Any) -> AsyncIterator[Bench]:
    broker = Served(tmp_path, times)
    turns: list[tuple[str, str]] = []
    await broker.open()
    for lease_id, user, server, group in ((ANNAS, "anna", "", "students"), (BOBS, "bob", "train", "phd")):
        await broker.allocator.acquire(GpuRequest(lease_id, "hub", user, server, "gpu", Want(1), (group,)))
        await broker.allocator.set_running(lease_id, user * 4)

    def turn(lease_id: str, action: str) -> None:
        if lease_id == BOBS:
            raise LeaseConflict("no turns")
        turns.append((lease_id, action))

    def make_desk(api_url: str) -> BrokerDesk:
        actions = Actions(broker.rules, HubServers(api_url), broker.allocator.lease, TIERS, turn)
        sampler = Sampler(dict)
        return BrokerDesk(broker.rules, broker.ledger, sampler, actions, times.now)

    about = About(TIERS, False, Metrics(), dict, dict, tuple, lambda: NodeFacts("here"))
    async with serving(None, make_desk, View(broker.allocator, about)) as pages:
        yield Bench(pages, broker, turns)
    await broker.close()
    broker.loop.close()


async def test_the_hub_is_asked_with_the_sender_s_own_token(bench: Bench) -> None:
    status, answer = await bench.call("DELETE", ANNAS, "anna-token", {"reason": "done"})
    assert (status, answer) == (200, {"message": "Stopped. Your GPU was given back."})
    assert bench.pages.hub.servers == [("DELETE", "anna/server", "anna-token", None)]
    bench.pages.hub.answers = [202]
    status, answer = await bench.call("DELETE", BOBS, "noether-token")
    assert (status, answer) == (202, {"message": "Stopping. Your GPU is given back in a moment."})
    assert bench.pages.hub.servers[1] == ("DELETE", "bob/servers/train", "noether-token", None)
    assert await bench.log() == [
        ("anna", "api", "stop", "user:anna", Result.DONE),
        ("noether", "api", "stop", "user:bob", Result.DONE),
    ]


async def test_going_on_with_cpu_is_a_stop_and_a_start(bench: Bench) -> None:
    status, answer = await bench.call("POST", f"{ANNAS}/cpu", "anna-token")
    assert (status, answer["message"]) == (202, "Your GPU was given back. Your server starts with CPU.")
    assert bench.pages.hub.servers == [
        ("DELETE", "anna/server", "anna-token", None),
        ("POST", "anna/server", "anna-token", {"profile": "cpu"}),
    ]
    bench.pages.hub.answers = [202]
    status, answer = await bench.call("POST", f"{ANNAS}/cpu", "anna-token")
    assert answer["message"] == "Stopping. When it has stopped, start it again with CPU."
    assert len(bench.pages.hub.servers) == 3


NOT_THERE = "This server has ended, or it isn't yours."


@pytest.mark.parametrize(
    ("token", "lease", "status", "words"),
    [
        ("anna-token", ANNAS, 200, "Stopped."),
        ("anna-token", BOBS, 409, NOT_THERE),
        ("anna-token", "c" * 32, 409, NOT_THERE),
        ("reader-token", ANNAS, 403, "You may see this server, but not change it"),
        ("reader-token", BOBS, 409, NOT_THERE),
        ("ines-token", ANNAS, 200, "Stopped."),
        ("ines-token", BOBS, 409, NOT_THERE),
        ("dean-token", ANNAS, 200, "Stopped."),
        ("monitor-token", ANNAS, 403, "You may see this server, but not change it"),
        ("noether-token", BOBS, 200, "Stopped."),
        ("outsider-token", ANNAS, 403, "Your account has no permission"),
        (None, ANNAS, 401, "Log in first"),
        ("wrong-token", ANNAS, 401, "Log in first"),
    ],
)
async def test_who_may(bench: Bench, token: str | None, lease: str, status: int, words: str) -> None:
    found, answer = await bench.call("DELETE", lease, token)
    assert (found, answer["message"][: len(words)]) == (status, words)
    assert len(bench.pages.hub.servers) == (status == 200)


@pytest.mark.parametrize(
    ("hub", "status", "reason", "words"),
    [
        (403, 403, "not_allowed", "JupyterHub doesn't let you stop or start"),
        (404, 409, "lease_conflict", "This server has stopped already."),
        (400, 409, "lease_conflict", "JupyterHub says: it is pending."),
        (500, 503, "broker_unavailable", "This is not possible right now: JupyterHub did not answer."),
    ],
)
async def test_what_the_hub_refuses(bench: Bench, hub: int, status: int, reason: str, words: str) -> None:
    bench.pages.hub.answers = [hub]
    found, answer = await bench.call("DELETE", ANNAS, "anna-token")
    assert (found, answer["reason"], answer["message"][: len(words)]) == (status, reason, words)
    ((*_, result),) = await bench.log()
    assert result is (Result.FAILED if hub == 500 else Result.REFUSED)


@pytest.mark.parametrize("body", ["{", "[]", {"reason": 7}, {"other": 1}])
async def test_what_is_not_well_formed_changes_nothing(bench: Bench, body: Any) -> None:
    status, answer = await bench.call("DELETE", ANNAS, "anna-token", body)
    assert (status, answer["reason"], bench.pages.hub.servers) == (400, "bad_option", [])


async def test_extending(bench: Bench) -> None:
    status, answer = await bench.call("POST", f"{ANNAS}/extend", "anna-token", {"seconds": 3600})
    assert (status, answer["reason"]) == (403, "not_allowed")  # nothing ends it
    limits = {"session_hours": 2, "extend_hours": 0.5}
    await bench.broker.rules.change_quota("group:students", limits, "noether", "")
    key = {"Idempotency-Key": "once"}
    for _ in range(2):
        found = await bench.call("POST", f"{ANNAS}/extend", "anna-token", {"seconds": 3600}, **key)
        assert found == (200, {"message": "Extended by 30 minutes.", "seconds": 1800.0})
    status, answer = await bench.call("POST", f"{ANNAS}/extend", "anna-token", {"seconds": 3600})
    assert (status, answer["message"][:42]) == (403, "Your quota allows no further extension (0.")


async def xsrf_of(bench: Bench, user: str) -> tuple[str, str]:
    """The page after a login, and its XSRF token."""
    await bench.pages.log_in(user)
    _, _, text = await bench.pages.get("")
    found = re.search(r'xsrf_token: "([^"]+)"', text)
    assert found is not None
    return text, found[1]


async def test_a_button_works_on_the_page(bench: Bench) -> None:
    text, xsrf = await xsrf_of(bench, "anna")
    assert f'id="ask-stop-{ANNAS}"' in text
    assert f'name="_xsrf" value="{xsrf}"' in text
    status, location, _ = await bench.press(f"{ANNAS}/stop", xsrf)
    assert status == 303
    assert re.fullmatch(r"/base/services/gpu/\?done=[0-9a-f]{32}", location)
    assert bench.pages.hub.servers == [("DELETE", "anna/server", "anna-token", None)]
    _, _, text = await bench.pages.get(location.removeprefix("/base/services/gpu/"))
    assert '<div class="alert alert-success" role="status">Stopped. Your GPU was given back.</div>' in text
    assert await bench.log() == [("anna", "page", "stop", "user:anna", Result.DONE)]
    status, headers, _ = await bench.pages.get(f"own/{ANNAS}/stop")
    assert (status, headers["Location"]) == (302, "/base/services/gpu/")


async def test_what_somebody_else_did_is_not_told(bench: Bench) -> None:
    await bench.call("DELETE", BOBS, "noether-token")
    ((_, write),) = await bench.broker.ledger.audited(Search())
    await bench.pages.log_in("anna")
    for done in (write.id, "<script>", "0" * 32):
        _, _, text = await bench.pages.get(f"?done={done}")
        assert "alert-success" not in text


async def test_a_button_that_is_refused_says_why_on_the_page(bench: Bench) -> None:
    _, xsrf = await xsrf_of(bench, "anna")
    bench.pages.hub.answers = [403]
    status, _, text = await bench.press(f"{ANNAS}/stop", xsrf)
    assert status == 403
    assert "JupyterHub doesn&#39;t let you stop or start this server from here." in text
    assert 'data-url="/base/services/gpu/live"' in text
    status, _, text = await bench.press(f"{BOBS}/stop", xsrf)
    assert (status, "This server has ended, or it isn&#39;t yours." in text) == (409, True)


async def test_a_button_needs_the_page_s_xsrf_token(bench: Bench) -> None:
    await xsrf_of(bench, "anna")
    for forged in ("", "forged"):
        assert (await bench.press(f"{ANNAS}/stop", forged))[0] == 403
    assert (bench.pages.hub.servers, await bench.log()) == ([], [])


async def test_turns(bench: Bench) -> None:
    _, xsrf = await xsrf_of(bench, "anna")
    for action in ("wake", "yield"):
        assert (await bench.press(f"{ANNAS}/{action}", xsrf))[0] == 303
    assert bench.turns == [(ANNAS, "wake"), (ANNAS, "yield")]
    assert [each[2] for each in await bench.log()] == ["turn: wake", "turn: yield"]


async def test_records_are_the_viewer_s_own(bench: Bench) -> None:
    await bench.broker.allocator.begin_release(BOBS, "stopped")
    await bench.broker.allocator.close(BOBS)
    await bench.pages.log_in("anna")
    _, _, text = await bench.pages.get("")
    assert "Past sessions</h2>" not in text
    assert "train" not in text
    await bench.broker.allocator.begin_release(ANNAS, "stopped")
    await bench.broker.allocator.close(ANNAS)
    _, _, text = await bench.pages.get("")
    assert "Past sessions</h2>" in text


async def test_everybody_reads_what_everybody_is_told(bench: Bench) -> None:
    until = bench.broker.rules.rulebook.decision(DecisionKind.DRAIN, "", None, "", "").at + timedelta(hours=1)
    await bench.broker.rules.announce("everybody", "We restart at 18:00 <now>.", until, "noether")
    await bench.broker.rules.announce("group:phd", "For others.", until, "noether")
    for address in ("", "live"):
        _, _, text = await bench.pages.get(address, "anna-token")
        assert "<strong><bdi>noether</bdi>:</strong> <bdi>We restart at 18:00 &lt;now&gt;.</bdi>" in text
        assert "For others." not in text


async def test_a_server_is_stopped_by_its_name_without_a_script(bench: Bench) -> None:
    """Also one without a lease; the next page is the hub's."""
    _, xsrf = await xsrf_of(bench, "anna")
    path = "stop/?user=anna&server=a%2Fb"
    _, _, asked = await bench.pages.get(f"own/{path}")
    assert "Server “<bdi>a/b</bdi>” stops, or its start is cancelled." in asked
    assert 'href="/base/hub/spawn-pending/anna/a%2Fb"' in asked
    bench.pages.hub.answers = [202, 204, 404]
    assert (await bench.press(path, xsrf))[:2] == (303, "/base/hub/spawn-pending/anna/a%2Fb")
    assert (await bench.press(path, xsrf))[:2] == (303, "/base/hub/spawn/anna/a%2Fb")
    assert (await bench.press("stop/", xsrf))[:2] == (303, "/base/hub/spawn/anna")
    assert bench.pages.hub.servers == [
        ("DELETE", "anna/servers/a%2Fb", "anna-token", None),
        ("DELETE", "anna/servers/a%2Fb", "anna-token", None),
        ("DELETE", "anna/server", "anna-token", None),
    ]
    assert [each[2:] for each in await bench.log()] == [
        ("stop", "user:anna", Result.DONE),
        ("stop", "user:anna", Result.DONE),
        ("stop", "user:anna", Result.REFUSED),
    ]


async def test_whether_somebody_else_s_server_may_be_stopped_is_the_hub_s_decision(bench: Bench) -> None:
    _, xsrf = await xsrf_of(bench, "anna")
    bench.pages.hub.answers = [403]
    status, _, text = await bench.press("stop/?user=bob", xsrf)
    assert status == 403
    assert "JupyterHub doesn&#39;t let you stop or start this server from here." in text
    assert "The default server of <bdi>bob</bdi> stops" in text
    assert (await bench.press("stop/?user=bob", "wrong"))[0] == 403
    assert len(bench.pages.hub.servers) == 1


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "\"'", "\u202eright-to-left", "w" * 255, "a/b?c#d", "%2e%2e", "../.."],
)
async def test_hostile_names_of_servers_are_only_text(bench: Bench, name: str) -> None:
    _, xsrf = await xsrf_of(bench, "anna")
    path = f"stop/?user=anna&server={quote(name, safe='')}"
    status, _, text = await bench.pages.get(f"own/{path}")
    assert (status, "<script>alert" in text) == (200, False)
    shown = html.escape(plain(name)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    assert f"“<bdi>{shown}</bdi>”" in text
    assert (await bench.press(path, xsrf))[0] == 303
    ((_, asked, _, _),) = bench.pages.hub.servers
    assert (unquote(asked), asked.count("/")) == (f"anna/servers/{name}", 2)


@pytest.mark.parametrize("query", ["server=..", "server=.", "user=..", "user="])
async def test_a_name_that_would_be_another_address_is_none(bench: Bench, query: str) -> None:
    """A client takes "servers/.." for the user."""
    _, xsrf = await xsrf_of(bench, "anna")
    assert (await bench.pages.get(f"own/stop/?{query}"))[0] == 404
    assert (await bench.press(f"stop/?{query}", xsrf))[0] == 404
    with pytest.raises(LeaseConflict, match="There is no such server"):
        await HubServers("http://127.0.0.1:1").stop("token", "anna", "..")
    assert bench.pages.hub.servers == []


RUNS = "Your default server runs without a GPU."


@pytest.mark.parametrize("waits", [False, True], ids=["ran", "waited"])
async def test_a_server_that_ended_with_its_lease_is_not_said_to_run_on_cpu(
    bench: Bench, times: Any, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """The hub's word is kept for some seconds, and it learns itself only later that a server has ended."""
    server = {"ready": True, "pending": None, "started": times.now().isoformat()}
    monkeypatch.setitem(USERS, "anna-token", {**USERS["anna-token"], "servers": {"": server}})
    lease_id = ANNAS
    if waits:
        await bench.broker.allocator.begin_release(ANNAS, "stopped")
        await bench.broker.allocator.close(ANNAS)
        times.pass_seconds(1)
        server |= {"ready": False, "pending": "spawn", "started": times.now().isoformat()}
        lease_id = "c" * 32
        for each, user in (("d" * 32, "carl"), (lease_id, "anna")):
            lease = await bench.broker.allocator.acquire(GpuRequest(each, "hub", user, "", "gpu", Want(1)))
        assert lease.state is LeaseState.WAITING
    times.pass_seconds(5)
    _, _, text = await bench.pages.get("", "anna-token")
    assert "You hold no GPU" not in text
    await bench.broker.allocator.begin_release(lease_id, "it was given up")
    if not waits:
        await bench.broker.allocator.close(lease_id)
    for _ in range(2):
        _, _, text = await bench.pages.get("", "anna-token")
        assert "You hold no GPU" in text
        assert RUNS not in text
        server |= {"ready": True, "pending": None}
        bench.pages.forget()
    server["started"] = (times.now() + timedelta(seconds=1)).isoformat()
    bench.pages.forget()
    _, _, text = await bench.pages.get("", "anna-token")
    assert RUNS in text
