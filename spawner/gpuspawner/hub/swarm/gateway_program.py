"""The gateway between the hub and the labs' own networks. It runs in a container and needs only Python.

    python3 gateway_program.py HOST OWN FIRST COUNT LAB_PORT HUB_PORT

The hub's side: at OWN, on the ports from FIRST on, it forwards the connections of HOST, and of nobody else,
to the lab `lab-N`, N being the port's number from 0 on. The labs' side: on HUB_PORT at all its other
addresses it forwards to the hub, HOST:HUB_PORT. It doesn't look into what it forwards, and lets no lab reach
another.
"""

import asyncio
import contextlib
import resource
import socket
import sys
from collections.abc import Awaitable, Callable

CHUNK_BYTES = 1 << 16
CONNECT_SECONDS = 5.0
BACKLOG = 128

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Copies until the source ends, and passes that end on."""
    while data := await source.read(CHUNK_BYTES):
        target.write(data)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()


async def join(one: Streams, other: Streams) -> None:
    """Copies both ways until both have ended, or one fails."""
    both = [asyncio.ensure_future(copy(one[0], other[1])), asyncio.ensure_future(copy(other[0], one[1]))]
    try:
        await asyncio.gather(*both)
    finally:
        for each in both:
            each.cancel()


async def forward(host: str, port: int, client: Streams) -> None:
    """One connection; without an answer of the other side it is closed."""
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        other = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
        try:
            await join(client, other)
        finally:
            other[1].close()


def serve(
    host: str, port: int, accept: Callable[[str, str], bool]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Forwards a connection to host and port if `accept` agrees to its two addresses: from, to."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if accept(writer.get_extra_info("peername")[0], writer.get_extra_info("sockname")[0]):
                await forward(host, port, (reader, writer))
        finally:
            writer.close()

    return handle


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens there."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((address, port))
    return found


def raise_limit() -> None:
    """Allows as many open files as this process may have: each port and each connection takes one or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def main(host: str, own: str, first: int, count: int, ports: tuple[int, int]) -> None:
    """Serves until the process ends."""
    lab_port, hub_port = ports
    servers = [
        await asyncio.start_server(
            serve(f"lab-{number}", lab_port, lambda source, _: source == host),
            sock=listen(own, first + number),
            backlog=BACKLOG,
        )
        for number in range(count)
    ]
    servers.append(
        await asyncio.start_server(
            serve(host, hub_port, lambda _, target: target != own),
            sock=listen("0.0.0.0", hub_port),
            backlog=BACKLOG,
        )
    )
    print(f"gateway: {count} labs from port {first} on, hub {host}:{hub_port}", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    raise_limit()
    _host, _own, *_numbers = sys.argv[1:]
    _first, _count, _lab_port, _hub_port = map(int, _numbers)
    asyncio.run(main(_host, _own, _first, _count, (_lab_port, _hub_port)))
