"""A notebook's kernel behind the hub, kept open: cells that print one JSON document each."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.webclient import Client, execute_request


class Notebook:
    """A kernel and its websocket, for as long as the notebook is open."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.said: asyncio.Queue[aiohttp.WSMessage] = asyncio.Queue()
        self.lines: list[str] = []
        """What was shown about waiting for a GPU."""

    async def listen(self) -> None:
        """Reads what comes, also between two cells: Jupyter closes a socket that doesn't answer its pings."""
        while True:
            message = await self.socket.receive()
            self.said.put_nowait(message)
            if message.type is not aiohttp.WSMsgType.TEXT:
                return

    async def run(self, code: str) -> dict[str, Any]:
        """A cell that prints one JSON document. An error of the code, or the kernel's end, fails the test."""
        request = execute_request(code)
        await self.socket.send_json(request)
        text = ""
        while (item := await self.said.get()).type is aiohttp.WSMsgType.TEXT:
            message = item.json()
            content = message["content"]
            state = content.get("execution_state")
            assert state not in ("restarting", "autorestarting", "dead"), "the kernel ended"
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            assert message["msg_type"] != "error", "\n".join(content["traceback"])
            if message["msg_type"] == "stream":
                text += content["text"]
            if message["msg_type"] in ("display_data", "update_display_data"):
                self.lines.append(content["data"].get("text/plain", ""))
            if message["msg_type"] == "status" and state == "idle":
                found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
                return found
        raise AssertionError("the kernel's websocket closed early")


@asynccontextmanager
async def notebook(client: Client) -> AsyncIterator[Notebook]:
    """An open one."""
    base = f"user/{client.user}/"
    await client.text(f"{base}lab")
    kernel = await client.send("POST", f"{base}api/kernels", {"name": "python3"})
    address = client.url(f"{base}api/kernels/{kernel['id']}/channels?session_id={uuid.uuid4().hex}")
    async with client.session.ws_connect(address, max_msg_size=0, heartbeat=None) as socket:
        book = Notebook(socket)
        listening = asyncio.create_task(book.listen())
        yield book
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
