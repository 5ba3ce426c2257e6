"""The broker's door for agents: TLS on one port, where machines join and the agents of members connect."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import Fault
from .certificates import Authority, fingerprint
from .membership import Membership
from .remote_node import RemoteNode
from .wire import Garbled, Hello, plain, read

FIRST_SECONDS = 10.0
"""A connection has this long to say what it wants."""
FIRST_BYTES = 64 << 10
"""Longest first message: who sends it isn't known yet."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Door:
    """One a broker. `node_of(name)` is what stands for a machine; None for one that it doesn't drive."""

    def __init__(
        self,
        authority: Authority,
        membership: Membership,
        node_of: Callable[[str], RemoteNode | None],
        log: logging.Logger,
    ) -> None:
        self._authority, self._membership = authority, membership
        self._node_of, self._log = node_of, log
        self._server: asyncio.Server | None = None
        self._open: dict[str, asyncio.StreamWriter] = {}
        self._joining = asyncio.Lock()

    async def open(self, host: str, port: int) -> int:
        """Listens; returns the port. Raises OSError."""
        context = await asyncio.to_thread(self._authority.context)
        self._server = await asyncio.start_server(self._meet, host, port, ssl=context, limit=FIRST_BYTES)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """Ends all connections."""
        if self._server is not None:
            self._server.close()
            for writer in self._open.values():
                writer.transport.abort()
            await self._server.wait_closed()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                message = json.loads(await reader.readline())
            if isinstance(message, dict) and "join" in message:
                await self._join(message, writer)
            else:
                await self._serve(read(Hello, message), (reader, writer))
        except (OSError, ValueError, TimeoutError, Garbled, Fault) as error:
            why = str(error) or "it said nothing in time"
            if isinstance(error, Garbled):  # its text has what came, from anybody
                why = "its first message can't be read"
            self._log.warning("An agent's connection was refused: %s", why)
            await _say(writer, {"tell": "refused", "value": why})
        finally:
            writer.close()

    async def _join(self, message: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        """Signs the request of a machine with a good token. Raises ValueError."""
        name, request = str(message.get("name", "")), str(message.get("request", ""))
        token = str(message["join"])
        await asyncio.to_thread(self._membership.check, token, name)
        async with self._joining:  # certipy counts its certificates in a file
            certificate = await asyncio.to_thread(self._authority.sign, request)
        known_by = fingerprint(ssl.PEM_cert_to_DER_cert(certificate))
        await asyncio.to_thread(self._membership.admit, token, name, known_by)
        self._log.info("Machine %s has joined", name)
        await _say(writer, {"certificate": certificate, "authority": self._authority.certificate})

    async def _serve(self, hello: Hello, streams: Streams) -> None:
        """The connection of a member, until it ends. Raises ValueError for anybody else."""
        tls = streams[1].get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) or b""
        known = await asyncio.to_thread(self._membership.is_member, hello.name, fingerprint(certificate))
        node = self._node_of(hello.name) if known else None
        if node is None:
            raise ValueError(f"machine {hello.name[:64]!r} hasn't joined, or was forgotten")
        if why := hello.refusal():
            node.refuse(hello, why)
            raise ValueError(why)
        self._open[hello.name] = streams[1]
        try:
            await node.serve(streams, hello)
        finally:
            if self._open.get(hello.name) is streams[1]:
                del self._open[hello.name]


async def _say(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    try:
        writer.write(json.dumps(plain(message)).encode() + b"\n")
        await writer.drain()
    except OSError:
        return  # nobody is there to read it
