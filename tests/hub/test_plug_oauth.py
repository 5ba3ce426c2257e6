"""Groups of a login service become quotas: GenericOAuthenticator against a small OAuth 2 provider."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
import pytest

from tests.hub.hubprocess import HubProcess
from tests.recipes import adapted, blocks

pytestmark = pytest.mark.docker

SECRET = "the client's secret"
AT = "https://login.example.org/realms/uni/protocol/openid-connect"
HUB_AT = '"https://hub.example.org/hub/oauth_callback"'


class Provider:
    """A login service at which the next one to log in is `claims`; codes and tokens count once each."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self.codes: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.problems: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True, name="provider").start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            if asked.path == "/userinfo":
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                return self._send(provider.tokens[token])
            query = {name: values[0] for name, values in parse_qs(asked.query).items()}
            code = secrets.token_hex(8)
            provider.codes[code] = {**provider.claims, "_challenge": query.get("code_challenge")}
            if (query["client_id"], query["scope"]) != ("gpuspawner", "openid profile groups"):
                provider.problems.append(asked.query)
            self.send_response(302)
            back = urlencode({"code": code, "state": query["state"]})
            self.send_header("Location", f"{query['redirect_uri']}?{back}")
            self.end_headers()
            return None

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            if form.get("client_secret") != SECRET:
                provider.problems.append(body)
            token = secrets.token_hex(8)
            found = provider.codes.pop(form["code"])
            provider.tokens[token] = {name: value for name, value in found.items() if name[0] != "_"}
            return self._send(
                {"access_token": token, "token_type": "Bearer", "scope": "openid profile groups"}
            )

        def _send(self, document: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *args: object) -> None: ...

    return Handler


@pytest.fixture(scope="module", autouse=True)
def provider(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """The login service; the hub of this module is set up with the recipe for it."""
    made = Provider()
    (text,) = blocks("Login with OAuth, groups become quotas", "python")
    port = '__import__("os").environ["GPUSPAWNER_PORT"]'
    instead = {
        f"{AT}/auth": f"{made.url}/auth",
        f"{AT}/token": f"{made.url}/token",
        f"{AT}/userinfo": f"{made.url}/userinfo",
        HUB_AT: f'"http://127.0.0.1:" + {port} + "/hub/oauth_callback"',
    }
    site = tmp_path_factory.mktemp("oauth") / "site.py"
    site.write_text(adapted(text, instead))
    request.module.HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(site), "OAUTH_CLIENT_SECRET": SECRET}
    yield made
    made.close()


async def log_in(hub: HubProcess, provider: Provider, user: str, *groups: str) -> int:
    """A login as the browser goes, through the provider and back; the status of the last page."""
    provider.claims = {"preferred_username": user, "groups": list(groups)}
    path = "/hub/oauth_login?next=%2Fhub%2Fhome"
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(hub.url, cookie_jar=jar) as session, session.get(path) as answer:
        await answer.read()
    assert provider.problems == []
    return answer.status


async def test_groups_of_the_login_service_are_quotas(hub: HubProcess, provider: Provider) -> None:
    assert await log_in(hub, provider, "eve", "phd", "choir") == 200
    assert sorted((await hub.call("GET", "/users/eve"))[1]["groups"]) == ["choir", "phd"]
    assert (await hub.spawn("eve", {"profile": "gpu"})).ready
    await hub.stop_server("eve")


async def test_a_new_login_changes_them(hub: HubProcess, provider: Provider) -> None:
    await log_in(hub, provider, "eve", "students")
    status, said = await hub.post("eve", {"profile": "gpu"})
    assert (status, "Your quota does not include the tier 'One GPU': choose 'CPU'." in said) == (403, True)
    assert (await hub.spawn("eve", {"profile": "cpu"})).ready
    await hub.stop_server("eve")


async def test_who_is_in_no_allowed_group_is_not_let_in(hub: HubProcess, provider: Provider) -> None:
    assert await log_in(hub, provider, "mallory", "guests") == 403


async def test_the_name_admin_has_no_rights(hub: HubProcess, provider: Provider) -> None:
    """It is the admin's of `jupyterhub_config.py`, and could be anybody's at the login service."""
    assert await log_in(hub, provider, "admin", "students") == 200
    model = (await hub.call("GET", "/users/admin"))[1]
    assert (model["admin"], "gpu-admin" in model.get("roles", [])) == (False, False)
