"""The broker's HTTP: parsing at the edge, the stream, the hold, the socket."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest
from aiohttp import StreamReader
from gpuspawner.broker.api import socket as api
from gpuspawner.broker.api.socket import MAX_BODY_BYTES, bind_socket
from gpuspawner.broker.decide.line.estimate import Estimate
from gpuspawner.broker.decide.line.queue import Place
from gpuspawner.broker.ledger import Ledger, PastSession
from gpuspawner.core.errors import BrokerUnavailable, ConfigError, LeaseConflict, QueueTimeout
from gpuspawner.core.model import ContainerPatch, DeviceHealth, Lease, LeaseState
from gpuspawner.core.want import Mode, Want
from gpuspawner.protocol.messages import QueuedEvent, request_to_json
from gpuspawner.protocol.stream import WAITED_HEADER

from tests.soon import SOON_SECONDS, until
from tests.unit.service_bench import HOUR, Bench, View, make_bench

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@pytest.fixture
async def bench(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async for found in make_bench(ledger, monkeypatch, queue_seconds=HOUR):
        yield found


async def raw(bench: Bench, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """One request without the client: status and JSON."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(bench.socket))) as session,
        session.request(method, "http://b" + path, data=body) as response,
    ):
        text = await response.text()
        return response.status, json.loads(text) if text else None


@asynccontextmanager
async def streaming(bench: Bench, headers: Mapping[str, str] = NO_HEADERS) -> AsyncIterator[StreamReader]:
    """The lines of the stream that ben's request gets, without the client."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(bench.socket))) as session,
        session.post(
            "http://b/leases", data=request_to_json(bench.request(2, "ben")), headers=headers
        ) as response,
    ):
        yield response.content


async def streamed(bench: Bench, headers: Mapping[str, str]) -> list[dict[str, Any]]:
    """All events of ben's request, when the broker has ended the stream; heartbeats are left out."""
    async with asyncio.timeout(SOON_SECONDS), streaming(bench, headers) as lines:
        events = [json.loads(line) for line in (await lines.read()).splitlines()]
    return [event for event in events if event["event"] != "heartbeat"]


async def test_a_lease_from_request_to_close(bench: Bench) -> None:
    request = bench.request(1)
    async with bench.client.acquire(request, lambda *_: None) as grant:
        assert grant.patch == ContainerPatch(
            env={"GPUSPAWNER_LEASE": request.lease_id}, labels={"gpuspawner.broker": "here"}
        )
        assert grant.lease.device_uuids == ("GPU-1",)
        assert bench.folders.written == {request.lease_id: grant.lease}
        await bench.client.confirm(request.lease_id)
        bench.service.on_event(bench.put(grant.lease))
        await bench.become(anna="running")
    await bench.client.release(request.lease_id)
    await bench.become()
    assert (bench.engine.boxes, bench.folders.written) == ({}, {})
    assert [(lease.id, lease.state) for lease in await bench.ledger.history()] == [
        (request.lease_id, "closed")
    ]


async def test_the_queue_moves_on(bench: Bench) -> None:
    said: list[tuple[int, int, str]] = []
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        second = bench.client.acquire(
            bench.request(2, "ben"), lambda place: said.append((place.position, place.waiting, place.message))
        )
        task = asyncio.create_task(second.__aenter__())
        await until(lambda: said)
    grant = await task
    assert (grant.lease.device_uuids, said) == (("GPU-1",), [(1, 1, "1st in line for a GPU")])
    await second.__aexit__(None, None, None)
    await bench.become()


async def test_asking_twice_is_one_lease(bench: Bench) -> None:
    request = bench.request(1)
    async with bench.client.acquire(request, lambda *_: None) as one:
        async with bench.client.acquire(request, lambda *_: None) as two:
            assert two == one
        await asyncio.sleep(0.05)
        assert bench.states() == {"anna": "reserved"}  # the first hold is still open
    await bench.become()
    with pytest.raises(LeaseConflict, match="This lease has ended"):
        await bench.client.acquire(request, lambda *_: None).__aenter__()


