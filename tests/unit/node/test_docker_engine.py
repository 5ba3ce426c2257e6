"""Docker's answers as values, and every failure as EngineFault: without an engine, against a scripted one."""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.core.labels import ContainerLabels
from gpuspawner.node import docker_engine as module
from gpuspawner.node.docker_engine import DockerEngine
from gpuspawner.node.engine import Container, ContainerEvent, EventsConnected

from tests.soon import SOON_SECONDS

LISTED = {
    "Id": "c1" * 32,
    "Names": ["/jupyter-anna"],
    "State": "running",
    "Created": 1740830400,
    "Labels": {
        "gpuspawner.lease": "a" * 32,
        "gpuspawner.broker": "/var/lib/gpuspawner",
        "gpuspawner.hub": "hub",
        "gpuspawner.user": "anna",
        "gpuspawner.server": "",
        "gpuspawner.tier": "pair",
        "gpuspawner.devices": "GPU-1,GPU-2",
    },
}
CONTAINER = Container(
    id="c1" * 32, state="running", name="jupyter-anna", created_unix_seconds=1740830400,
    labels=ContainerLabels(
        "a" * 32, broker="/var/lib/gpuspawner", hub="hub", user="anna", tier="pair",
        device_uuids=("GPU-1", "GPU-2"),
    ),
)  # fmt: skip

Answer = tuple[int, Any]


