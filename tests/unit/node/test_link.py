"""A link says that it lives only where it says nothing else; silence and missing answers end what waits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.node.remote.link import Link, LinkPace

from tests.soon import until

LOG = logging.getLogger("link")
PACE = LinkPace(alive_seconds=0.5, silence_seconds=2.0, call_seconds=0.5)


class Other:
    """The other side, which answers what it is told to."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.writer: asyncio.StreamWriter
        self.answers = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with suppress(ConnectionError):  # the link was closed in the middle
            async for line in reader:
                message = json.loads(line)
                self.heard.append(message)
                if "call" in message and self.answers:
                    self.say(answer=message["id"], result=[])

    def say(self, **message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")

    @property
    def alive_count(self) -> int:
        return sum("alive" in each for each in self.heard)


@asynccontextmanager
async def linked(pace: LinkPace = PACE) -> AsyncIterator[tuple[Link, Other]]:
    async def no_calls(name: str, arguments: tuple[Any, ...]) -> Any:
        raise DeviceFault("nothing is answered here")

    other = Other()
    server = await asyncio.start_server(other.serve, "127.0.0.1", 0)
    streams = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    link = Link(streams, no_calls, lambda what, value: None, LOG, pace)
    running = asyncio.create_task(link.run())
    await until(lambda: other.heard)
    try:
        yield link, other
    finally:
        link.close()
        await running
        other.writer.close()
        server.close()
        await asyncio.sleep(0.05)  # sockets close in the next turns of the loop


async def test_who_says_something_else_says_no_alive() -> None:
    async with linked() as (link, other):
        assert other.heard == [{"alive": True}]  # at once
        for _ in range(15):
            await link.call("health")
            await asyncio.sleep(0.1)
        assert other.alive_count == 1
        other.heard.clear()
        await until(lambda: other.alive_count)
        assert not link.ended  # what was answered was a sign of life, too


async def test_silence_ends_it_with_all_that_waits() -> None:
    async with linked() as (link, other):
        other.answers = False
        asked = asyncio.create_task(link.call("health"))
        await until(lambda: any("call" in each for each in other.heard))
        for _ in range(3):
            other.say(alive=True)
            await asyncio.sleep(0.1)
        with pytest.raises(DeviceFault, match=r"^no answer for 0\.5 s$"):
            await asked
        assert not link.ended
        await until(lambda: link.ended)
        assert link.ended == "nothing was heard for 2 s"
        with pytest.raises(DeviceFault, match="nothing was heard for 2 s"):
            await link.call("health")


async def test_a_call_waits_no_longer_than_its_link() -> None:
    async with linked(LinkPace(0.5, 30.0, 30.0)) as (link, other):
        other.answers = False
        asked = asyncio.create_task(link.call("health"))
        await until(lambda: any("call" in each for each in other.heard))
        link.close()
        with pytest.raises(DeviceFault, match="the connection was closed"):
            await asked


async def test_an_answer_that_comes_too_late_is_dropped() -> None:
    async with linked(LinkPace(0.25, 30.0, 0.3)) as (link, other):
        other.answers = False
        with pytest.raises(DeviceFault, match=r"^no answer for 0\.3 s$"):
            await link.call("health")
        number = next(each["id"] for each in other.heard if "call" in each)
        other.say(answer=number, result=[])
        other.answers = True
        assert await link.call("health") == ()


async def test_a_name_that_is_not_unicode_breaks_nothing() -> None:
    """A file's name is bytes; Python keeps those that aren't UTF-8 as surrogates."""
    async with linked() as (link, other):
        link.tell("event", {"\udc80key": "a\udcffb", "kept": "Grüße"})
        await until(lambda: any("tell" in each for each in other.heard))
        [told] = [each["value"] for each in other.heard if "tell" in each]
        assert told == {"?key": "a?b", "kept": "Grüße"}
        assert not link.ended