async def test_an_answer_is_a_hurry_until_it_has_come(bench: Bench) -> None:
    hurry = bench.allocator.waits.hurry

    def in_a_hurry() -> bool:
        naps = 0

        def nap(seconds: float) -> None:
            nonlocal naps
            naps += 1

        hurry.begin()  # so that the answer is a young one
        hurry.end()
        hurry.way(0.001, nap)()
        return naps > 0

    assert not in_a_hurry()
    write, seen = bench.folders.write, []

    async def slow_write(lease: Lease) -> None:
        seen.append(in_a_hurry())
        await write(lease)

    bench.folders.write = slow_write  # type: ignore[method-assign]
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        assert not in_a_hurry()  # who holds a lease waits for nothing
        async with streaming(bench, {}) as lines:
            assert json.loads(await lines.readline())["event"] == "queued"
            assert not in_a_hurry()
        for method, body, status in (("GET", None, 405), ("POST", b"{", 400), ("POST", b"{}", 400)):
            assert (await raw(bench, method, "/leases", body))[0] == status
        await until(lambda: not in_a_hurry())
    assert seen == [True]


async def test_somebody_elses_id_is_refused(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        with pytest.raises(LeaseConflict, match="belongs to another request"):
            await bench.client.acquire(bench.request(1, "eve"), lambda *_: None).__aenter__()
        assert bench.states() == {"anna": "reserved"}


async def test_confirm_needs_a_held_lease_in_use(bench: Bench) -> None:
    lease_id = bench.request(1).lease_id
    assert await raw(bench, "POST", f"/leases/{lease_id}/confirm") == (
        409,
        {"reason": "lease_conflict", "message": "The lease of this server has ended: start the server again"},
    )
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        assert await raw(bench, "POST", f"/leases/{lease_id}/confirm") == (204, None)
        await bench.allocator.begin_release(lease_id, "test")
        assert (await raw(bench, "POST", f"/leases/{lease_id}/confirm"))[0] == 409


async def test_a_release_of_nothing_is_done(bench: Bench) -> None:
    assert await raw(bench, "DELETE", f"/leases/{bench.request(1).lease_id}") == (202, None)


async def test_the_documents(bench: Bench) -> None:
    assert await raw(bench, "GET", "/tiers") == (200, {"tiers": []})
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(bench.socket))) as session,
        session.get("http://b/metrics") as response,
    ):
        assert (response.content_type, await response.text()) == ("text/plain", "up 1\n")


@pytest.mark.parametrize(
    ("method", "address", "body", "status", "reason"),
    [
        ("POST", "/leases", b"{", 400, "bad_option"),
        ("POST", "/leases", b"", 400, "bad_option"),
        ("POST", "/leases", b"[" * 5000, 400, "bad_option"),
        ("POST", "/leases", b"\xff\xfe", 400, "bad_option"),
        ("POST", "/leases", b"{}", 400, "bad_option"),
        ("GET", "/leases", None, 405, "bad_option"),
        ("GET", "/", None, 404, "bad_option"),
        ("POST", "/leases/../status/confirm", None, 404, "bad_option"),
        ("DELETE", "/leases/" + "A" * 32, None, 404, "bad_option"),
    ],
)
async def test_what_is_odd_is_refused(
    bench: Bench, method: str, address: str, body: bytes | None, status: int, reason: str
) -> None:
    answered, document = await raw(bench, method, address, body)
    assert (answered, document["reason"]) == (status, reason)
    assert bench.states() == {}


async def test_a_huge_body_is_not_read(bench: Bench) -> None:
    try:
        status = (await raw(bench, "POST", "/leases", b"x" * (MAX_BODY_BYTES + 1)))[0]
    except aiohttp.ClientError:
        status = 400  # closed while it was sent
    assert (status, bench.states()) == (400, {})


