"""A real registry (Debian's `docker-registry`) on a free port, behind a wire that can be slow, stuck, cut."""

from __future__ import annotations

import asyncio
import io
import secrets
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
START_SECONDS = 15.0
_CHUNK = 32 * 1024


def free_port() -> int:
    """A TCP port of the loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Wire:
    """A TCP proxy on a loop and port of its own. Its attributes may be changed at any time."""

    def __init__(self, upstream: int) -> None:
        self.port = free_port()
        self.bytes_per_second: int | None = None
        self.stuck_after_bytes: int | None = None
        """So much of what the registry sends comes through on each connection, and then nothing more."""
        self.sent_bytes = 0
        """What the registry has sent to Docker, over all connections."""
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._thread.start()
        self.mend()

    def mend(self) -> None:
        """The registry answers (again), at full speed."""
        self.bytes_per_second = self.stuck_after_bytes = None

        async def listen() -> None:
            if self._server is None:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(5)

    def cut(self) -> None:
        """Nobody listens, and every connection breaks."""

        async def close() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            for writer in list(self._open):
                writer.transport.abort()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(5)

    def close(self) -> None:
        """Ends it and its thread."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._open |= {writer, up_writer}
            try:
                await asyncio.gather(
                    self._copy(reader, up_writer, limited=False), self._copy(up_reader, writer, limited=True)
                )
            finally:
                self._open -= {writer, up_writer}
                up_writer.transport.abort()
        writer.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool
    ) -> None:
        sent = 0
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                while limited and self.stuck_after_bytes is not None and sent >= self.stuck_after_bytes:
                    await asyncio.sleep(0.05)
                writer.write(data)
                await writer.drain()
                sent += len(data)
                self.sent_bytes += len(data) if limited else 0
                if limited and self.bytes_per_second:
                    await asyncio.sleep(len(data) / self.bytes_per_second)
        if writer.can_write_eof():
            with suppress(OSError, RuntimeError):
                writer.write_eof()


class Registry:
    """Where images are pushed to and pulled from. `wire` is what lies between it and Docker."""

    def __init__(self, port: int, engine: docker.APIClient) -> None:
        self.wire = Wire(port)
        self.host = f"127.0.0.1:{self.wire.port}"
        self._engine = engine

    def push(self, name: str, base: str, *sizes_bytes: int, **labels: str) -> str:
        """Pushes `base` with layers of noise of these sizes; returns the reference, which isn't here then."""
        reference = f"{self.host}/{name}"
        lines = [f"FROM {base}", *(f"LABEL {key.replace('_', '-')}={value}" for key, value in labels.items())]
        files = {f"noise{number}": secrets.token_bytes(size) for number, size in enumerate(sizes_bytes)}
        lines += [f"COPY {file} /noise/{file}" for file in files]
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for file, content in {"Dockerfile": "\n".join(lines).encode(), **files}.items():
                entry = tarfile.TarInfo(file)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        context.seek(0)
        for event in self._engine.build(
            fileobj=context, custom_context=True, tag=reference, rm=True, decode=True
        ):
            assert "error" not in event, event
        for event in self._engine.push(reference, stream=True, decode=True):
            assert "error" not in event, event
        self.forget(reference)
        return reference

    def forget(self, reference: str = "") -> None:
        """Removes an image, or all of this registry, from the engine."""
        found: list[dict[str, Any]] = self._engine.images()
        for image in found:
            for tag in [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]:
                if tag == reference or (not reference and tag.startswith(f"{self.host}/")):
                    with suppress(docker.errors.ImageNotFound):  # a digest goes with the last tag
                        self._engine.remove_image(tag, force=True)

    def here(self, reference: str) -> bool:
        """Whether the engine has the image."""
        try:
            self._engine.inspect_image(reference)
        except docker.errors.ImageNotFound:
            return False
        return True


@contextmanager
def running_registry(engine: docker.APIClient) -> Iterator[Registry]:
    """Runs a registry with a storage folder of its own; nothing of it is left at the end."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no docker-registry: run `make test`, or apt-get install docker-registry")
    folder = Path(tempfile.mkdtemp(prefix="gpuspawner-registry-"))
    port = free_port()
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(folder=folder / "storage", port=port))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    registry: Registry | None = None
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(port):
            said = (folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        registry = Registry(port, engine)
        yield registry
    finally:
        if registry is not None:
            registry.forget()
            registry.wire.close()
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
