"""What the guard did while the broker was away is told once, whatever breaks; over a plain connection."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.node.api import GuardEvent, NodeEvent, NodeFacts, Offence, Readings, Usage
from gpuspawner.node.local import LocalNode
from gpuspawner.node.remote import wire
from gpuspawner.node.remote.agent import Agent
from gpuspawner.node.remote.link import LinkPace
from gpuspawner.node.remote.remote_node import RemoteNode

from tests.unit.node.agents import until

LOG = logging.getLogger("test")
PACE = LinkPace(0.05, 0.5, 1.0)


class QuietNode:
    """A node whose events a test makes; the calls here are those that a connection makes by itself."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[NodeEvent | None] = asyncio.Queue()

    async def start(self) -> NodeFacts:
        return NodeFacts("here")

    async def health(self) -> tuple[Any, ...]:
        return ()

    async def events(self) -> AsyncIterator[NodeEvent]:
        while (event := await self.news.get()) is not None:
            yield event

    async def close(self) -> None:
        self.news.put_nowait(None)


def ended(pid: int) -> GuardEvent:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return GuardEvent(at, Offence.MEMORY, "c", "l", "GPU-1", pid, "python", 9, 8, 1.0, "over")


class Bench:
    """An agent whose node is quiet, and what stands for it in the broker."""

    def __init__(self, folder: Path) -> None:
        self.here, self.there = QuietNode(), RemoteNode("b", LOG, PACE)
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []
        node: Any = self.here
        self.agent = Agent("b", node, self.connect, folder, LOG, PACE)
        self.told: list[NodeEvent] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        hello = wire.read(wire.Hello, json.loads(await reader.readline()))
        await self.there.serve((reader, writer), hello)

    async def read(self) -> None:
        async for event in self.there.events():
            self.told.append(event)

    def pids(self) -> list[int]:
        return [event.pid for event in self.told if isinstance(event, GuardEvent)]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    server = await asyncio.start_server(found.meet, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    tasks = [asyncio.create_task(found.agent.run(0.05)), asyncio.create_task(found.read())]
    yield found
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    await found.there.close()
    await tasks[1]
    server.close()


async def test_each_end_is_told_once_over_broken_connections(bench: Bench) -> None:
    await until(lambda: not bench.there.facts.away)
    for number in range(30):
        bench.here.news.put_nowait(ended(number))
        if number % 7 == 3:
            await asyncio.sleep(0.01)
            bench.writers[-1].transport.abort()
        if number % 11 == 5:
            await asyncio.sleep(0.15)
    await until(lambda: bench.pids() == list(range(30)))
    await asyncio.sleep(0.2)
    assert bench.pids() == list(range(30))


async def test_the_last_readings_come_with_the_connection(bench: Bench) -> None:
    await until(lambda: not bench.there.facts.away)
    bench.writers[-1].transport.abort()
    await until(lambda: bool(bench.there.facts.away))
    first, last = Readings({"GPU-1": Usage(1)}), Readings({"GPU-1": Usage(2)})
    bench.told.clear()
    bench.here.news.put_nowait(first)
    bench.here.news.put_nowait(last)
    await until(lambda: last in bench.told)
    assert [event for event in bench.told if isinstance(event, Readings)] == [last]


async def test_a_message_of_another_form_ends_the_link_and_it_begins_anew(bench: Bench) -> None:
    await until(lambda: not bench.there.facts.away)
    bench.writers[-1].write(b'{"call": "format_disk", "id": 1, "arguments": []}\n')
    await until(lambda: len(bench.writers) == 2)
    await until(lambda: not bench.there.facts.away)


def test_the_agent_drives_what_the_broker_drives() -> None:
    """Every call of the wire is a method of the local node, but for those of its hands."""
    calls = {name for name in wire.CALLS if not name.startswith("turn_")}
    assert [name for name in sorted(calls) if not hasattr(LocalNode, name)] == []
