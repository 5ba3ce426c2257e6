"""The hub's client against a scripted broker: answers, broken connections, silence, cancellation anywhere."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gpuspawner.core.errors import (
    BadOption,
    BrokerUnavailable,
    LeaseConflict,
    NoCapacity,
    QueueTimeout,
    Refusal,
)
from gpuspawner.core.model import ContainerPatch, GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.protocol import client as module
from gpuspawner.protocol.client import BrokerClient
from gpuspawner.protocol.messages import QueuedEvent, event_to_line, lease_event, request_to_json
from gpuspawner.protocol.stream import WAITED_HEADER

from tests.soon import SOON_SECONDS, until

NOW = datetime(2025, 3, 1, tzinfo=UTC)
REQUEST = GpuRequest("a" * 32, "hub", "anna", "", "gpu", Want(1))
LEASE = Lease(
    "a" * 32, "hub", "anna", "", "gpu", LeaseState.RESERVED, Want(1), NOW, NOW, device_uuids=("GPU-1",)
)
PATCH = ContainerPatch(env={"A": "b"}, labels={"gpuspawner.lease": "a" * 32})
GRANTED = json.loads(event_to_line(lease_event(LEASE, PATCH)))
HEARTBEAT = {"event": "heartbeat"}
TIERS: dict[str, Any] = {"simulated": True, "driver": {"version": "580.1", "cuda": None}, "tiers": []}
STATUS: dict[str, Any] = {
    "simulated": True,
    "fault": "",
    "devices": [],
    "leases": [],
    "queue": [],
    "ended": [],
    "disks": [],
    "machines": [],
    "next": None,
}
QUEUED = {"event": "queued", "position": 2, "waiting": 3, "message": "2nd in line for a GPU"}

Answer = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request that the scripted broker got, and what it writes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.line, self.body = "", None
        self.waited_seconds = 0.0
        self.closed = asyncio.Event()

    async def read(self) -> None:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        self.line = head.split(" HTTP")[0]
        for line in head.splitlines():
            if line.startswith(f"{WAITED_HEADER}: "):
                self.waited_seconds = float(line.split(": ")[1])
        sizes = [
            line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length")
        ]
        size = int(sizes[0]) if sizes else 0
        self.body = json.loads(await self.reader.readexactly(size)) if size else None

    async def head(self, status: int = 200, length: int | None = None) -> None:
        size = "Connection: close" if length is None else f"Content-Length: {length}"
        self.writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{size}\r\n\r\n".encode())
        await self.writer.drain()

    async def send(self, *events: Any) -> None:
        for event in events:
            line = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
            self.writer.write(line)
        await self.writer.drain()

    async def wait_closed(self) -> None:
        await self.reader.read()
        self.closed.set()


class Broker:
    """Answers request after request with the next answer of the script; the last one repeats."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.script: list[Answer] = []
        self.exchanges: list[Exchange] = []
        self._server: asyncio.Server | None = None

    async def up(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for exchange in self.exchanges:
            exchange.writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = Exchange(reader, writer)
        try:
            await exchange.read()
            self.exchanges.append(exchange)
            answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            await answer(exchange)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            exchange.closed.set()
            writer.close()


async def grant(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.send(GRANTED)
    await exchange.wait_closed()


async def queue_then_grant(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.send(
        QUEUED, HEARTBEAT, {**QUEUED, "position": 1, "message": "1st in line for a GPU"}, GRANTED
    )
    await exchange.wait_closed()


async def queue_for_ever(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.send(QUEUED)
    await exchange.wait_closed()


async def say_nothing(exchange: Exchange) -> None:
    await exchange.wait_closed()


async def break_off(exchange: Exchange) -> None:
    exchange.writer.transport.abort()


async def queue_and_break_off(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.send(QUEUED)
    exchange.writer.transport.abort()


def refuse(status: int, body: Any) -> Answer:
    async def answer(exchange: Exchange) -> None:
        text = b"<html>" if body is None else json.dumps(body).encode() if body != "" else b""
        await exchange.head(status, len(text))
        await exchange.send(text)

    return answer


def stream(*events: Any) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(*events)
        await exchange.wait_closed()

    return answer


@pytest.fixture
async def broker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Broker]:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(module, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.05)
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        found = Broker(Path(folder) / "b.sock")
        await found.up()
        yield found
        await found.down()


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[BrokerClient]:
    found = BrokerClient(str(broker.path))
    yield found
    await found.close()


async def take(client: BrokerClient) -> list[tuple[int, int, str]]:
    """Acquires, and lets go; what was said about the queue."""
    said: list[tuple[int, int, str]] = []

    def note(place: QueuedEvent) -> None:
        said.append((place.position, place.waiting, place.message))

    async with client.acquire(REQUEST, note) as grant_:
        assert (grant_.lease, grant_.patch, grant_.lost) == (LEASE, PATCH, None)
    return said


async def test_a_lease_and_its_patch(broker: Broker, client: BrokerClient) -> None:
    broker.script = [grant]
    assert await take(client) == []
    await asyncio.wait_for(broker.exchanges[0].closed.wait(), SOON_SECONDS)
    assert [(each.line, each.body) for each in broker.exchanges] == [
        ("POST /leases", json.loads(request_to_json(REQUEST)))
    ]


async def test_the_places_in_the_queue(broker: Broker, client: BrokerClient) -> None:
    broker.script = [queue_then_grant]
    assert await take(client) == [(2, 3, "2nd in line for a GPU"), (1, 3, "1st in line for a GPU")]


async def test_a_request_says_how_long_it_has_been_made_already(broker: Broker, client: BrokerClient) -> None:
    async def hold_for_a_moment(exchange: Exchange) -> None:
        await exchange.head()
        await asyncio.sleep(0.2)
        exchange.writer.transport.abort()

    broker.script = [hold_for_a_moment, hold_for_a_moment, grant]
    await take(client)
    first, second, third = (exchange.waited_seconds for exchange in broker.exchanges)
    assert 0 <= first <= second - 0.2 <= third - 0.4 < SOON_SECONDS


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"reason": "bad_option", "message": "No."}, BadOption, "No."),
        (503, {"reason": "no_capacity", "message": "Two only."}, NoCapacity, "Two only."),
        (409, {"reason": "lease_conflict", "message": "Gone."}, LeaseConflict, "Gone."),
        (503, {"reason": "of a later version", "message": "New."}, BrokerUnavailable, "New."),
        (409, {}, LeaseConflict, "The lease is no longer valid: start the server again"),
        (500, None, BrokerUnavailable, module._SILENT),
        (500, ["odd"], BrokerUnavailable, module._SILENT),
    ],
)
async def test_refusals_come_back_as_they_are(
    broker: Broker, client: BrokerClient, status: int, body: Any, kind: type[Refusal], message: str
) -> None:
    broker.script = [refuse(status, body)]
    for call in (take(client), client.confirm("a" * 32), client.release("a" * 32), client.tiers()):
        with pytest.raises(Refusal) as refused:
            await call
        assert (type(refused.value), refused.value.message) == (kind, message)


