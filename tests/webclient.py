"""A user of a hub over plain HTTP, as a browser: login and spawn forms, progress stream, kernels."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
from yarl import URL

from tests.running import System


class KernelEnded(Exception):
    """The kernel was ended while it ran; Jupyter restarts it."""


class Client:
    """A logged-in user with the cookies of a browser, at one of their servers ("": the default one)."""

    def __init__(self, system: System, session: aiohttp.ClientSession, user: str, server: str = "") -> None:
        self.system = system
        self.session = session
        self.user = user
        self.server = server

    def at(self, server: str) -> Client:
        """The same user and session at another server."""
        return Client(self.system, self.session, self.user, server)

    @property
    def api_path(self) -> str:
        """The server in the hub's API."""
        user = f"hub/api/users/{self.user}"
        return f"{user}/servers/{self.server}" if self.server else f"{user}/server"

    def url(self, path: str) -> URL:
        return URL(self.system.url + path)

    def xsrf(self, path: str) -> str:
        """The token of the cookie that applies to `path`."""
        return self.session.cookie_jar.filter_cookies(self.url(path))["_xsrf"].value

    async def text(self, path: str) -> str:
        """A page, redirects followed."""
        async with self.session.get(self.url(path)) as answer:
            assert answer.status == 200, (path, answer.status, await answer.text())
            return await answer.text()

    async def json(self, path: str) -> Any:
        """A JSON answer."""
        return json.loads(await self.text(path))

    async def submit(self, path: str, **fields: str) -> aiohttp.ClientResponse:
        """Fills in a form of the hub and sends it."""
        await self.text(path)
        form = {**fields, "_xsrf": self.xsrf(path)}
        async with self.session.post(self.url(path), data=form) as answer:
            await answer.read()
            return answer

    async def send(self, method: str, path: str, body: Any = None) -> Any:
        """A request of a page's script."""
        headers = {"X-XSRFToken": self.xsrf(path)}
        async with self.session.request(method, self.url(path), json=body, headers=headers) as answer:
            assert answer.ok, (path, answer.status, await answer.text())
            return json.loads(await answer.text() or "null")

    async def progress(self, begun: asyncio.Event | None = None) -> list[dict[str, Any]]:
        """The events of the progress stream to its end; sets `begun` at the first."""
        events = []
        async with self.session.get(self.url(f"{self.api_path}/progress")) as stream:
            async for line in stream.content:
                if line.startswith(b"data:"):
                    events.append(json.loads(line[5:]))
                    if begun is not None:
                        begun.set()
        return events

    async def run_in_kernel(self, code: str) -> str:
        """What `code` prints in a new Python kernel of the user's server, which is ended after it."""
        base = f"user/{self.user}/{self.server}/" if self.server else f"user/{self.user}/"
        await self.text(f"{base}lab")
        kernel = await self.send("POST", f"{base}api/kernels", {"name": "python3"})
        address = self.url(f"{base}api/kernels/{kernel['id']}/channels?session_id={uuid.uuid4().hex}")
        try:
            async with self.session.ws_connect(address) as socket:
                request = execute_request(code)
                await socket.send_json(request)
                said = await printed(socket, request["header"]["msg_id"])
        except KernelEnded:  # Jupyter is restarting it, and may refuse to delete it just now
            with suppress(AssertionError):
                await self.send("DELETE", f"{base}api/kernels/{kernel['id']}")
            raise
        await self.send("DELETE", f"{base}api/kernels/{kernel['id']}")
        return said


def execute_request(code: str) -> dict[str, Any]:
    """Jupyter's message that runs `code` (messaging protocol 5.3)."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": uuid.uuid4().hex,
        "username": "",
        "version": "5.3",
        "date": "",
    }
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    return {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}


async def printed(socket: aiohttp.ClientWebSocketResponse, message_id: str) -> str:
    """What was printed for the message with this id; an error of the code fails the test."""
    text = ""
    async for item in socket:
        message = item.json()
        if message["content"].get("execution_state") in ("restarting", "autorestarting", "dead"):
            raise KernelEnded(f"the kernel ended; it had printed: {text!r}")
        if message["parent_header"].get("msg_id") != message_id:
            continue
        content = message["content"]
        assert message["msg_type"] != "error", "\n".join(content["traceback"])
        if message["msg_type"] == "stream":
            text += content["text"]
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return text
    raise AssertionError("the kernel's websocket closed early")


@asynccontextmanager
async def logged_in(system: System, user: str) -> AsyncIterator[Client]:
    """A session in which `user` went through the login form."""
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address that is a number
    timeout = aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(cookie_jar=jar, timeout=timeout) as session:
        client = Client(system, session, user)
        answer = await client.submit("hub/login", username=user, password=system.password(user))
        assert answer.status == 200
        yield client


async def start(client: Client, tier: str) -> float:
    """Seconds from the click to ready."""
    begin = time.perf_counter()
    page = f"hub/spawn/{client.user}/{client.server}" if client.server else "hub/spawn"
    await client.submit(page, profile=tier)
    events = await client.progress()
    assert events[-1].get("ready"), events
    return time.perf_counter() - begin


@asynccontextmanager
async def serving(client: Client, tier: str) -> AsyncIterator[float]:
    """A running server, stopped at the end of the block; gives the seconds from click to ready."""
    try:
        yield await start(client, tier)
    finally:
        await stop(client)


async def stop(client: Client) -> None:
    """Stops the user's server."""
    await client.text("hub/home")
    await client.send("DELETE", client.api_path)


async def whole_status(admin: Client) -> Any:
    """Everybody's leases and devices, as the admin sees them."""
    await admin.text("services/gpu/")
    return await admin.json("services/gpu/api/status")


async def all_free(admin: Client) -> float:
    """Seconds until no lease is left and every device is free; fails after 20."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < 20:
        status = await whole_status(admin)
        if not status["leases"] and all(device["free"] for device in status["devices"]):
            return time.perf_counter() - begin
        await asyncio.sleep(0.1)
    raise AssertionError(f"not free: {status}")
