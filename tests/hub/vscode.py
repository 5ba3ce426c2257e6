"""The requests of VS Code's extensions Jupyter and JupyterHub, in their order, read in their sources.

microsoft/vscode-jupyter 2026.6 (3d24702: userJupyterServer, jupyterUtils, jupyterLabHelper,
jupyterKernelSessionFactory), microsoft/vscode-jupyter-hub 2025.8 (171390d: jupyterHubApi, authenticator,
validator, jupyterIntegration), and @jupyterlab/services 7, which both use for kernels.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
import uuid
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp

PROTOCOL = "v1.kernel.websocket.jupyter.org"
GIVES_UP_SECONDS = 10.0
"""The extension JupyterHub waits this long for a start (TIMEOUT_FOR_SESSION_MANAGER_READY)."""
_PARTS = ("header", "parent_header", "metadata", "content")


@dataclass
class VSCode:
    """VS Code's network part: it keeps no cookies. `url` is the hub's, with a slash at its end."""

    session: aiohttp.ClientSession
    url: str
    user: str
    token: str = ""

    @property
    def server(self) -> str:
        """The address of the user's server."""
        return f"{self.url}user/{self.user}/"

    # ---- extension JupyterHub

    async def hub_of(self, typed: str) -> str:
        """The hub's address for what somebody typed: where `hub/api` answers with a version."""
        for url in (typed, typed[: typed.find("/user/") + 1] if "/user/" in typed else typed):
            address = f"{url.rstrip('/')}/hub/api"
            async with self.session.get(address, allow_redirects=False) as answer:
                if answer.status == 200 and (await answer.json()).get("version"):
                    return url
        raise AssertionError(f"no hub at {typed}")

    async def log_in(self, secret: str) -> str:
        """A token; `secret` is a token already, or a password: then the hub makes a token for it."""
        if await self.info(secret) is not None:
            return secret
        body = {
            "auth": {"username": self.user, "password": secret},
            "note": "Requested by JupyterHub extension",
        }
        address = f"{self.url}hub/api/users/{self.user}/tokens"
        async with self.session.post(address, data=json.dumps(body)) as answer:
            return str((await answer.json())["token"]) if answer.status == 201 else ""

    async def info(self, token: str) -> dict[str, Any] | None:
        """The hub's document of the user; None if the token may not read it."""
        address = f"{self.url}hub/api/users/{self.user}"
        async with self.session.get(address, headers={"Authorization": f"token {token}"}) as answer:
            return dict(await answer.json()) if answer.status == 200 else None

    async def ensure_running(self) -> bool:
        """Starts the server if it isn't ready, without options; whether it is ready in time."""
        if await self._ready():
            return True
        address = f"{self.url}hub/api/users/{self.user}/server"
        async with self.session.post(address, headers=self._headers) as answer:
            await answer.read()  # an error is only logged
        began = time.monotonic()
        while time.monotonic() - began <= GIVES_UP_SECONDS:
            if await self._ready():
                return True
            await asyncio.sleep(1)
        return False

    async def _ready(self) -> bool:
        info = await self.info(self.token) or {}
        return bool((info.get("servers") or {}).get("", {}).get("ready"))

    # ---- extension Jupyter

    async def needs_password(self) -> bool:
        """What it asks for an address with a token: the page itself, without the token."""
        async with self.session.get(self.server) as answer:
            return bool(answer.history) and "/login?" in str(answer.url).lower()

    async def validate(self) -> str:
        """What it lists before a server is taken: kernels and their kinds. Returns the default kind."""
        running, specs, _ = await asyncio.gather(*map(self._list, ("kernels", "kernelspecs", "sessions")))
        assert isinstance(running, list)
        assert specs["kernelspecs"]
        return str(specs["default"])

    async def _list(self, what: str) -> Any:
        address = f"{self.server}api/{what}?{time.time_ns()}"
        async with self.session.get(address, headers=self._headers) as answer:
            assert answer.status == 200, (what, answer.status)
            return await answer.json()

    async def new_session(self, kind: str) -> dict[str, Any]:
        """A session for a notebook that lies on the user's own machine."""
        name = f"Untitled-jvsc-{uuid.uuid4().hex}"
        wanted = {
            "path": f"{name}.ipynb", "name": f"{name}.ipynb", "type": "notebook", "kernel": {"name": kind},
        }  # fmt: skip
        address = f"{self.server}api/sessions"
        headers = {**self._headers, "Content-Type": "application/json"}
        async with self.session.post(address, data=json.dumps(wanted), headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            return dict(await answer.json())

    async def connect(self, kernel: str) -> aiohttp.ClientWebSocketResponse:
        """The kernel's websocket: token in the header and in the address."""
        query = f"session_id={uuid.uuid4()}&token={self.token}"
        address = f"{self.server}api/kernels/{kernel}/channels?{query}"
        return await self.session.ws_connect(address, protocols=[PROTOCOL], headers=self._headers)

    async def kernel(self, kernel: str, step: str) -> int:
        """`interrupt` or `restart`; the status."""
        address = f"{self.server}api/kernels/{kernel}/{step}"
        async with self.session.post(address, headers=self._headers) as answer:
            return answer.status

    async def end_session(self, session: str) -> int:
        """Ends the session with its kernel; the status."""
        address = f"{self.server}api/sessions/{session}"
        async with self.session.delete(address, headers=self._headers) as answer:
            return answer.status

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}


async def ask(socket: aiohttp.ClientWebSocketResponse, kind: str, content: dict[str, Any]) -> str:
    """Sends a message and reads until the kernel is idle again; what it printed, or the error's name."""
    number = uuid.uuid4().hex
    header = {
        "msg_id": number,
        "msg_type": kind,
        "session": "s",
        "username": "",
        "version": "5.3",
        "date": "",
    }
    await socket.send_bytes(_pack("shell", [header, {}, {}, content]))
    text = ""
    async for item in socket:
        assert item.type is aiohttp.WSMsgType.BINARY, item
        message = _unpack(item.data)
        if message["parent_header"].get("msg_id") != number:
            continue
        text += message["content"].get("text", "") or message["content"].get("ename", "") * (
            message["header"]["msg_type"] == "error"
        )
        if message["content"].get("execution_state") == "idle":
            return text
    raise AssertionError("the websocket closed early")


async def execute(socket: aiohttp.ClientWebSocketResponse, code: str) -> str:
    """A cell."""
    content = {
        "code": code,
        "silent": False,
        "store_history": True,
        "allow_stdin": True,
        "stop_on_error": False,
    }
    return await ask(socket, "execute_request", content)


def _pack(channel: str, parts: list[dict[str, Any]]) -> bytes:
    """A message of the protocol: the number of offsets, the offsets, channel and parts (little endian)."""
    blocks = [channel.encode(), *(json.dumps(part).encode() for part in parts)]
    offsets = [8 * (len(blocks) + 2)]
    for block in blocks:
        offsets.append(offsets[-1] + len(block))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(blocks)


def _unpack(data: bytes) -> dict[str, Any]:
    (count,) = struct.unpack_from("<Q", data)
    offsets = struct.unpack_from(f"<{count}Q", data, 8)
    parts = [data[start:end] for start, end in pairwise(offsets)]
    return {name: json.loads(part) for name, part in zip(_PARTS, parts[1:5], strict=True)}
