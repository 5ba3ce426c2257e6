"""The page's handlers over HTTP, against a small hub that knows four tokens and the steps of OAuth."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from aiohttp import web
from gpuspawner.broker.api.access import ADMIN_SCOPE, READ_SCOPE, RESERVE_SCOPE
from gpuspawner.broker.api.public.rules import MoreRoutes
from gpuspawner.broker.api.visible import BrokerView
from gpuspawner.broker.pages.routes import TOKEN_SECONDS, hub_oauth, make_handlers, make_settings
from gpuspawner.broker.pages.serving import MakeDesk
from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.services.auth import HubOAuth
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
from yarl import URL

PREFIX = "/base/services/gpu/"
ACCESS = "access:services!service=gpu"
SINCE = "2026-03-01T09:00:00Z"


def model(name: str, *scopes: str, kind: str = "user") -> dict[str, Any]:
    return {"name": name, "kind": kind, "groups": [], "scopes": list(scopes)}


USERS = {
    "anna-token": model("anna", ACCESS, "delete:servers!user=anna"),
    "admin-token": model("admin", ACCESS, READ_SCOPE, "admin-ui"),
    "outsider-token": model("otto", "read:users!user=otto"),
    "noether-token": model("noether", ACCESS, READ_SCOPE, "custom:gpu:admin"),
    "robot-token": model("robot", ACCESS, READ_SCOPE, "custom:gpu:admin", kind="service"),
    "monitor-token": model("monitor", ACCESS, READ_SCOPE, kind="service"),
    "reader-token": model("rudi", ACCESS, f"{READ_SCOPE}!group=students"),
    "ines-token": model("ines", ACCESS, f"{RESERVE_SCOPE}!group=students"),
    "dean-token": model("dean", ACCESS, f"{ADMIN_SCOPE}!group=students"),
}


def device(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{number}", "model": "H100 80GB", "index": number, "memory_bytes": 80 << 30,
        "compute_capability": None, "healthy": True, "reason": "", "since": None, "guarantee": "none",
        "simulated": True, "lease_id": None, "user": None, "server": None, **changes,
    }  # fmt: skip


def lease(name: str, user: str, uuid: str) -> dict[str, Any]:
    return {
        "id": name, "user": user, "server": "", "hub": "h", "tier": "gpu", "state": "running",
        "device_uuids": [uuid], "memory_bytes": 80 << 30, "compute_percent": 100.0, "since": SINCE,
        "notice": "", "groups": ["cs231n"] if user == "anna" else ["cs224n"],
    }  # fmt: skip


class FakeBroker:
    """Anna and bob hold a device each."""

    def status(self) -> dict[str, Any]:
        return {
            "simulated": True,
            "fault": "",
            "devices": [
                device(0, lease_id="a", user="anna", server=""),
                device(1, lease_id="b", user="bob", server=""),
            ],
            "leases": [lease("a", "anna", "GPU-0"), lease("b", "bob", "GPU-1")],
            "queue": [],
            "ended": [],
        }

    def stamp(self) -> object:
        return self.status()

    def tiers(self) -> dict[str, Any]:
        tier = {"name": "gpu", "title": "One GPU", "device_count": 1, "total": 2}
        return {"simulated": True, "tiers": [tier]}

    def metrics(self) -> bytes:
        return b"gpuspawner_devices 2.0\n"


@dataclass
class FakeHub:
    """As much of the hub as a service talks to."""

    down: bool = False
    asked: list[str] = field(default_factory=list)
    servers: list[tuple[str, str, str, Any]] = field(default_factory=list)
    """What was asked for servers: method, path, token and body."""
    answers: list[int] = field(default_factory=list)
    """The statuses of its next answers about servers; then 204."""

    async def user(self, request: web.Request) -> web.Response:
        if self.down:
            return web.Response(status=503)
        token = request.headers["Authorization"].removeprefix("token ")
        self.asked.append(token)
        if token not in USERS:
            return web.json_response({"status": 403, "message": "Forbidden"}, status=403)
        return web.json_response(USERS[token])

    async def server(self, request: web.Request) -> web.Response:
        token = request.headers["Authorization"].removeprefix("token ")
        body = await request.json() if request.can_read_body else None
        path = request.raw_path.removeprefix("/base/hub/api/users/")
        self.servers.append((request.method, path, token, body))
        status = self.answers.pop(0) if self.answers else 204
        if status < 400:
            return web.Response(status=status)
        return web.json_response({"status": status, "message": "it is pending"}, status=status)

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        return web.json_response({"access_token": f"{form['code']}-token"})


@dataclass
class Pages:
    """The service under test and a client that follows no redirect by itself."""

    url: str
    hub: FakeHub
    client: aiohttp.ClientSession
    auth: HubOAuth

    def forget(self) -> None:
        """The service asks the hub again who asks."""
        self.auth.cache.clear()

    async def get(self, path: str, token: str | None = None, **headers: str) -> tuple[int, Any, str]:
        """Status, headers and text."""
        if token is not None:
            headers["Authorization"] = f"token {token}"
        async with self.client.get(self.url + path, headers=headers, allow_redirects=False) as answer:
            return answer.status, answer.headers, await answer.text()

    async def log_in(self, name: str) -> None:
        """The redirects of OAuth, as a browser follows them; the hub's consent is taken for granted."""
        status, headers, _ = await self.get("")
        assert status == 302
        sent = parse_qs(urlsplit(headers["Location"]).query)
        status, headers, _ = await self.get(f"oauth_callback?code={name}&state={sent['state'][0]}")
        assert (status, headers["Location"]) == (302, PREFIX)


