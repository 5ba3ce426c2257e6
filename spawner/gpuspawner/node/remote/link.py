"""One connection between broker and agent: calls with answers in both directions, and a sign of life.

Messages are JSON, one a line: {"call": name, "id": n, "arguments": [...]}, {"answer": n, "result": ...} or
with "error", {"tell": what, "value": ...} without an answer, {"alive": true} when there was nothing else to
say for a while. If the other side is silent for too long, the link has ended: a cut cable says nothing. What
is sent in one turn of the event loop goes out together: each write costs a TLS record and a system call,
more than the message itself. One timer looks at all that may take too long: with one for each message, a
hundred machines cost a broker more in timers than in messages.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from ...core.errors import DeviceFault
from ...core.units import utc_now
from .wire import Garbled, Unknown, arguments_of, fault_of, fault_to_plain, plain, result_of

MOST_BYTES = 16 << 20
"""The longest line. The readings of 64 GPUs with 30 containers each are under 1 MiB."""
_CHUNK_BYTES = 64 << 10
ALIVE_SECONDS = 5.25
"""A little more than the pause between two readings: an agent whose GPUs are read has nothing to add."""
SILENCE_SECONDS = 12.0
CALL_SECONDS = 60.0
"""Longest wait for an answer: an MPS daemon may be started for it."""
_TOGETHER_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class LinkPace:
    """After how long without a message it says that it lives, and when silence or a missing answer counts as
    the end."""

    alive_seconds: float = ALIVE_SECONDS
    silence_seconds: float = SILENCE_SECONDS
    call_seconds: float = CALL_SECONDS


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call without an answer so far. It gets none after `until`, by the loop's clock."""

    answer: asyncio.Future[Any]
    until: float

    def fail(self, why: str) -> None:
        """There is no answer, unless it has just come."""
        if not self.answer.done():
            self.answer.set_exception(DeviceFault(why))
            self.answer.exception()  # looked at: whoever asked may have gone


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
        self._asked: dict[int, _Asked] = {}
        """In the order in which it was asked."""
        self._answering: set[asyncio.Task[None]] = set()
        self._unsent: list[bytes] = []
        """The lines of this turn of the loop."""
        self._wrote_at = self._read_at = 0.0
        """When something was sent and when it was heard last, by the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self.ended = ""
        """Why it has ended; "" while it runs."""
        self.heard_at = utc_now()
        """When the other side was heard last."""

    async def run(self) -> None:
        """Reads and answers; returns when the connection has ended, for whatever reason."""
        self._read_at = asyncio.get_running_loop().time()
        self._look_after()
        try:
            async for line in self._lines():
                self._take(from_json(line))
            self.ended = self.ended or "the connection was closed"
        except ConnectionError:  # as by the kernel, for a process that was killed with something left to read
            self.ended = self.ended or "the connection was closed"
        except (OSError, ValueError) as error:  # also a line that is too long or no JSON
            self.ended = str(error) or type(error).__name__
        except Garbled as error:
            self.ended = f"a message can't be read: {error}"
        finally:
            self.ended = self.ended or "the link was closed"
            if self._timer is not None:
                self._timer.cancel()
            for task in self._answering:
                task.cancel()
            await asyncio.gather(*self._answering, return_exceptions=True)
            for asked in self._asked.values():
                asked.fail(self.ended)
            self._flush()
            self._writer.close()

    async def _lines(self) -> AsyncIterator[bytes]:
        """Whole lines. Raises ValueError for a line that is too long."""
        begun, loop = bytearray(), asyncio.get_running_loop()
        while chunk := await self._reader.read(_CHUNK_BYTES):
            self._read_at, self.heard_at = loop.time(), utc_now()
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                yield bytes(begun) + line
                begun.clear()
            begun += rest
            if len(begun) > MOST_BYTES:
                raise ValueError(f"a message is longer than {MOST_BYTES} bytes")

    def close(self) -> None:
        """Ends the link; `run` returns."""
        self._writer.transport.abort()

    async def call(self, name: str, *arguments: Any) -> Any:
        """The other side's answer. Raises what it raised, or DeviceFault if none came."""
        if self.ended:
            raise DeviceFault(self.ended)
        number, loop = next(self._ids), asyncio.get_running_loop()
        asked = self._asked[number] = _Asked(loop.create_future(), loop.time() + self._pace.call_seconds)
        try:
            self._send({"call": name, "id": number, "arguments": plain(arguments)})
            value = await asked.answer
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
        self._unsent.append(_line(message))

    def _flush(self) -> None:
        lines, self._unsent = self._unsent, []
        if lines and not self._writer.is_closing():
            self._wrote_at = asyncio.get_running_loop().time()
            self._writer.write(b"".join(lines))

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise Garbled("not an object")
        if "call" in message:
            self._take_call(str(message["call"]), message)
        elif "answer" in message:
            asked = self._asked.get(message["answer"])
            if asked is not None and not asked.answer.done():
                if "error" in message:
                    asked.answer.set_exception(fault_of(message["error"]))
                else:
                    asked.answer.set_result(message.get("result"))
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

    def _look_after(self) -> None:
        """Says that it lives where nothing else was said, and ends what takes too long; then again."""
        loop, pace = asyncio.get_running_loop(), self._pace
        now = loop.time()
        if now - self._wrote_at >= pace.alive_seconds:
            self._send({"alive": True})
            self._wrote_at = now
        if now - self._read_at >= pace.silence_seconds:
            self.ended = f"nothing was heard for {pace.silence_seconds:g} s"
            self.close()
            return
        due = min(self._wrote_at + pace.alive_seconds, self._read_at + pace.silence_seconds)
        for asked in tuple(self._asked.values()):
            if asked.until > now:
                due = min(due, asked.until)
                break
            asked.fail(f"no answer for {pace.call_seconds:g} s")
        self._timer = loop.call_at(_together(due), self._look_after)


def _line(message: dict[str, Any]) -> bytes:
    """As JSON. What isn't Unicode, as a file's name may be, becomes question marks: none can read it."""
    try:
        return to_json(message) + b"\n"
    except ValueError:
        return json.dumps(message, ensure_ascii=False).encode(errors="replace") + b"\n"


def _together(at: float) -> float:
    """A little later, at a moment that the timers of many links have in common: each moment of its own wakes
    a process that has nothing else to do."""
    return math.ceil(at / _TOGETHER_SECONDS) * _TOGETHER_SECONDS