async def test_a_refusal_ends_the_stream(broker: Broker, client: BrokerClient) -> None:
    broker.script = [stream(QUEUED, {"event": "refused", "reason": "queue_timeout", "message": "Too long."})]
    with pytest.raises(QueueTimeout, match=r"^Too long\.$"):
        await take(client)


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"{}\n", b'{"event": "lease"}\n', b"[1]\n", b'{"event":"queued"}\n']
)
async def test_what_cannot_be_read_is_a_sentence(broker: Broker, client: BrokerClient, line: bytes) -> None:
    broker.script = [stream(line)]
    with pytest.raises(BrokerUnavailable, match="must run the same version"):
        await take(client)


async def test_events_of_a_later_version_are_passed_over(broker: Broker, client: BrokerClient) -> None:
    broker.script = [stream({"event": "estimate", "seconds": 5}, GRANTED)]
    assert await take(client) == []


async def test_no_broker_is_a_sentence_at_once(broker: Broker, client: BrokerClient) -> None:
    await broker.down()
    for call in (take(client), client.confirm("a" * 32), client.release("a" * 32), client.status()):
        started = asyncio.get_running_loop().time()
        with pytest.raises(BrokerUnavailable) as refused:
            await call
        assert refused.value.message == module.UNAVAILABLE
        assert asyncio.get_running_loop().time() - started < 1


