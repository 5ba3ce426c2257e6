"""A remote client of a hub and its servers with a token: what a browser and a program elsewhere ask."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from yarl import URL

from tests.recipes import PAGE
from tests.running import System

KERNELS = "| kernels of a server that is running | `access:servers!user=NAME` |"
SERVERS = (
    "| start and stop the server, too | `access:servers!user=NAME`, `servers!user=NAME`, "
    "`read:users!user=NAME` |"
)


def scopes(row: str, user: str) -> list[str]:
    """The scopes of a row of the recipe's table."""
    assert row in PAGE.read_text(encoding="utf-8")
    return row.replace("NAME", user).split("`")[1::2]


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


async def run(
    session: aiohttp.ClientSession, user: str, code: str, query: str = "", *, keep: bool = False
) -> str:
    """What `code` prints in a new session of the user's server, which is ended after it unless `keep`."""
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
        if not keep:
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
