"""A launch from a learning platform puts the user in a group, and the group decides what starts (LTI 1.3).

The platform is the test: it has a key set of its own, and answers as Moodle does.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.hub.hubprocess import HubProcess
from tests.recipes import adapted, blocks

pytestmark = pytest.mark.docker

HEADING = "Login from a learning platform (LTI 1.3)"
CLAIM = "https://purl.imsglobal.org/spec/lti/claim/"
ISSUER = "https://moodle.example.org"
CLIENT = "the-client-id-that-moodle-shows"


class Platform:
    """A learning platform with one key, whose public half is at `keys_url`."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = {**json.loads(RSAAlgorithm.to_jwk(self._key.public_key())), "kid": "k1", "use": "sig"}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _serving({"keys": [public]}))
        threading.Thread(target=self._server.serve_forever, daemon=True, name="platform").start()
        self.keys_url = f"http://127.0.0.1:{self._server.server_address[1]}/certs"

    def sign(self, claims: dict[str, Any], key: Any = None) -> str:
        """The claims as the platform's token."""
        return jwt.encode(claims, key or self._key, algorithm="RS256", headers={"kid": "k1"})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _serving(document: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *args: object) -> None: ...

    return Keys


@pytest.fixture(scope="module", autouse=True)
def platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The platform; the hub of this module is set up with the recipe for it."""
    made = Platform()
    (text,) = blocks(HEADING, "python")
    site: Path = tmp_path_factory.mktemp("lti") / "site.py"
    site.write_text(adapted(text, {f"{ISSUER}/mod/lti/certs.php": made.keys_url}))
    request.module.HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(site)}
    yield made
    made.close()


def claims(user: str, course: str, role: str, nonce: str) -> dict[str, Any]:
    """What a platform says of a launch from a course."""
    now = int(time.time())
    return {
        "iss": ISSUER,
        "aud": CLIENT,
        "sub": f"number of {user}",
        "email": user,
        "iat": now,
        "exp": now + 60,
        "nonce": nonce,
        f"{CLAIM}message_type": "LtiResourceLinkRequest",
        f"{CLAIM}version": "1.3.0",
        f"{CLAIM}deployment_id": "1",
        f"{CLAIM}target_link_uri": "https://hub.example.org/hub",
        f"{CLAIM}resource_link": {"id": "7"},
        f"{CLAIM}roles": [f"http://purl.imsglobal.org/vocab/lis/v2/membership#{role}"],
        f"{CLAIM}context": {
            "id": "3",
            "label": course,
            "title": "Machine learning",
            "type": ["CourseSection"],
        },
    }


async def launch(
    hub: HubProcess,
    platform: Platform,
    user: str,
    course: str,
    role: str = "Learner",
    path: str = "/hub/home",
    key: Any = None,
) -> tuple[int, str]:
    """A click in the course, as the browser goes: status and address of the last page."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(hub.url, cookie_jar=jar) as session:
        target = f"{hub.url}/hub?next={quote(path, safe='')}"
        begin = {"iss": ISSUER, "login_hint": "4", "target_link_uri": target, "client_id": CLIENT}
        async with session.get("/hub/lti13/oauth_login", params=begin, allow_redirects=False) as sent:
            assert sent.status == 302, await sent.text()
            asked = {
                name: value[0] for name, value in parse_qs(urlsplit(sent.headers["Location"]).query).items()
            }
        assert sent.headers["Location"].startswith(f"{ISSUER}/mod/lti/auth.php?")
        assert asked["redirect_uri"] == f"{hub.url}/hub/lti13/oauth_callback"
        token = platform.sign(claims(user, course, role, asked["nonce"]), key)
        form = {"id_token": token, "state": asked["state"]}
        async with session.post("/hub/lti13/oauth_callback", data=form) as answer:
            await answer.read()
            return answer.status, str(answer.url.relative())


async def groups(hub: HubProcess, user: str) -> list[str]:
    _, model = await hub.call("GET", f"/users/{user}")
    return sorted(model["groups"])


async def test_a_student_of_the_course_gets_a_gpu(hub: HubProcess, platform: Platform) -> None:
    assert await launch(hub, platform, "ada", "ML-101") == (200, "/hub/home")
    assert await groups(hub, "ada") == ["ML-101"]
    assert (await hub.spawn("ada", {"profile": "gpu"})).ready
    await hub.stop_server("ada")


async def test_a_launch_may_start_a_tier(hub: HubProcess, platform: Platform) -> None:
    _, address = await launch(hub, platform, "bob", "ML-101", path="/hub/spawn?opt-profile=gpu")
    assert "/bob" in address  # the stub of a lab has no page to end at
    assert (await hub.progress("bob"))[-1].get("ready")
    assert await hub.leases("bob") == [("bob", "", "running")]
    await hub.stop_server("bob")


async def test_who_comes_from_another_course_gets_none(hub: HubProcess, platform: Platform) -> None:
    await launch(hub, platform, "ada", "ART-1")
    assert await groups(hub, "ada") == ["ART-1"]
    status, said = await hub.post("ada", {"profile": "gpu"})
    assert (status, "Your quota does not include the tier 'One GPU'" in said) == (403, True)


async def test_a_teacher_is_in_both_groups(hub: HubProcess, platform: Platform) -> None:
    await launch(hub, platform, "ines", "ML-101", "Instructor")
    assert await groups(hub, "ines") == ["ML-101", "ML-101-teachers"]


async def test_another_key_is_nobodys(hub: HubProcess, platform: Platform) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    user = f"eve-{secrets.token_hex(2)}"
    status, _ = await launch(hub, platform, user, "ML-101", key=stranger)
    assert status == 400
    assert (await hub.call("GET", f"/users/{user}"))[0] == 404