@asynccontextmanager
async def serving(
    more: MoreRoutes | None = None, make_desk: MakeDesk | None = None, broker: BrokerView | None = None
) -> AsyncIterator[Pages]:
    """The service, with further routes, and its hub."""
    hub = FakeHub()
    app = web.Application()
    app.router.add_get("/base/hub/api/user", hub.user)
    app.router.add_post("/base/hub/api/oauth2/token", hub.token)
    app.router.add_route("*", "/base/hub/api/users/{tail:.*}", hub.server)
    runner = web.AppRunner(app)
    await runner.setup()
    hub_socket, hub_port = bind_unused_port()
    await web.SockSite(runner, hub_socket).start()
    auth = HubOAuth(
        api_url=f"http://127.0.0.1:{hub_port}/base/hub/api",
        api_token="service-token",
        base_url=PREFIX,
        hub_prefix="/base/hub/",
        oauth_client_id="service-gpu",
        access_scopes={ACCESS},
    )
    desk = None if make_desk is None else make_desk(auth.api_url)
    view = broker or FakeBroker()
    handlers: list[Any] = list(
        make_handlers(view, PREFIX, hub_auth=auth, hub="hub" if desk else None, desk=desk, more=more)
    )
    server = HTTPServer(Application(handlers, **make_settings()))
    socket, port = bind_unused_port()
    server.add_socket(socket)
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        yield Pages(f"http://127.0.0.1:{port}{PREFIX}", hub, client, auth)
    server.stop()
    await server.close_all_connections()
    await JupyterHubHTTPClient.loop_instance().close()
    auth._pool.submit(lambda: auth._thread_loop.close()).result()  # HubAuth never closes its thread's loop
    auth._pool.shutdown()
    await runner.cleanup()


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    async with serving() as found:
        yield found


async def test_a_student_reads_their_own(pages: Pages) -> None:
    status, headers, text = await pages.get("api/status", "anna-token")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(text) == {
        "simulated": True,
        "fault": "",
        "devices": [
            {**device(0, lease_id="a", user="anna", server=""), "free": False},
            {**device(1), "free": False},
        ],
        "leases": [lease("a", "anna", "GPU-0")],
        "queue": [],
        "ended": [],
        "next": None,
    }


@pytest.mark.parametrize("token", ["admin-token", "monitor-token"])
async def test_the_scope_reads_all(pages: Pages, token: str) -> None:
    status, _, text = await pages.get("api/status", token)
    expected = FakeBroker().status()
    for shown in expected["devices"]:
        shown["free"] = False
    assert (status, json.loads(text)) == (200, {**expected, "disks": [], "machines": [], "next": None})


LOGIN = {
    "reason": "login_required",
    "message": "Log in first: send a JupyterHub API token as 'Authorization: token …', or reload the page.",
}
REFUSED = {
    "reason": "not_allowed",
    "message": "Your account has no permission to see this. Ask the admin of this hub.",
}


@pytest.mark.parametrize("path", ["api/status", "api/tiers", "api/else", "metrics"])
async def test_no_or_a_wrong_token_is_401_in_json(pages: Pages, path: str) -> None:
    for token in (None, "wrong-token", "", "wrong\N{SNOWMAN}"):
        status, headers, text = await pages.get(path, token)
        assert (status, headers["Content-Type"], json.loads(text)) == (401, "application/json", LOGIN)