async def test_a_broker_that_hangs_is_a_sentence(
    broker: Broker, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    broker.script = [say_nothing]
    for call in (take(client), client.confirm("a" * 32), client.status()):
        with pytest.raises(BrokerUnavailable) as refused:
            await call
        assert refused.value.message == module._SILENT


async def test_a_hub_that_is_busy_itself_gets_its_lease(
    broker: Broker, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 users click at once, and one turn of the hub's loop takes longer than the limits."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)
    broker.script = [grant, refuse(204, "")]

    async def busy() -> None:
        while True:
            time.sleep(0.06)
            await asyncio.sleep(0)

    other = asyncio.create_task(busy())
    try:
        assert await take(client) == []
        await client.confirm("a" * 32)
    finally:
        other.cancel()


async def test_silence_in_the_stream_is_a_broken_connection(
    broker: Broker, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 1.0)
    broker.script = [queue_for_ever, grant]
    assert await take(client) == [(2, 3, "2nd in line for a GPU")]


@pytest.mark.parametrize("broken", [break_off, queue_and_break_off])
async def test_a_broken_connection_asks_again_for_the_same_lease(
    broker: Broker, client: BrokerClient, broken: Answer
) -> None:
    broker.script = [broken, broken, grant]
    await take(client)
    assert [each.body["lease_id"] for each in broker.exchanges if each.body] == [REQUEST.lease_id] * 3


async def test_a_broker_that_stays_away_ends_the_wait(broker: Broker, client: BrokerClient) -> None:
    broker.script = [queue_for_ever]
    task = asyncio.create_task(take(client))
    while not broker.exchanges:
        await asyncio.sleep(0.01)
    await broker.down()
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(task, SOON_SECONDS)


async def test_the_hold_outlives_a_restart_of_the_broker(broker: Broker, client: BrokerClient) -> None:
    broker.script = [grant]
    async with client.acquire(REQUEST, lambda *_: None) as held:
        await broker.down()
        await broker.up()
        while len(broker.exchanges) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert held.lost is None
        assert not broker.exchanges[1].closed.is_set()
    await asyncio.wait_for(broker.exchanges[1].closed.wait(), SOON_SECONDS)


async def test_a_broker_that_starts_is_asked_less_and_less_often(
    client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand requests wait for it, and it needs the CPU."""
    pauses: list[float] = []
    tries = 0

    async def no_broker(request: Any, waited_seconds: float) -> Any:
        nonlocal tries
        tries += 1
        if tries > 6:
            raise LeaseConflict("enough")
        raise ConnectionRefusedError

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(module, "CONNECT_SECONDS", 60.0)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(client, "post_lease", no_broker)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    with pytest.raises(LeaseConflict):
        await take(client)
    assert pauses == [0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


async def test_a_hold_that_is_lost_says_why(broker: Broker, client: BrokerClient) -> None:
    ended = {"event": "refused", "reason": "lease_conflict", "message": "The lease has ended."}
    broker.script = [stream(GRANTED, ended)]
    async with client.acquire(REQUEST, lambda *_: None) as held:
        while held.lost is None:
            await asyncio.sleep(0.01)
        assert (type(held.lost), held.lost.message) == (LeaseConflict, "The lease has ended.")


@pytest.mark.parametrize("answer", [say_nothing, queue_for_ever, grant])
async def test_cancelling_anywhere_closes_the_connection(
    broker: Broker, client: BrokerClient, answer: Answer
) -> None:
    broker.script = [answer]

    async def hold() -> None:
        async with client.acquire(REQUEST, lambda *_: None):
            await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    while not broker.exchanges:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(broker.exchanges[0].closed.wait(), SOON_SECONDS)


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_after_any_turn_of_the_loop_closes_the_connection(
    broker: Broker, client: BrokerClient, turns: int
) -> None:
    broker.script = [queue_then_grant]
    task = asyncio.create_task(take(client))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.05)
    await until(lambda: all(each.closed.is_set() for each in broker.exchanges))


async def test_an_error_inside_the_hold_closes_it(broker: Broker, client: BrokerClient) -> None:
    broker.script = [grant]
    with pytest.raises(RuntimeError, match="docker"):
        async with client.acquire(REQUEST, lambda *_: None):
            raise RuntimeError("docker")
    await asyncio.wait_for(broker.exchanges[0].closed.wait(), SOON_SECONDS)


async def test_confirm_release_and_documents(broker: Broker, client: BrokerClient) -> None:
    broker.script = [
        refuse(204, ""),
        refuse(202, ""),
        refuse(200, TIERS),
        refuse(200, STATUS),
    ]
    await client.confirm("a" * 32)
    await client.release("a" * 32)
    assert await client.tiers() == TIERS
    assert await client.status() == STATUS
    assert [each.line for each in broker.exchanges] == [
        f"POST /leases/{'a' * 32}/confirm",
        f"DELETE /leases/{'a' * 32}",
        "GET /tiers",
        "GET /api/status?limit=1000",
    ]


@pytest.mark.parametrize("body", [[1], None, {}, {**TIERS, "more": 1}, {**TIERS, "simulated": "yes"}])
async def test_a_document_that_is_none_is_a_sentence(broker: Broker, client: BrokerClient, body: Any) -> None:
    broker.script = [refuse(200, body)]
    with pytest.raises(BrokerUnavailable):
        await client.tiers()


async def test_a_busy_hub_tries_more_than_once(
    broker: Broker, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when 500 connect at once, and the broker's backlog is full for a moment."""
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.01)
    broker.script = [grant]
    post = client.post_lease
    tries: list[Any] = []

    async def often_full(*asked: Any) -> Any:
        tries.append(asked)
        if len(tries) < 4:
            time.sleep(0.02)
            raise aiohttp.ClientConnectionError("full")
        return await post(*asked)

    monkeypatch.setattr(client, "post_lease", often_full)
    assert await take(client) == []
    assert len(tries) == 4


async def test_many_holds_at_once(
    broker: Broker, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 5.0)  # on a busy machine 150 of them take their time
    broker.script = [grant]
    async with asyncio.timeout(SOON_SECONDS):
        holds = [client.acquire(REQUEST, lambda *_: None) for _ in range(150)]
        await asyncio.gather(*(hold.__aenter__() for hold in holds))
        assert len(broker.exchanges) == 150
        await asyncio.gather(*(hold.__aexit__(None, None, None) for hold in holds))