async def test_the_queue_times_out(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async for bench in make_bench(ledger, monkeypatch, queue_seconds=0.3):
        async with bench.client.acquire(bench.request(1), lambda *_: None):
            with pytest.raises(QueueTimeout, match="Choose CPU, or try again later"):
                await bench.client.acquire(bench.request(2, "ben"), lambda *_: None).__aenter__()
            await asyncio.sleep(0.4)
            assert bench.states() == {"anna": "reserved"}  # a lease has no such time
        assert bench.refusals("queue_timeout") == 1.0


async def test_a_stream_beats_as_long_as_it_is_open(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "HEARTBEAT_SECONDS", 0.05)
    async with asyncio.timeout(SOON_SECONDS), streaming(bench) as lines:
        events = [json.loads(await lines.readline())["event"] for _ in range(5)]
    assert sorted(events) == ["heartbeat"] * 4 + ["lease"]


@pytest.mark.parametrize("slow", ["open", "patch"])
async def test_a_stream_beats_whatever_the_broker_is_doing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """An old container that has to be removed first, a daemon that has to be started: no silence."""
    monkeypatch.setattr(api, "HEARTBEAT_SECONDS", 0.05)
    done, go_on = getattr(bench.service, slow), asyncio.Event()

    async def slowly(*arguments: Any) -> Any:
        await go_on.wait()
        return await done(*arguments)

    monkeypatch.setattr(bench.service, slow, slowly)
    async with asyncio.timeout(SOON_SECONDS), streaming(bench) as lines:
        first = [json.loads(await lines.readline())["event"] for _ in range(3)]
        go_on.set()
        while (event := json.loads(await lines.readline()))["event"] == "heartbeat":
            pass
    assert (first, event["event"]) == (["heartbeat"] * 3, "lease")


async def test_a_refusal_that_takes_long_comes_in_the_stream(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "HEARTBEAT_SECONDS", 0.05)

    async def refuse(request: Any) -> Any:
        await asyncio.sleep(0.3)
        raise BrokerUnavailable("Docker is still removing this server's previous container")

    monkeypatch.setattr(bench.service, "open", refuse)
    with pytest.raises(BrokerUnavailable, match="still removing this server's previous container"):
        await bench.client.acquire(bench.request(1), lambda *_: None).__aenter__()
    assert bench.refusals("broker_unavailable") == 1


@pytest.mark.parametrize(
    ("queue_seconds", "waited", "least"), [(0.5, "0", 0.5), (HOUR, "3599.5", 0.4), (HOUR, "7200", 0.0)]
)
async def test_the_queue_s_time_is_that_of_all_connections_whatever_the_wall_clock_says(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, queue_seconds: float, waited: str, least: float
) -> None:
    """A broker took the waiting lease from its ledger, and meanwhile somebody set the clock an hour back."""
    async for bench in make_bench(ledger, monkeypatch, queue_seconds):
        now = bench.service.now() - timedelta(hours=1)
        monkeypatch.setattr(bench.service, "now", lambda now=now: now)
        async with bench.client.acquire(bench.request(1), lambda *_: None):
            begun = time.monotonic()
            events = await streamed(bench, {WAITED_HEADER: waited})
            assert time.monotonic() - begun >= least
            assert events[-1]["event"] == "refused"
        assert bench.refusals("queue_timeout") == 1


@pytest.mark.parametrize("waited", ["-1", "nan", "inf", "soon", ""])
async def test_a_time_that_is_no_time_is_refused(bench: Bench, waited: str) -> None:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(bench.socket))) as session,
        session.post(
            "http://b/leases", data=request_to_json(bench.request(1)), headers={WAITED_HEADER: waited}
        ) as response,
    ):
        assert (response.status, (await response.json())["reason"]) == (400, "bad_option")
    assert bench.states() == {}


SLICE = Want(1, mode=Mode.SLICE, memory_bytes=8 << 30)


