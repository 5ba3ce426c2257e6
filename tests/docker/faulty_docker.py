"""A proxy in front of the Docker Engine that fails on demand: errors, silence, lost answers, kills.

Listens on a unix socket of its own; point DOCKER_HOST there. Every request gets an upstream
connection of its own, so that an answer can be lost without disturbing another.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Action = Literal["pass", "409", "500", "silence", "refuse", "lose"]
"""`lose` lets Docker do it and closes instead of answering; `silence` never answers."""


@dataclass
class Rule:
    """What happens to the `nth` matching request (and the `times - 1` after it).

    `before` is called when the request has come and before Docker sees it, `after` when Docker has
    answered and before the client sees that. After a kill there is nobody to answer.
    """

    pattern: str
    action: Action = "pass"
    nth: int = 1
    times: int = 1
    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None
    seen: int = 0
    hits: int = 0

    def matches(self, request: str) -> bool:
        """Counts a matching request; True if this is one that the rule is for."""
        if not re.search(self.pattern, request):
            return False
        self.seen += 1
        if not self.nth <= self.seen < self.nth + self.times:
            return False
        self.hits += 1
        return True


@dataclass
class FaultyDocker:
    """`async with FaultyDocker(path) as proxy`; `proxy.rules` may be changed at any time."""

    path: Path
    upstream: str = "/var/run/docker.sock"
    rules: list[Rule] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _listener: socket.socket | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def host(self) -> str:
        """The value for DOCKER_HOST."""
        return f"unix://{self.path}"

    async def __aenter__(self) -> FaultyDocker:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def up(self) -> None:
        """Docker is there (again)."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(128)
        self._listener.setblocking(False)
        # add_reader, not asyncio.Server or sock_accept: they lose a connection if closed while accepting.
        asyncio.get_running_loop().add_reader(self._listener, self._on_connection, self._listener)

    async def down(self) -> None:
        """Docker is gone: nobody listens, and every connection breaks."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self.path.unlink(missing_ok=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close in the loop's next round

    def _on_connection(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        task = asyncio.create_task(self._accept(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: connection.close())  # also if it never began to run

    async def _accept(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        request = " ".join(head.split(b"\r\n", 1)[0].decode().split()[:2])
        self.requests.append(request)
        rule = next((item for item in self.rules if item.matches(request)), None)
        if rule is not None and rule.before is not None:
            rule.before()
            return
        action = rule.action if rule is not None else "pass"
        if action == "refuse":
            return
        if action == "silence":
            await reader.read()  # until the client gives up
            return
        if action in ("409", "500"):
            await _answer(writer, action)
            return
        await self._forward(head + body, writer, rule)

    async def _forward(self, request: bytes, writer: asyncio.StreamWriter, rule: Rule | None) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(self.upstream)
        try:
            up_writer.write(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", request, count=1).replace(
                b"\r\n", b"\r\nConnection: close\r\n", 1))  # fmt: skip
            await up_writer.drain()
            if rule is not None:  # the whole answer first: Docker has done it
                endless = b"/events" in request.split(b"\r\n", 1)[0]
                answer = await (up_reader.readuntil(b"\r\n\r\n") if endless else up_reader.read())
                if rule.after is not None:
                    rule.after()
                if rule.action != "lose" and rule.after is None:
                    writer.write(answer)
                    await writer.drain()
                return
            while data := await up_reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        finally:
            up_writer.transport.abort()


async def _answer(writer: asyncio.StreamWriter, status: str) -> None:
    body = json.dumps({"message": f"made up {status}"}).encode()
    writer.write(
        f"HTTP/1.1 {status} Made-Up\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await writer.drain()
    writer.write_eof()
