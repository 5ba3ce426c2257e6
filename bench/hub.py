"""A hub for a benchmark: started as a process, driven over its REST API, timed by its progress stream."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import docker

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from tests.hubstart import end_hub, own_settings, start_hub  # noqa: E402

USER = "bench-{number}"


def bridge_gateway() -> str:
    """The host's address on Docker's default bridge, where stock DockerSpawner puts its containers."""
    with contextlib.closing(docker.from_env()) as engine:
        network = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]
        return str(network.get("Gateway") or ipaddress.ip_network(network["Subnet"])[1])


class Hub:
    """One running hub. Its API token is an admin's."""

    def __init__(self, kind: str, environment: dict[str, str]) -> None:
        self.kind = kind
        self.folder = tempfile.TemporaryDirectory(prefix=f"bench-{kind}-")
        own = own_settings(Path(self.folder.name))
        self.port = int(own["GPUSPAWNER_PORT"])
        self.token = secrets.token_hex(16)
        self.log_path = Path(self.folder.name) / "hub.log"
        self._environment = {
            **os.environ,
            **environment,
            **own,
            "GPUSPAWNER_NAME": "gpuspawner-bench",
            "GPUSPAWNER_SIMULATED": "64 x H100 80GB",  # the broker reads the project's own config
            "GPUSPAWNER_SUBNET": "10.219.0.0/20",
            "BENCH_TOKEN": self.token,
            "BENCH_GATEWAY": bridge_gateway(),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Starts the hub; returns when its API answers. RuntimeError with the log's end if it doesn't."""
        config = HERE / f"config_{self.kind}.py"
        if self.kind == "ours":
            prepare = [sys.executable, "-m", "gpuspawner.tools.make_network", "--config", str(config)]
            subprocess.run(prepare, env=self._environment, check=True, stdout=subprocess.DEVNULL)
        self._process = start_hub(config, Path(self.folder.name), self._environment, self.log_path)
        self._session = aiohttp.ClientSession(
            f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"token {self.token}"},
            timeout=aiohttp.ClientTimeout(total=600),
            connector=aiohttp.TCPConnector(limit=0),
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with self._session.get("/hub/api/users") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the {self.kind} hub did not start:\n{self.log_path.read_text()[-3000:]}")

    async def close(self) -> None:
        """Ends hub, proxy and services; containers were stopped by `stop`."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None:
            end_hub(self._process)
        self.folder.cleanup()

    async def add_users(self, count: int) -> None:
        """Makes the users, so that no measurement pays for it."""
        names = [USER.format(number=number) for number in range(count)]
        await self._call("POST", "/hub/api/users", {"usernames": names})

    async def click(self, number: int, options: dict[str, Any]) -> float:
        """Seconds from the click (POST) to the progress stream's "ready". RuntimeError if it fails."""
        server = f"/hub/api/users/{USER.format(number=number)}/server"
        begin = time.perf_counter()
        await self._call("POST", server, options)
        async with self.session.get(f"{server}/progress") as stream:
            async for line in stream.content:
                if not line.startswith(b"data:"):
                    continue
                event = json.loads(line[5:])
                if event.get("ready"):
                    return time.perf_counter() - begin
                if event.get("failed"):
                    raise RuntimeError(f"{self.kind}: {event.get('message')}")
        raise RuntimeError(f"{self.kind}: the progress stream ended without 'ready'")

    async def stop(self, number: int) -> None:
        """Stops the user's server and waits until the hub has forgotten it."""
        user = f"/hub/api/users/{USER.format(number=number)}"
        await self._call("DELETE", f"{user}/server")
        while True:
            async with self.session.get(user) as answer:
                state = await answer.json()
            if state.get("server") is None and state.get("pending") is None:
                return
            await asyncio.sleep(0.1)

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session. RuntimeError before `start`."""
        if self._session is None:
            raise RuntimeError("start the hub first")
        return self._session

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        async with self.session.request(method, path, json=body) as answer:
            if answer.status >= 400:
                raise RuntimeError(f"{self.kind}: {method} {path}: {answer.status} {await answer.text()}")


@contextlib.asynccontextmanager
async def running(kind: str, environment: dict[str, str], users: int) -> AsyncIterator[Hub]:
    """A started hub with its users, closed at the end."""
    hub = Hub(kind, environment)
    try:
        await hub.start()
        await hub.add_users(users)
        yield hub
    finally:
        await hub.close()