class Scripted(ThreadingUnixStreamServer):
    """An engine whose answers are what `answer` says for "GET /containers/json"."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.answer: Callable[[str], Answer] = lambda _: (200, [])
        self.requests: list[tuple[str, dict[str, list[str]]]] = []
        self.events: list[Any] = []
        self.silent = threading.Event()
        super().__init__(path, ScriptedHandler)


class ScriptedHandler(BaseHTTPRequestHandler):
    server: Scripted
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: object) -> None:
        pass

    def _do(self) -> None:
        url = urlsplit(self.path)
        path = url.path.removeprefix("/v1.41")
        if path == "/version":
            self._send(200, {"ApiVersion": "1.41", "Version": "20.10.24"})
            return
        self.server.requests.append((f"{self.command} {path}", parse_qs(url.query)))
        if path == "/events":
            self._stream()
            return
        status, body = self.server.answer(f"{self.command} {path}")
        if status == 0:
            self.close_connection = True
            self.server.silent.wait(5)
            return
        self._send(status, body)

    do_GET = do_POST = do_DELETE = _do

    def _send(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.server.events:
            data = json.dumps(event).encode() + b"\n"
            with suppress(OSError):
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.server.silent.wait(5)


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        path = str(Path(folder) / "d.sock")
        server = Scripted(path)
        thread = threading.Thread(target=lambda: server.serve_forever(0.02))
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield server
        server.silent.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
async def engine() -> AsyncIterator[DockerEngine]:
    found = DockerEngine(threads=1)
    yield found
    await found.close()


async def test_containers_are_listed_whatever_their_state(docker: Scripted, engine: DockerEngine) -> None:
    docker.answer = lambda _: (200, [LISTED])
    assert await engine.list() == (CONTAINER,)
    assert await engine.list("a" * 32) == (CONTAINER,)
    asked = [(call, query["all"], query["filters"]) for call, query in docker.requests]
    assert asked == [
        ("GET /containers/json", ["1"], ['{"label": ["gpuspawner.lease"]}']),
        ("GET /containers/json", ["1"], [f'{{"label": ["gpuspawner.lease={"a" * 32}"]}}']),
    ]


async def test_a_container_with_few_labels(docker: Scripted, engine: DockerEngine) -> None:
    docker.answer = lambda _: (200, [{"Id": "c1", "State": "dead", "Labels": {"gpuspawner.lease": "x"}}])
    assert await engine.list() == (Container("c1", ContainerLabels("x"), "dead"),)


@pytest.mark.parametrize(
    ("state", "alive"),
    [("created", False), ("running", True), ("paused", True), ("restarting", True), ("removing", False),
     ("exited", False), ("dead", False)],
)  # fmt: skip
def test_which_states_may_use_a_device(state: str, alive: bool) -> None:
    assert Container("c1", ContainerLabels("a"), state).alive is alive


@pytest.mark.parametrize("status", [204, 404, 409])
async def test_removing_what_is_gone_or_going_is_no_error(
    docker: Scripted, engine: DockerEngine, status: int
) -> None:
    docker.answer = lambda _: (status, None if status == 204 else {"message": "no"})
    await engine.remove("c1")
    await engine.stop("c1")
    assert docker.requests == [
        ("DELETE /containers/c1", {"v": ["True"], "link": ["False"], "force": ["True"]}),
        ("POST /containers/c1/stop", {"t": ["2"]}),
    ]


@pytest.mark.parametrize(
    ("state", "finished"),
    [
        ({"Running": False, "FinishedAt": "2025-03-01T12:00:00.123456789Z"},
         datetime(2025, 3, 1, 12, 0, 0, 123456, UTC)),
        ({"Running": False, "FinishedAt": "2025-03-01T13:00:00+01:00"},
         datetime(2025, 3, 1, 12, 0, tzinfo=UTC)),
        ({"Running": True, "FinishedAt": "2025-03-01T12:00:00Z"}, None),
        ({"Running": False, "FinishedAt": "0001-01-01T00:00:00Z"}, None),
        ({}, None),
    ],
)  # fmt: skip
async def test_when_a_container_stopped(
    docker: Scripted, engine: DockerEngine, state: dict[str, Any], finished: datetime | None
) -> None:
    docker.answer = lambda _: (200, {"State": state})
    assert await engine.finished_at("c1") == finished
    docker.answer = lambda _: (404, {"message": "no such container"})
    assert await engine.finished_at("c1") is None


async def test_the_engines_facts(docker: Scripted, engine: DockerEngine) -> None:
    docker.answer = lambda _: (200, {"Runtimes": {}})
    assert await engine.facts() == ({"Runtimes": {}}, {"ApiVersion": "1.41", "Version": "20.10.24"})


@pytest.mark.parametrize(
    "answer",
    [(500, {"message": "boom"}), (409, {"message": "busy"}), (200, b"<html>"), (200, [{"State": "running"}])],
)
async def test_what_goes_wrong_is_an_engine_fault(
    docker: Scripted, engine: DockerEngine, answer: Answer
) -> None:
    docker.answer = lambda _: answer
    with pytest.raises(EngineFault, match="Docker did not list containers"):
        await engine.list()


async def test_a_failed_removal_is_an_engine_fault(docker: Scripted, engine: DockerEngine) -> None:
    docker.answer = lambda _: (500, {"message": "device or resource busy"})
    with pytest.raises(EngineFault, match="device or resource busy"):
        await engine.remove("c1")


async def test_silence_is_an_engine_fault_and_blocks_no_loop(
    docker: Scripted, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIST_SECONDS", 1)
    docker.answer = lambda _: (0, None)
    task = asyncio.create_task(engine.list())
    await asyncio.sleep(0.1)
    assert not task.done()
    with pytest.raises(EngineFault, match="timed out"):
        await task


# docker-py 7.2 leaves a socket that could not connect to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_no_docker_is_an_engine_fault_until_it_is_there(
    docker: Scripted, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        with pytest.raises(EngineFault):
            await engine.list()
    assert await engine.list() == ()
    gc.collect()


async def test_events_begin_with_the_connection(docker: Scripted, engine: DockerEngine) -> None:
    attributes = LISTED["Labels"]
    docker.events = [
        {"Type": "container", "Action": "start", "Actor": {"ID": "c1", "Attributes": attributes}},
        {"Type": "container", "Action": "die", "Actor": {"ID": "c2", "Attributes": {}}},
        {"Type": "network", "Action": "connect", "Actor": {"ID": "n1", "Attributes": attributes}},
        {
            "Type": "container", "Action": "die",
            "Actor": {"ID": "c1", "Attributes": {**attributes, "exitCode": "137"}},
        },
    ]  # fmt: skip
    found: list[ContainerEvent | EventsConnected] = []
    engine.watch_events(found.append)
    async with asyncio.timeout(SOON_SECONDS):
        while len(found) < 3:
            await asyncio.sleep(0.01)
    assert found == [
        EventsConnected(),
        ContainerEvent("start", "c1", "a" * 32, "/var/lib/gpuspawner"),
        ContainerEvent("die", "c1", "a" * 32, "/var/lib/gpuspawner", exit_code=137),
    ]
    call, query = docker.requests[0]
    wanted = {
        "type": ["container"],
        "label": ["gpuspawner.lease"],
        "event": ["start", "die", "destroy", "oom"],
    }
    assert (call, json.loads(query["filters"][0])) == ("GET /events", wanted)


async def test_a_broken_event_stream_is_connected_again(
    docker: Scripted, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RECONNECT_SECONDS", 0.02)
    docker.silent.set()  # each stream ends at once
    found: list[ContainerEvent | EventsConnected] = []
    engine.watch_events(found.append)
    async with asyncio.timeout(SOON_SECONDS):
        while len(found) < 3:
            await asyncio.sleep(0.01)
    assert set(found) == {EventsConnected()}
