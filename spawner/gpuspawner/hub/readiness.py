"""Waits until a server answers, with polls that are cheap enough to repeat often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum

from ..protocol.patience import patience

POLL_SECONDS = 0.025
"""JupyterHub's own readiness poll backs off and overshoots by 1.3 to 1.8 s on average (6.1.1)."""
_POLLS_AT_FULL_RATE = 4
_CONNECT_SECONDS = 0.5
_ANSWER_SECONDS = 5.0


class Answer(StrEnum):
    """The result of one request; a refused connection means that the server isn't up yet."""

    READY = "ready"
    REFUSED = "refused"
    SILENT = "silent"


class Slots:
    """Lets a few servers start at a time, first come first served.

    A starting server uses a whole core for seconds. If all start at once, they share the cores, everybody
    waits for the last one, and switching between them costs time; one after the other, the first are ready
    soon. A slot is freed after at most `longest_seconds`, so a server that hangs delays nobody.
    """

    def __init__(self, count: int, longest_seconds: float = 10.0) -> None:
        self._free = asyncio.Semaphore(count)
        self._longest_seconds = longest_seconds

    @property
    def taken(self) -> bool:
        """Whether a new start has to wait."""
        return self._free.locked()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Waits for a slot and keeps it until the block or the slot's time ends."""
        await self._free.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(self._longest_seconds, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()


class Pace:
    """The pause between polls: 25 ms for a few servers, longer if more start at once.

    With 30 at once it is 190 ms, so that polling doesn't use the cores that the starting servers need.
    """

    def __init__(self) -> None:
        self._waiting = 0

    def __enter__(self) -> Pace:
        self._waiting += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting -= 1

    @property
    def seconds(self) -> float:
        """The time to sleep now."""
        return POLL_SECONDS * max(1.0, self._waiting / _POLLS_AT_FULL_RATE)


async def ask(host: str, port: int, path: str, *, wanted: int | None = None) -> Answer:
    """One `GET path` to `host:port`. READY for any status below 500, or only for `wanted`.

    Never raises because of the other side. SILENT: no host, no answer in time, or another status.
    """
    try:
        async with patience(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return Answer.REFUSED
    except OSError:
        return Answer.SILENT
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
        async with patience(_ANSWER_SECONDS):
            writer.write(request.encode("ascii", "replace"))
            line = await reader.readline()
        return _judge(line, wanted)
    except (OSError, ValueError):  # ValueError: the first line has no end
        return Answer.SILENT
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _judge(line: bytes, wanted: int | None) -> Answer:
    words = line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Answer.SILENT
    status = int(words[1])
    ready = status == wanted if wanted is not None else status < 500
    return Answer.READY if ready else Answer.SILENT