@pytest.mark.parametrize("path", ["api/status", "api/tiers", "metrics"])
async def test_no_access_is_403_in_json(pages: Pages, path: str) -> None:
    status, _, text = await pages.get(path, "outsider-token")
    assert (status, json.loads(text)) == (403, REFUSED)


async def test_metrics_need_the_scope(pages: Pages) -> None:
    status, _, text = await pages.get("metrics", "anna-token")
    assert (status, json.loads(text)) == (403, REFUSED)
    status, headers, text = await pages.get("metrics", "monitor-token")
    assert (status, headers["Content-Type"], text) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
        "gpuspawner_devices 2.0\n",
    )


async def test_tiers(pages: Pages) -> None:
    status, _, text = await pages.get("api/tiers", "anna-token")
    assert (status, json.loads(text)) == (200, FakeBroker().tiers())


@pytest.mark.parametrize("path", ["api/status", "api/tiers", "metrics"])
async def test_a_hub_that_is_down_is_503_in_json(pages: Pages, path: str) -> None:
    pages.hub.down = True
    status, _, text = await pages.get(path, "anna-token")
    assert (status, json.loads(text)) == (
        503,
        {
            "reason": "hub_unavailable",
            "message": "JupyterHub did not answer, so you can't be logged in. Try again in a moment.",
        },
    )


async def test_unknown_address(pages: Pages) -> None:
    status, _, text = await pages.get("api/else", "anna-token")
    assert (status, json.loads(text)) == (
        404, {"reason": "not_found", "message": "This page does not exist."},
    )  # fmt: skip
    status, _, text = await pages.get("else", "anna-token")
    assert status == 404
    assert "This page does not exist." in text
    assert "/base/hub/static/css/style.min.css" in text


async def test_only_reading(pages: Pages) -> None:
    headers = {"Authorization": "token anna-token"}
    async with pages.client.post(pages.url + "api/status", headers=headers) as answer:
        sentence = "This address accepts GET, HEAD, not POST."
        assert (answer.status, await answer.json()) == (
            405,
            {"reason": "method_not_allowed", "message": sentence},
        )


@pytest.mark.parametrize("path", ["", "live", "api/status", "health", "static/gpu.js"])
async def test_a_method_that_an_address_does_not_take_is_405_with_those_it_takes(
    pages: Pages, path: str
) -> None:
    for method in ("POST", "PUT", "DELETE"):
        async with pages.client.request(method, pages.url + path) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["live", "api/status", "metrics", "health", "static/gpu.js", "api/else"])
async def test_head_is_get_without_a_body(pages: Pages, path: str) -> None:
    headers = {"Authorization": "token admin-token"}
    seen = []
    for method in ("GET", "HEAD"):
        async with pages.client.request(method, pages.url + path, headers=headers) as answer:
            seen.append((answer.status, answer.headers["Content-Type"], answer.headers["Content-Length"]))
            assert method == "GET" or await answer.read() == b""
    assert seen[0] == seen[1]


async def test_the_address_without_its_slash_leads_to_the_page(pages: Pages) -> None:
    """That of the service; those of its pages are in test_class_pages.py."""
    for query in ("", "?from=menu"):
        async with pages.client.get(pages.url.rstrip("/") + query, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (302, PREFIX + query)


async def test_a_cookie_without_the_xsrf_token_is_told_so(pages: Pages) -> None:
    await pages.log_in("anna")
    script = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
    status, _, text = await pages.get("api/status", **script)
    assert (status, json.loads(text)) == (
        403,
        {
            "reason": "xsrf_missing",
            "message": "This request lacks the page's XSRF token, or brings that of an earlier login: reload "
            "the page and try again. A program sends an API token in place of the browser's cookie.",
        },
    )


def test_the_hub_is_asked_again_soon_about_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"API_TOKEN": "t", "API_URL": "http://127.0.0.1:9/hub/api"}.items():
        monkeypatch.setenv(f"JUPYTERHUB_{name}", value)
    HubOAuth.clear_instance()
    try:
        auth = hub_oauth()
        assert (auth.cache_max_age, auth.cache.max_age) == (TOKEN_SECONDS, TOKEN_SECONDS)
    finally:
        HubOAuth.clear_instance()


