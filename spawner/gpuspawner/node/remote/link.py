"""One connection between broker and agent: calls with answers in both directions, and a sign of life.

Messages are JSON, one a line: {"call": name, "id": n, "arguments": [...]}, {"answer": n, "result": ...} or
with "error", {"tell": what, "value": ...} without an answer, {"alive": true}. If the other side is silent for
too long, the link has ended: a cut cable says nothing. What is sent in one turn of the event loop goes out
together: each write costs a TLS record and a system call, more than the message itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import DeviceFault
from ...core.units import utc_now
from .wire import Garbled, Unknown, arguments_of, fault_of, fault_to_plain, plain, result_of

MOST_BYTES = 16 << 20
"""The longest line. The readings of 64 GPUs with 30 containers each are under 1 MiB."""
_CHUNK_BYTES = 64 << 10
ALIVE_SECONDS = 2.0
SILENCE_SECONDS = 8.0
CALL_SECONDS = 60.0
"""Longest wait for an answer: an MPS daemon may be started for it."""


@dataclass(frozen=True, slots=True)
class LinkPace:
    """How often it says that it lives, and when silence or a missing answer counts as the end."""

    alive_seconds: float = ALIVE_SECONDS
    silence_seconds: float = SILENCE_SECONDS
    call_seconds: float = CALL_SECONDS


class Link:
    """Runs until the connection ends. `on_call(name, arguments)` answers the other side's calls,
    `on_tell(what, value)` takes what it tells; it may raise Garbled, which ends the link."""

    def __init__(
        self,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        on_call: Callable[[str, tuple[Any, ...]], Awaitable[Any]],
        on_tell: Callable[[str, Any], None],
        log: logging.Logger,
        pace: LinkPace | None = None,
    ) -> None:
        self._reader, self._writer = streams
        self._on_call, self._on_tell = on_call, on_tell
        self._log, self._pace = log, pace or LinkPace()
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._unsent: list[bytes] = []
        """The lines of this turn of the loop."""
        self.ended = ""
        """Why it has ended; "" while it runs."""
        self.heard_at = utc_now()
        """When the other side was heard last."""

    async def run(self) -> None:
        """Reads and answers; returns when the connection has ended, for whatever reason."""
        alive = asyncio.create_task(self._stay_alive())
        try:
            async for line in self._lines():
                self._take(json.loads(line))
            self.ended = "the connection was closed"
        except ConnectionError:  # as by the kernel, for a process that was killed with something left to read
            self.ended = "the connection was closed"
        except TimeoutError:
            self.ended = f"nothing was heard for {self._pace.silence_seconds:g} s"
        except (OSError, ValueError) as error:  # also a line that is too long or no JSON
            self.ended = str(error) or type(error).__name__
        except Garbled as error:
            self.ended = f"a message can't be read: {error}"
        finally:
            self.ended = self.ended or "the link was closed"
            alive.cancel()
            for task in self._answering:
                task.cancel()
            await asyncio.gather(alive, *self._answering, return_exceptions=True)
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(DeviceFault(self.ended))
                    future.exception()  # looked at: whoever asked may have gone
            self._flush()
            self._writer.close()

    async def _lines(self) -> AsyncIterator[bytes]:
        """Whole lines. Raises TimeoutError after a silence, ValueError for a line that is too long."""
        begun = bytearray()
        while chunk := await self._chunk():
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                yield bytes(begun) + line
                begun.clear()
            begun += rest
            if len(begun) > MOST_BYTES:
                raise ValueError(f"a message is longer than {MOST_BYTES} bytes")

    async def _chunk(self) -> bytes:
        # asyncio.wait_for of Python 3.11 loses a cancellation that comes together with data
        async with asyncio.timeout(self._pace.silence_seconds):
            chunk = await self._reader.read(_CHUNK_BYTES)
        self.heard_at = utc_now()
        return chunk

    def close(self) -> None:
        """Ends the link; `run` returns."""
        self._writer.transport.abort()

    async def call(self, name: str, *arguments: Any) -> Any:
        """The other side's answer. Raises what it raised, or DeviceFault if none came."""
        if self.ended:
            raise DeviceFault(self.ended)
        number = next(self._ids)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"call": name, "id": number, "arguments": plain(arguments)})
            async with asyncio.timeout(self._pace.call_seconds):
                value = await future
        except TimeoutError:
            raise DeviceFault(f"no answer for {self._pace.call_seconds:g} s") from None
        finally:
            self._asked.pop(number, None)
        try:
            return result_of(name, value)
        except Garbled as error:
            self.close()
            raise DeviceFault(f"the answer can't be read: {error}") from error

    def tell(self, what: str, value: Any) -> None:
        """Sends something that has no answer; it may be lost if the link ends."""
        self._send({"tell": what, "value": plain(value)})

    def _send(self, message: dict[str, Any]) -> None:
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(json.dumps(message).encode() + b"\n")

    def _flush(self) -> None:
        lines, self._unsent = self._unsent, []
        if lines and not self._writer.is_closing():
            self._writer.write(b"".join(lines))

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise Garbled("not an object")
        if "call" in message:
            self._take_call(str(message["call"]), message)
        elif "answer" in message:
            future = self._asked.get(message["answer"])
            if future is not None and not future.done():
                if "error" in message:
                    future.set_exception(fault_of(message["error"]))
                else:
                    future.set_result(message.get("result"))
        elif "tell" in message:
            self._on_tell(str(message["tell"]), message.get("value"))

    def _take_call(self, name: str, message: Mapping[str, Any]) -> None:
        number = message.get("id")
        try:
            arguments = arguments_of(name, message.get("arguments"))
        except Unknown as fault:
            self._send({"answer": number, "error": fault_to_plain(fault)})
            return
        task = asyncio.create_task(self._answer(name, number, arguments))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, name: str, number: Any, arguments: tuple[Any, ...]) -> None:
        try:
            result = await self._on_call(name, arguments)
            self._send({"answer": number, "result": plain(result)})
        except Exception as error:  # the other side gets it as its own
            self._log.debug("A call of the other side failed: %s", name, exc_info=True)
            self._send({"answer": number, "error": fault_to_plain(error)})

    async def _stay_alive(self) -> None:
        while True:
            self._send({"alive": True})
            await asyncio.sleep(self._pace.alive_seconds)
