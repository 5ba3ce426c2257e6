"""The gateway's program: it forwards both ways, for the hub alone and to the hub alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from gpuspawner.hub.swarm import gateway_program

from tests.soon import SOON_SECONDS

HOST = "127.0.0.1"


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers after the end of what was asked, so that this end has to be passed on."""
    asked = await reader.read()
    writer.write(b"you said " + asked)
    writer.close()


@pytest.fixture
async def target() -> AsyncIterator[int]:
    """The port of a server behind the gateway."""
    server = await asyncio.start_server(_echo, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(port: int) -> bytes:
    """What comes back through the gateway; b"" if it closes the connection."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(b"hello")
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), SOON_SECONDS)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(("accepts", "answer"), [(True, b"you said hello"), (False, b"")])
async def test_it_forwards_whom_it_accepts(target: int, accepts: bool, answer: bytes) -> None:
    seen: list[tuple[str, str]] = []

    def accept(source: str, own: str) -> bool:
        seen.append((source, own))
        return accepts

    gateway = await asyncio.start_server(gateway_program.serve(HOST, target, accept), HOST, 0)
    async with gateway:
        assert await ask(gateway.sockets[0].getsockname()[1]) == answer
    assert seen == [(HOST, HOST)]


async def test_a_lab_that_is_not_there_closes_the_connection(unused_tcp_port: int) -> None:
    handler = gateway_program.serve(HOST, unused_tcp_port, lambda *_: True)
    gateway = await asyncio.start_server(handler, HOST, 0)
    async with gateway:
        assert await ask(gateway.sockets[0].getsockname()[1]) == b""
