"""The hub's access to Docker: only a 404 means "gone", errors are EngineFault, and the sockets are few."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub import docker as module
from gpuspawner.hub.pulls import Cancel, Event

from tests.soon import SOON_SECONDS
from tests.unit.fake_docker import ScriptedDocker


async def test_a_container_is_there_gone_or_unknown() -> None:
    answers = [{"Id": "a"}, EngineFault("none", 404), EngineFault("oops", 500), EngineFault("silence")]
    docker = ScriptedDocker({"inspect_container": answers})
    assert await docker.find_container("x") == {"Id": "a"}
    assert await docker.find_container("x") is None
    for _ in range(2):
        with pytest.raises(EngineFault):
            await docker.find_container("x")


async def test_a_removal_ends_when_docker_says_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    busy = EngineFault("busy", 409)
    docker = ScriptedDocker({"remove_container": [busy, busy, EngineFault("none", 404)]})
    await docker.remove_container("x")
    assert docker.calls == ["remove_container"] * 3
    await ScriptedDocker({"remove_container": [None]}).remove_container("x")
    with pytest.raises(EngineFault, match="oops"):
        await ScriptedDocker({"remove_container": [EngineFault("oops", 500)]}).remove_container("x")
    monkeypatch.setattr(module, "GONE_SECONDS", -1)
    with pytest.raises(EngineFault, match="busy"):
        await ScriptedDocker({"remove_container": [busy]}).remove_container("x")


async def test_stopping_what_is_gone_is_no_error() -> None:
    docker = ScriptedDocker({"stop": [EngineFault("none", 404), EngineFault("oops", 500)]})
    await docker.stop_container("x", 1)
    with pytest.raises(EngineFault, match="oops"):
        await docker.stop_container("x", 1)


@pytest.mark.parametrize(
    ("raw", "tail"),
    [
        (b"one\n\n  two tok \n", "one\ntwo ***"),
        (b"\xff" * 2, "��"),
        (b"y" * 1000, "y" * 600),
        (b"", ""),
        (EngineFault("gone", 404), ""),
    ],
)
async def test_the_last_log_lines(raw: Any, tail: str) -> None:
    assert await ScriptedDocker({"logs": [raw]}).log_tail("x", "tok") == tail


# ---- sockets


class UnixDocker:
    """Docker's API on a unix socket: answers anything, keeps connections open, and counts them."""

    def __init__(self, path: Path) -> None:
        self.path, self.open, self.most, self.requests = path, 0, 0, 0
        self.pause_seconds = 0.0
        self.down = False
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.close()
            return
        self.open += 1
        self.most = max(self.most, self.open)
        self._writers.add(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.requests += 1
                await asyncio.sleep(self.pause_seconds)
                address = head.split()[1]
                known = b'{"Id": "1", "Config": {"Tty": true}}'
                body = b'{"ApiVersion": "1.41"}' if address == "/version" else known
                kind = b"Content-Type: application/json\r\n"
                length = b"Content-Length: %d\r\n\r\n" % len(body)
                writer.write(b"HTTP/1.1 200 OK\r\n" + kind + length + body)
        self.open -= 1
        self._writers.discard(writer)
        writer.close()

    def close_all(self) -> None:
        """As a Docker Engine that is restarted."""
        for writer in self._writers:
            writer.close()


@pytest.fixture
async def unix_docker() -> AsyncIterator[UnixDocker]:
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        found = UnixDocker(Path(folder) / "d.sock")
        server = await asyncio.start_unix_server(found.serve, str(found.path))
        yield found
        server.close()
        found.close_all()
        await asyncio.sleep(0.05)


@pytest.fixture
async def engine(unix_docker: UnixDocker) -> AsyncIterator[module.DockerEngine]:
    found = module.DockerEngine({"base_url": f"unix://{unix_docker.path}"})
    yield found
    await asyncio.to_thread(found.close)


def open_sockets() -> int:
    """Sockets that this process holds."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


async def test_three_hundred_starts_leave_few_sockets(
    unix_docker: UnixDocker, engine: module.DockerEngine
) -> None:
    """Each start asks for addresses of its own. docker-py keeps 25 pools in each client."""
    unix_docker.pause_seconds = 0.01
    before = open_sockets()

    async def start(number: int) -> None:
        name = f"lab-{number}"
        await engine.find_image(f"image-{number}")
        await engine.find_container(name)
        await engine.call("start", name)
        await engine.log_tail(name)
        await engine.stop_container(name, 1)

    await asyncio.gather(*(start(number) for number in range(300)))
    assert unix_docker.requests == 300 * 6 + 1  # a log takes two; the version is asked for once
    assert unix_docker.most <= 2 * module.THREADS + 1  # that of the version is closed
    # Both ends are in this process.
    assert open_sockets() - before == 2 * unix_docker.open <= 4 * module.THREADS
    await asyncio.gather(*(engine.find_container(f"lab-{number}") for number in range(300)))
    assert unix_docker.most <= 2 * module.THREADS + 1


async def test_a_docker_that_was_restarted_is_reached_again(
    unix_docker: UnixDocker, engine: module.DockerEngine
) -> None:
    await asyncio.gather(*(engine.find_container(str(number)) for number in range(20)))
    unix_docker.close_all()
    await asyncio.sleep(0.05)
    found = await asyncio.gather(*(engine.find_container(str(number)) for number in range(20)))
    assert all(found)


async def test_methods_have_their_own_time_limits(
    unix_docker: UnixDocker, engine: module.DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", {"inspect_container": 0.2})
    await engine.find_image("lab:1")
    unix_docker.pause_seconds = 0.5
    slow, quick = await asyncio.gather(
        engine.find_image("lab:1"), engine.find_container("lab"), return_exceptions=True
    )
    assert isinstance(slow, dict)
    assert isinstance(quick, EngineFault)
    assert (quick.status, "timed out" in str(quick).lower()) == (None, True)


async def test_a_docker_that_isnt_there_is_a_fault_until_it_comes(
    unix_docker: UnixDocker, engine: module.DockerEngine
) -> None:
    unix_docker.down = True
    with pytest.raises(EngineFault) as fault:
        await engine.find_container("lab")
    assert fault.value.status is None
    unix_docker.down = False
    assert await engine.find_container("lab") is not None


async def test_a_pull_that_is_told_to_stop_ends_though_nothing_comes() -> None:
    """Docker sent a first line, and then is silent: closing the connection must wake the thread."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            body = b'{"ApiVersion": "1.41"}'
            length = b"Content-Length: %d\r\n\r\n" % len(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + length + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line = b'{"status": "Downloading", "id": "a"}\r\n'
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(line), line))
        closed.set_result(await reader.read())
        writer.close()

    closed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    events: list[Event] = []
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        server = await asyncio.start_unix_server(serve, f"{folder}/d.sock")
        engine, cancel = module.DockerEngine({"base_url": f"unix://{folder}/d.sock"}), Cancel()
        pulling = asyncio.create_task(
            asyncio.to_thread(engine.pull_here, "lab:1", events.append, cancel, 60.0)
        )
        while not events:
            await asyncio.sleep(0.01)
        cancel.set()
        with pytest.raises(EngineFault):
            await asyncio.wait_for(pulling, SOON_SECONDS)
        assert await asyncio.wait_for(closed, SOON_SECONDS) == b""
        server.close()
        await asyncio.to_thread(engine.close)