@pytest.mark.parametrize(
    ("place", "want", "sentence"),
    [
        (Place(1, 1), Want(1), "1st in line for a GPU"),
        (Place(22, 30), Want(1), "22nd in line for a GPU"),
        (Place(3, 3), Want(2), "3rd in line for 2 GPUs"),
        (Place(2, 3), SLICE, "2nd in line for an 8.0 GiB slice"),
        (Place(2, 3), Want(1, mode=Mode.SLICE), "2nd in line for a slice"),
        (Place(2, 3), Want(2, mode=Mode.MIG), "2nd in line for 2 MIG instances"),
        (
            Place(2, 3),
            Want(1, node="b"),
            "2nd in line for a GPU. Your files are on the machine b: it starts there",
        ),
    ],
)
def test_the_place_in_words(place: Place, want: Want, sentence: str) -> None:
    assert api.wait_message(place, want, None) == sentence
    for word in ("GPU", "MIG instance", "slice"):
        assert word not in sentence or "simulated" in api.wait_message(place, want, None, simulated=True)


def local(hour: int, minute: int, day: int = 2) -> float:
    """Seconds since 1970 of a time in March 2026 on the clock of this machine."""
    return datetime(2026, 3, day, hour, minute).astimezone().timestamp()


@pytest.mark.parametrize(
    ("earliest", "latest", "endings", "likely"),
    [
        (local(11, 35), local(12, 10) + 20, 2, "between 11:35 and 12:10 ZONE, when two sessions have ended"),
        (local(11, 35), local(11, 35) + 20, 1, "about 11:35 ZONE, when one session has ended"),
        (
            local(22, 0),
            local(1, 30, 3),
            12,
            "between Mon 22:00 and Tue 01:30 ZONE, when 12 sessions have ended",
        ),
        (local(11, 35), local(12, 10), 0, "between 11:35 and 12:10 ZONE"),
    ],
)
def test_the_likely_wait_in_words(earliest: float, latest: float, endings: int, likely: str) -> None:
    wait = Estimate(earliest, latest, endings, earliest, 60.0, 60.0)
    zone = datetime(2026, 3, 2, 12).astimezone().tzname() or ""
    expected = f"3rd of 7 for an 8.0 GiB slice: likely {likely.replace('ZONE', zone)}"
    assert api.wait_message(Place(3, 7), SLICE, wait) == expected
    event = api.queued_event(Place(3, 7), expected, wait)
    assert (event.earliest_at, event.latest_at, event.sessions_before) == (
        datetime.fromtimestamp(earliest, UTC),
        datetime.fromtimestamp(latest, UTC),
        endings,
    )


async def test_the_likely_wait_is_told_and_changes(bench: Bench) -> None:
    """Three sessions of this tier took an hour: who waits is told when, over the same stream."""
    said: list[str] = []
    ends: list[datetime | None] = []
    began = datetime.now(UTC)

    def hear(place: QueuedEvent) -> None:
        said.append(place.message)
        ends.append(place.ends_at)

    async with bench.client.acquire(bench.request(1), lambda *_: None):
        ben = bench.client.acquire(bench.request(2, "ben"), hear)
        task = asyncio.create_task(ben.__aenter__())
        await bench.become(anna="reserved", ben="waiting")
        await until(lambda: said)
        await bench.allocator.waits.look()
        assert bench.allocator.waits.of(bench.request(2).lease_id) is None
        lease = bench.allocator.lease(bench.request(1).lease_id)
        assert lease is not None
        closed = replace(lease, state=LeaseState.CLOSED)
        past = PastSession(closed, lease.since - timedelta(hours=2), lease.since, 3600.0)
        bench.allocator.waits.learn_past([past] * 3)
        await bench.allocator.waits.look()
        await until(lambda: len(said) >= 2)
    await task
    await ben.__aexit__(None, None, None)
    assert said[0] == "1st in line for a GPU"
    assert said[1].startswith("1st of 1 for a GPU: likely ")
    assert said[1].endswith(", when one session has ended")
    left = [at - began for at in ends if at is not None]
    assert len(left) == len(said)
    assert all(HOUR - 1 <= each.total_seconds() < HOUR + SOON_SECONDS for each in left)


