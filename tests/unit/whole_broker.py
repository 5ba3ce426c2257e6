"""A whole broker in this process, with simulated devices, and a Docker Engine that doesn't answer."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer

import pytest
from gpuspawner.broker.app import GpuBroker
from gpuspawner.broker.assembly.broker import Broker
from gpuspawner.protocol.client import BrokerClient

from tests.soon import SOON_SECONDS


class HangUp(BaseRequestHandler):
    """Docker that closes every connection: docker-py leaks a socket that can't connect at all."""

    def handle(self) -> None:
        self.request.recv(65536)


@contextmanager
def state_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder with a short path; no Docker Engine answers, and no hub started the broker."""
    with (
        tempfile.TemporaryDirectory(prefix="gs-") as name,
        ThreadingUnixStreamServer(f"{name}/docker.sock", HangUp) as server,
    ):
        thread = threading.Thread(target=lambda: server.serve_forever(0.02))
        thread.start()
        monkeypatch.setenv("GPUSPAWNER_STATE_DIR", name)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{name}/docker.sock")
        monkeypatch.delenv("JUPYTERHUB_SERVICE_URL", raising=False)
        yield Path(name)
        server.shutdown()
        thread.join()


def settings(folder: Path, text: str) -> list[str]:
    """The command line for a config file with this text."""
    (folder / "config.py").write_text(text)
    return ["--config", str(folder / "config.py")]


@asynccontextmanager
async def running(folder: Path, text: str = "") -> AsyncIterator[tuple[Broker, BrokerClient]]:
    """A broker in this process with simulated devices; it ends by SIGTERM."""
    app = GpuBroker()
    app.initialize(settings(folder, f"c.GpuSite.inventory = 'simulated'\n{text}"))
    task = asyncio.create_task(app.run())
    client = BrokerClient(app.site.socket_path)
    async with asyncio.timeout(SOON_SECONDS):
        while not (folder / "broker.sock").exists():
            assert not task.done() or task.result() is None
            await asyncio.sleep(0.01)
    try:
        yield app.broker, client
    finally:
        await client.close()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, SOON_SECONDS)
