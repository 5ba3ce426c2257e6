"""What the guard did while the broker was away is told once, whatever breaks; over a plain connection."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault, Fault
from gpuspawner.core.labels import ContainerLabels
from gpuspawner.node.api import (
    DesiredState,
    GuardEvent,
    NodeEvent,
    NodeFacts,
    Offence,
    QuotaPlan,
    Readings,
    Usage,
    XidSeen,
)
from gpuspawner.node.engine import Container, ContainerEvent, EventsConnected
from gpuspawner.node.local import LocalNode
from gpuspawner.node.remote import wire
from gpuspawner.node.remote.agent import Agent, Hands
from gpuspawner.node.remote.link import LinkPace
from gpuspawner.node.remote.remote_node import RemoteNode

from tests.soon import until
from tests.unit.node.agents import StubHomes

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


class FakeDocker:
    """Docker with a container, whose events a test makes."""

    def __init__(self) -> None:
        self.sink: Callable[[ContainerEvent | EventsConnected], None] = lambda item: None
        self.fault = ""

    async def list(self, lease_id: str | None = None) -> tuple[Container, ...]:
        if self.fault:
            raise EngineFault(self.fault)
        return (Container("c1", ContainerLabels(str(lease_id)), "running"),)

    def watch_events(self, sink: Callable[[ContainerEvent | EventsConnected], None]) -> None:
        self.sink = sink


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
        self.docker = FakeDocker()
        docker: Any = self.docker
        self.agent = Agent("b", Hands(node, docker, StubHomes(), folder), self.connect, LOG, PACE)
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


async def test_with_many_machines_readings_go_out_less_often_but_news_at_once(bench: Bench) -> None:
    bench.there.set_apart(3600.0)
    await until(lambda: not bench.there.facts.away)
    bench.told.clear()
    used = [Readings({"GPU-1": Usage(number)}) for number in range(5)]
    xid = Readings(used[3].usage, xids={"GPU-1": (XidSeen(datetime(2026, 1, 1, tzinfo=UTC), 79),)})
    blind = Readings(used[3].usage, {"GPU-1": "no answer"}, xid.xids)
    for readings in (used[0], used[1], used[2], xid, blind, Readings({}, blind.blind, blind.xids)):
        bench.here.news.put_nowait(readings)
    await until(lambda: len(bench.told) == 4)
    assert bench.told == [used[0], xid, blind, Readings({}, blind.blind, blind.xids)]

    bench.there.set_apart(0.0)
    await bench.there.health()  # an answer: what was sent before it has come
    for readings in used:
        bench.here.news.put_nowait(readings)
    await until(lambda: bench.told[4:] == used)

    bench.there.set_apart(3600.0)
    await bench.there.health()
    bench.here.news.put_nowait(used[0])
    bench.writers[-1].transport.abort()  # whoever connects gets the last ones, however young
    await until(lambda: used[0] in bench.told[9:])


async def test_a_message_of_another_form_ends_the_link_and_it_begins_anew(bench: Bench) -> None:
    await until(lambda: not bench.there.facts.away)
    bench.writers[-1].write(b'{"call": "settle", "id": 1, "arguments": [1]}\n')
    await until(lambda: len(bench.writers) == 2)
    await until(lambda: not bench.there.facts.away)


async def test_what_a_broker_of_the_next_release_asks_is_answered_by_a_sentence(bench: Bench) -> None:
    await until(lambda: not bench.there.facts.away)
    ask: Any = bench.there._ask
    with pytest.raises(Fault, match=r"no call 'format_disk': install the same one everywhere"):
        await ask("format_disk")
    assert len(bench.writers) == 1  # the connection stays


async def test_docker_s_events_come_while_the_agent_is_taken_up(bench: Bench) -> None:
    labs = bench.there.labs()
    assert labs is not None
    seen: list[ContainerEvent | EventsConnected] = []
    labs.engine.watch_events(seen.append)
    await until(lambda: not bench.there.facts.away)
    start = ContainerEvent("start", "c1", "a" * 32, "/var/lib/gpuspawner", 1 << 30)

    def say_and_hear() -> bool:
        bench.docker.sink(EventsConnected())  # lost before the agent serves
        return EventsConnected() in seen

    await until(say_and_hear)
    bench.docker.sink(start)
    await until(lambda: seen[-1] == start)


async def test_docker_is_asked_through_the_agent(bench: Bench, tmp_path: Path) -> None:
    labs = bench.there.labs()
    assert labs is not None
    with pytest.raises(EngineFault, match="hasn't reported yet since the broker started"):
        await RemoteNode("c", LOG).labs().engine.list()  # type: ignore[union-attr]
    await until(lambda: not bench.there.facts.away)
    assert [each.id for each in await labs.engine.list("a" * 32)] == ["c1"]
    bench.docker.fault = "down"
    with pytest.raises(EngineFault, match=r"^down$"):
        await labs.engine.list()


async def test_the_folders_of_leases_are_the_agent_s(bench: Bench, tmp_path: Path) -> None:
    labs, lease_id, other = bench.there.labs(), "a" * 32, "b" * 32
    assert labs is not None
    await until(lambda: not bench.there.facts.away)
    assert bench.there.facts.lease_folders == str(tmp_path / "leases")
    await labs.folders.write(lease_id, {"notice": "hello"}, make=True)
    await labs.folders.write(other, {"notice": "hello"}, make=True)
    await labs.folders.write("c" * 32, {"turn": ""}, make=False)
    await labs.folders.keep_only([lease_id])
    found = {str(path.relative_to(tmp_path / "leases")) for path in (tmp_path / "leases").rglob("*")}
    assert found == {lease_id, f"{lease_id}/notice"}
    with pytest.raises(Fault, match="is not a lease id"):
        await labs.folders.write("../../etc", {"notice": ""}, make=True)
    await labs.folders.remove(lease_id)
    assert list((tmp_path / "leases").iterdir()) == []


@pytest.mark.parametrize(("version", "messages"), [(wire.WRITES_TOGETHER, 1), (wire.WRITES_TOGETHER - 1, 3)])
async def test_what_several_labs_read_goes_to_an_agent_as_it_knows_it(
    bench: Bench, tmp_path: Path, version: int, messages: int
) -> None:
    """Together, or to an agent of the release before one by one."""
    bench.there._version = version
    labs, ids = bench.there.labs(), ("a" * 32, "b" * 32)
    assert labs is not None
    await until(lambda: not bench.there.facts.away)
    bench.there._version = version
    for lease_id in ids:
        await labs.folders.write(lease_id, {"notice": ""}, make=True)
    link: Any = bench.there._link
    before = next(link._ids)
    await labs.folders.write_all({each: {"use": f"{each} 9 %"} for each in (*ids, "c" * 32)})
    assert next(link._ids) - before - 1 == messages
    found = {path.parent.name: path.read_text() for path in (tmp_path / "leases").rglob("use")}
    assert found == {each: f"{each} 9 %" for each in ids}  # the third has no folder, and gets none


STATES = tuple(
    DesiredState(frozenset(uuids), QuotaPlan((), frozenset(), frozenset(uuids)))
    for uuids in (("GPU-1",), ("GPU-1", "GPU-2"))
)


async def test_a_state_that_the_agent_holds_is_not_sent_again(bench: Bench) -> None:
    applied: list[DesiredState] = []

    async def apply(desired: DesiredState) -> None:
        applied.append(desired)

    bench.here.apply = apply  # type: ignore[attr-defined]
    await until(lambda: not bench.there.facts.away)
    first, second = STATES
    for desired in (first, first, second, second, first):
        await bench.there.apply(desired)
    assert applied == [first, second, first]
    bench.writers[-1].transport.abort()
    await until(lambda: len(bench.writers) == 2 and not bench.there.facts.away)
    assert applied[3:] == [first]  # an agent that connects gets it in any case
    await bench.there.apply(first)
    assert applied[4:] == []


async def test_of_states_that_are_sent_at_once_the_last_is_held(bench: Bench) -> None:
    """Also if the first takes the agent longer; otherwise it would be taken for the one that is held."""
    held: list[DesiredState] = []

    async def apply(desired: DesiredState) -> None:
        await asyncio.sleep(0.05 if desired == first else 0.0)
        held.append(desired)

    bench.here.apply = apply  # type: ignore[attr-defined]
    await until(lambda: not bench.there.facts.away)
    first, second = STATES
    await asyncio.gather(bench.there.apply(first), bench.there.apply(second))
    assert held == [first, second]
    await bench.there.apply(first)
    assert held[2:] == [first]


async def test_what_is_sent_in_one_turn_of_the_loop_is_one_write(bench: Bench) -> None:
    await until(lambda: not bench.there.facts.away)
    sent: list[bytes] = []
    link: Any = bench.there._link
    write, link._writer.write = link._writer.write, lambda data: (sent.append(data), write(data))
    asked = [bench.there.labs().engine.list(each * 32) for each in "abc"]  # type: ignore[union-attr]
    answers = await asyncio.gather(*asked)
    assert [each[0].lease_id for each in answers] == ["a" * 32, "b" * 32, "c" * 32]
    calls = [data for data in sent if b"docker_list" in data]
    assert [data.count(b"\n") for data in calls] == [3]


def test_the_agent_drives_what_the_broker_drives() -> None:
    """Every call of the wire is a method of the local node, but for those of its hands."""
    others = ("turn_", "docker_", "folder_", "home_", "check_")
    calls = {name for name in wire.CALLS if not name.startswith(others)}
    assert [name for name in sorted(calls) if not hasattr(LocalNode, name)] == []