async def test_cancelling_gives_the_place_back(bench: Bench) -> None:
    said: list[int] = []
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        ben = asyncio.create_task(bench.client.acquire(bench.request(2, "ben"), lambda *_: None).__aenter__())
        await bench.become(anna="reserved", ben="waiting")
        cleo = bench.client.acquire(bench.request(3, "cleo"), lambda place: said.append(place.position))
        waiting = asyncio.create_task(cleo.__aenter__())
        await until(lambda: said == [2])
        ben.cancel()
        await until(lambda: said == [2, 1])
        assert bench.states() == {"anna": "reserved", "cleo": "waiting"}
    await waiting
    await cleo.__aexit__(None, None, None)


def test_a_tier_may_have_a_queue_timeout_of_its_own(bench: Bench) -> None:
    site = api.Site(bench.service, View(), bench.metrics, 900.0, logging.getLogger(), False, {"big": 3600.0})
    assert (site.timeout_of("gpu"), site.timeout_of("big")) == (900.0, 3600.0)


@pytest.mark.parametrize(
    ("seconds", "count", "sentence"),
    [
        (900, 1, "No GPU became free in 15 minutes: all are in use. Choose CPU, or try again later."),
        (90, 1, "No GPU became free in 90 seconds: all are in use. Choose CPU, or try again later."),
        (
            900,
            2,
            "Not enough GPUs (you asked for 2) became free in 15 minutes: all are in use. "
            "Choose CPU, or try again later.",
        ),
    ],
)
def test_the_end_of_the_wait_in_words(seconds: float, count: int, sentence: str) -> None:
    assert api.timeout_message(seconds, count) == sentence


LOST_AT = datetime(2025, 3, 1, 10, 21, tzinfo=UTC)
LOST = DeviceHealth("GPU-1", False, "XID 79", since=LOST_AT)
WHY = (
    "You asked for a GPU, but no matching GPU is in service now."
    f" Simulated GPU GPU-1 has been out of service since {LOST_AT.astimezone():%Y-%m-%d %H:%M %Z}: XID 79."
)


async def test_who_waits_for_a_withdrawn_device_is_told(bench: Bench) -> None:
    said: list[str] = []
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        ben = bench.client.acquire(bench.request(2, "ben"), lambda place: said.append(place.message))
        task = asyncio.create_task(ben.__aenter__())
        await until(lambda: said)
        await bench.service.set_health(LOST)
        await until(lambda: len(said) >= 2)
        task.cancel()
        await asyncio.wait({task})
    assert said == ["1st in line for a GPU", WHY]


async def test_the_end_of_the_wait_for_a_withdrawn_device_says_why(bench: Bench) -> None:
    """The client has waited for longer than the queue's time, over earlier connections."""
    await bench.service.set_health(LOST)
    queued, refused = await streamed(bench, {WAITED_HEADER: str(2 * HOUR)})
    assert (queued["event"], queued["message"]) == ("queued", WHY)
    assert refused["message"] == (
        f"No GPU became free in 60 minutes. {WHY} Choose another tier or CPU, or try again later."
    )


def test_a_dead_brokers_socket_is_replaced(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        path = Path(folder) / "b.sock"
        bind_socket(str(path)).close()
        with bind_socket(str(path)) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(ConfigError, match="Another broker answers on"):
                bind_socket(str(path))
            assert listener.fileno() > 0


@pytest.mark.parametrize("name", ["no/folder/b.sock", "x" * 108])
def test_a_socket_that_cannot_be_made_names_the_setting(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.GpuSite\.socket_path"):
        bind_socket(str(tmp_path / name))


def test_a_file_in_the_sockets_place_is_kept(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        path = Path(folder) / "b.sock"
        path.write_text("mine")
        with pytest.raises(ConfigError, match="not a socket"):
            bind_socket(str(path))
        assert path.read_text() == "mine"
