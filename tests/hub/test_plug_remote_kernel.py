"""A kernel from elsewhere, with a token that may do no more than it needs.

The requests are those of a remote client of Jupyter's server, as VS Code's extensions are: the kinds of
kernels, a session, the kernel's websocket; and before them, at the hub, its version, a start and the user's
servers. The token is in the header, or in the address. VS Code itself doesn't run here.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.recipes import PAGE
from tests.running import System, running_system

pytestmark = pytest.mark.docker

KERNELS = "| kernels of a server that is running | `access:servers!user=NAME` |"
SERVERS = (
    "| start and stop the server, too | `access:servers!user=NAME`, `servers!user=NAME`, "
    "`read:users!user=NAME` |"
)


def scopes(row: str, user: str) -> list[str]:
    """The scopes of a row of the recipe's table."""
    assert row in PAGE.read_text(encoding="utf-8")
    return row.replace("NAME", user).split("`")[1::2]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A hub with the real lab-base and one simulated GPU, and a service that may make tokens."""
    folder: Path = tmp_path_factory.mktemp("remote")
    with running_system(folder, GPUSPAWNER_SIMULATED="1 x H100 80GB") as running:
        yield running


@asynccontextmanager
async def logged_in(system: System, user: str) -> AsyncIterator[aiohttp.ClientSession]:
    """The user's own browser, in which they make tokens."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(system.url, cookie_jar=jar) as session:
        async with session.get("hub/login") as answer:
            await answer.read()
        form = {"username": user, "password": system.password(user), "_xsrf": xsrf(session, system)}
        async with session.post("hub/login", data=form) as answer:
            assert answer.status == 200
        yield session


def xsrf(session: aiohttp.ClientSession, system: System) -> str:
    return session.cookie_jar.filter_cookies(URL(f"{system.url}hub/"))["_xsrf"].value


async def make_token(session: aiohttp.ClientSession, system: System, user: str, wanted: list[str]) -> str:
    """A token of the user, as the hub's page Token makes it."""
    headers = {"X-XSRFToken": xsrf(session, system)}
    path = f"hub/api/users/{user}/tokens"
    async with session.post(path, json={"scopes": wanted, "note": "VS Code"}, headers=headers) as answer:
        document = await answer.json()
        assert answer.status == 201, document
        return str(document["token"])


def remote(system: System, token: str) -> aiohttp.ClientSession:
    """A program elsewhere that has the token and nothing else."""
    return aiohttp.ClientSession(system.url, headers={"Authorization": f"token {token}"})


async def run(session: aiohttp.ClientSession, user: str, code: str, query: str = "") -> str:
    """What `code` prints in a new session of the user's server."""
    base = f"user/{user}/"
    async with session.get(f"{base}api/kernelspecs{query}") as answer:
        assert answer.status == 200
        name = (await answer.json())["default"]
    wanted = {
        "name": "n",
        "path": f"vscode-{uuid.uuid4().hex}.ipynb",
        "type": "notebook",
        "kernel": {"name": name},
    }
    async with session.post(f"{base}api/sessions{query}", json=wanted) as answer:
        made = await answer.json()
        assert answer.status == 201, made
    kernel = made["kernel"]["id"]
    more = f"&{query[1:]}" if query else ""
    try:
        address = f"{base}api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}{more}"
        async with session.ws_connect(address) as socket:
            return await printed(socket, code)
    finally:
        async with session.delete(f"{base}api/sessions/{made['id']}{query}") as answer:
            assert answer.status == 204


async def printed(socket: aiohttp.ClientWebSocketResponse, code: str) -> str:
    """What a cell prints (Jupyter's messaging protocol 5.3)."""
    number = uuid.uuid4().hex
    header = {"msg_id": number, "msg_type": "execute_request", "session": "s", "username": "", "version": "5.3", "date": ""}  # fmt: skip  # noqa: E501
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    request = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
    await socket.send_json(request)
    text = ""
    async for item in socket:
        message = item.json()
        if message["parent_header"].get("msg_id") != number:
            continue
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
        if message["content"].get("execution_state") == "idle":
            return text
    raise AssertionError("the websocket closed early")


async def status_of(session: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> int:
    async with session.request(method, path, json=body) as answer:
        await answer.read()
        return answer.status


async def until_ready(session: aiohttp.ClientSession, user: str) -> None:
    """As the extension waits: it asks for the user's servers."""
    for _ in range(600):
        async with session.get(f"hub/api/users/{user}") as answer:
            document = await answer.json()
            if (document.get("servers") or {}).get("", {}).get("ready"):
                return
        await asyncio.sleep(0.2)
    raise AssertionError(f"not ready: {document}")


async def test_a_token_for_servers_starts_one_with_a_gpu_and_computes(system: System) -> None:
    async with logged_in(system, "ada") as browser:
        token = await make_token(browser, system, "ada", scopes(SERVERS, "ada"))
    async with remote(system, token) as session:
        assert await status_of(session, "GET", "hub/api/") == 200
        assert await status_of(session, "POST", "hub/api/users/ada/server", {"profile": "gpu"}) in (201, 202)
        await until_ready(session, "ada")
        assert (
            await run(session, "ada", "import os; print(os.environ['GPUSPAWNER_TIER'], 6 * 7)") == "gpu 42\n"
        )


async def test_a_token_for_kernels_alone_computes_and_no_more(system: System) -> None:
    async with logged_in(system, "ada") as browser:
        token = await make_token(browser, system, "ada", scopes(KERNELS, "ada"))
    async with remote(system, token) as session:
        assert await run(session, "ada", "print('hello')") == "hello\n"
        assert await status_of(session, "DELETE", "hub/api/users/ada/server") == 403
        assert await status_of(session, "GET", "hub/api/users") == 403
    async with aiohttp.ClientSession(system.url) as session:  # in the address, as a browser sends it
        assert await run(session, "ada", "print('address')", f"?token={token}") == "address\n"


async def test_neither_reaches_anybody_elses(system: System) -> None:
    async with logged_in(system, "bob") as browser:
        token = await make_token(browser, system, "bob", scopes(SERVERS, "bob"))
    async with remote(system, token) as session:
        assert await status_of(session, "GET", "user/ada/api/kernelspecs") == 403
        assert await status_of(session, "POST", "hub/api/users/ada/server") in (403, 404)


async def test_it_is_stopped_with_the_same_token(system: System) -> None:
    async with logged_in(system, "ada") as browser:
        token = await make_token(browser, system, "ada", scopes(SERVERS, "ada"))
    async with remote(system, token) as session:
        assert await status_of(session, "DELETE", "hub/api/users/ada/server") in (202, 204)