async def test_health_asks_nobody(pages: Pages) -> None:
    pages.hub.down = True
    status, _, text = await pages.get("health")
    assert (status, json.loads(text)) == (200, {"status": "ok"})


async def test_a_browser_is_sent_to_the_hub_and_back(pages: Pages) -> None:
    status, headers, _ = await pages.get("")
    target = urlsplit(headers["Location"])
    assert (status, target.path) == (302, "/base/hub/api/oauth2/authorize")
    assert parse_qs(target.query)["redirect_uri"] == [f"{PREFIX}oauth_callback"]
    await pages.log_in("anna")
    status, headers, text = await pages.get("")
    assert status == 200
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "H100 80GB #0 <span" in text
    assert "bob" not in text


async def test_a_wrong_state_logs_nobody_in(pages: Pages) -> None:
    await pages.get("")
    status, _, _ = await pages.get("oauth_callback?code=admin&state=forged")
    assert status == 403
    assert (await pages.get("live"))[0] == 401


async def test_page_for_the_admin(pages: Pages) -> None:
    await pages.log_in("admin")
    _, _, text = await pages.get("")
    assert f'href="{PREFIX}admin/"' in text
    assert "bob" not in text
    assert 'href="/base/hub/admin"' in text


async def test_page_without_access_is_the_hubs_error_page(pages: Pages) -> None:
    await pages.log_in("outsider")
    status, _, text = await pages.get("")
    assert status == 403
    assert "Your account has no permission to see this." in text
    assert '<a href="/base/hub/home">Home</a>' in text
    assert "/base/hub/static/css/style.min.css" in text


async def test_an_error_page_says_who_is_logged_in(pages: Pages) -> None:
    await pages.log_in("anna")
    status, _, text = await pages.get("nowhere/")
    assert status == 404
    assert "You are logged in as <strong><bdi>anna</bdi></strong>." in text


async def test_live_part(pages: Pages) -> None:
    assert (await pages.get("live"))[0] == 401
    await pages.log_in("anna")
    status, headers, text = await pages.get("live")
    assert status == 200
    assert 'id="gpu-mine"' in text
    assert "<html" not in text
    unchanged = await pages.get("live", **{"If-None-Match": headers["Etag"]})
    assert (unchanged[0], unchanged[2]) == (304, "")


async def test_a_script_of_another_site_gets_nothing_by_cookie(pages: Pages) -> None:
    await pages.log_in("anna")
    foreign = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-site"}
    assert (await pages.get("live", **foreign))[0] == 403
    assert (await pages.get("api/status", **foreign))[0] == 403
    _, _, page = await pages.get("")
    token = page.split('xsrf_token: "')[1].split('"')[0]
    assert (await pages.get("live", **foreign, **{"X-XSRFToken": token}))[0] == 200


@pytest.mark.parametrize(("name", "kind"), [("gpu.js", "javascript"), ("gpu.css", "text/css")])
async def test_script_and_style(pages: Pages, name: str, kind: str) -> None:
    status, headers, text = await pages.get(f"static/{name}")
    assert status == 200
    assert kind in headers["Content-Type"]
    assert len(text) > 100


async def test_nothing_beside_the_assets_is_served(pages: Pages) -> None:
    outside = URL(pages.url + "static/%2e%2e/view.py", encoded=True)
    async with pages.client.get(outside, allow_redirects=False) as answer:
        assert answer.status == 403


@pytest.mark.parametrize("name", ["%00", "gpu.js%00", "nothing.js"])
async def test_an_asset_that_isnt_there_is_404(
    pages: Pages, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for method in ("GET", "HEAD"):
        async with pages.client.request(method, URL(pages.url + f"static/{name}", encoded=True)) as answer:
            assert answer.status == 404
    assert not [record for record in caplog.records if record.exc_info]


async def test_no_token_in_the_log(pages: Pages, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await pages.get("api/status?token=secret-word", "anna-token")
    await pages.get("oauth_callback?code=secret-word&state=forged")
    assert "api/status" in caplog.text
    assert not [word for word in ("secret-word", "anna-token") if word in caplog.text]


def test_cookies_outlive_a_restart_of_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "one")
    first = make_settings()["cookie_secret"]
    assert make_settings()["cookie_secret"] == first
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "other")
    assert make_settings()["cookie_secret"] != first
    monkeypatch.delenv("JUPYTERHUB_API_TOKEN")
    assert make_settings()["cookie_secret"] != make_settings()["cookie_secret"]
