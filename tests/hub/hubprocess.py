"""A real hub as a process, with its proxy and its broker, driven over its REST API."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import docker

from tests.docker.faulty_docker import FaultyDocker, Rule
from tests.hubstart import end_hub, own_settings, own_subnet, start_hub

__all__ = ["DOCKER_SOCKET", "HubProcess", "ProxyThread", "Rule", "Spawned", "eventually"]

HERE = Path(__file__).resolve().parent
DOCKER_SOCKET = "/var/run/docker.sock"
NAME = f"hubtest-{secrets.token_hex(3)}"
"""This run's name in Docker: another checkout's tests may run at the same time."""
SUBNET = own_subnet()
IMAGE = "gpuspawner-hubtest/lab"
START_SECONDS = 60.0
SOON_SECONDS = 30.0
"""Longer than anything here takes on a busy machine. A test that means a shorter time says which and why."""


class ProxyThread:
    """A FaultyDocker on a loop of its own: it fails on demand while the hub's process talks to it."""

    def __init__(self, path: Path) -> None:
        self.proxy = FaultyDocker(path, upstream=DOCKER_SOCKET)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty docker", daemon=True)
        self._thread.start()
        self.up()

    def up(self) -> None:
        """Docker is there (again)."""
        asyncio.run_coroutine_threadsafe(self.proxy.up(), self._loop).result(5)

    def down(self) -> None:
        """Docker is gone."""
        asyncio.run_coroutine_threadsafe(self.proxy.down(), self._loop).result(5)

    @contextmanager
    def rule(self, rule: Rule) -> Iterator[Rule]:
        """The rule holds inside the block."""
        self.proxy.rules.append(rule)
        try:
            yield rule
        finally:
            self.proxy.rules.remove(rule)

    def close(self) -> None:
        """Ends the proxy and its thread."""
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@dataclass
class Spawned:
    """How a start ended: status of the POST, the progress messages, and the last of them."""

    status: int
    body: str
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether the hub said that the server is ready."""
        return bool(self.events and self.events[-1].get("ready"))

    @property
    def messages(self) -> list[str]:
        """The sentences of the progress page."""
        return [str(event["message"]) for event in self.events]


class HubProcess:
    """One hub on a state folder; may be killed and started again."""

    def __init__(self, folder: Path, docker_host: str, **environment: str) -> None:
        self.folder = folder
        own = {**own_settings(folder), "GPUSPAWNER_NAME": NAME, "GPUSPAWNER_SUBNET": SUBNET}
        self.port = int(own["GPUSPAWNER_PORT"])
        self.password = own["GPUSPAWNER_PASSWORD"]
        self.admin_password = own["GPUSPAWNER_ADMIN_PASSWORD"]
        self.token = secrets.token_hex(16)
        self.log_path = folder / "hub.log"
        self.open_files = 0
        """The soft limit of open files at the next start; 0: as this process's own."""
        self.engine = docker.APIClient(base_url=f"unix://{DOCKER_SOCKET}", version="auto")
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            **own,
            "PYTHONPATH": os.pathsep.join(
                [str(HERE.parents[1] / "spawner"), os.environ.get("PYTHONPATH", "")]
            ),
            "DOCKER_HOST": docker_host,
            "GPUSPAWNER_TEST_BROKER_DOCKER": f"unix://{DOCKER_SOCKET}",
            "GPUSPAWNER_TEST_TOKEN": self.token,
            "GPUSPAWNER_IMAGE": IMAGE,
            "GPUSPAWNER_CONFIG": str(HERE / "hub_config.py"),
            **environment,
        }

    @property
    def pid(self) -> int:
        """The hub's own process."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Where the hub is reached through its proxy."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The hub's environment; changes count from the next start on."""
        return self._environment

    @property
    def log(self) -> str:
        """All that hub, proxy and broker have written."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def start(self) -> None:
        """Starts the hub and returns when its API answers through the proxy."""
        self._process = start_hub(
            HERE / "hub_config.py", self.folder, self._environment, self.log_path, self.open_files
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the hub did not start:\n{self.log[-6000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/hub/api/info", headers={"Authorization": f"token {self.token}"})
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """SIGKILL for the hub alone: proxy and broker live on, as after a crash."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """SIGTERM, as Ctrl-C or systemd would; running servers stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def close(self) -> None:
        """Ends everything that this hub started, containers and volumes too."""
        if self._process is not None:
            end_hub(self._process)
        self.remove_containers()
        self.engine.close()

    # ---- Docker's view

    def containers(self, user: str = "") -> list[dict[str, Any]]:
        """Docker's list of this hub's containers, of one user if named; in any state."""
        labels = [f"gpuspawner.hub={NAME}", *([f"gpuspawner.user={user}"] if user else [])]
        found: list[dict[str, Any]] = self.engine.containers(all=True, filters={"label": labels})
        return found

    def inspect(self, user: str) -> dict[str, Any]:
        """Docker's document of the user's only container."""
        (container,) = self.containers(user)
        document: dict[str, Any] = self.engine.inspect_container(container["Id"])
        return document

    def remove_containers(self) -> None:
        """Removes every container and home of this hub."""
        for item in self.containers():
            with suppress(docker.errors.APIError):
                self.engine.remove_container(item["Id"], force=True, v=True)
        for volume in self.engine.volumes(filters={"name": f"{NAME}-home-"})["Volumes"] or ():
            with suppress(docker.errors.APIError):
                self.engine.remove_volume(volume["Name"], force=True)

    # ---- REST

    def session(self) -> aiohttp.ClientSession:
        """A client with the tester's token."""
        return aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"token {self.token}"},
            timeout=aiohttp.ClientTimeout(total=90),
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request to the hub's API: status and document (or text)."""
        async with self.session() as session, session.request(method, f"/hub/api{path}", json=body) as answer:
            text = await answer.text()
        try:
            return answer.status, json.loads(text) if text else None
        except ValueError:
            return answer.status, text

    async def add_users(self, *names: str) -> None:
        """Makes the users that aren't there yet."""
        for name in names:
            await self.call("POST", f"/users/{name}")

    async def spawn(self, user: str, options: Any = None, server: str = "") -> Spawned:
        """A start by REST, followed to its end."""
        status, body = await self.post(user, options, server)
        spawned = Spawned(status, body)
        if status in (201, 202):
            spawned.events = await self.progress(user, server)
        return spawned

    async def post(self, user: str, options: Any = None, server: str = "") -> tuple[int, str]:
        """The POST of a start."""
        await self.add_users(user)
        path = f"/users/{user}/servers/{server}" if server else f"/users/{user}/server"
        status, body = await self.call("POST", path, options)
        return status, body["message"] if isinstance(body, dict) and "message" in body else str(body or "")

    async def progress(self, user: str, server: str = "", until: str = "") -> list[dict[str, Any]]:
        """The events of the progress stream up to its end, or to the first message with `until`."""
        path = f"/users/{user}/servers/{server}/progress" if server else f"/users/{user}/server/progress"
        events: list[dict[str, Any]] = []
        async with self.session() as session, session.get(f"/hub/api{path}") as stream:
            async for line in stream.content:
                if not line.startswith(b"data:"):
                    continue
                events.append(json.loads(line[5:]))
                if events[-1].get("ready") or events[-1].get("failed"):
                    break
                if until and until in events[-1]["message"]:
                    break
        return events

    async def server(self, user: str, server: str = "") -> dict[str, Any] | None:
        """The hub's model of a server; None if it neither runs nor is pending."""
        _, model = await self.call("GET", f"/users/{user}?include_stopped_servers=1")
        found: dict[str, Any] | None = (model.get("servers") or {}).get(server)
        return found

    async def stop_server(self, user: str, server: str = "") -> None:
        """Stops a server and waits until the hub has forgotten it."""
        path = f"/users/{user}/servers/{server}" if server else f"/users/{user}/server"
        await self.call("DELETE", path)

        async def stopped() -> bool:
            model = await self.server(user, server)
            return model is None or (model["stopped"] and not model["pending"])

        await eventually(stopped)

    async def broker_status(self) -> dict[str, Any]:
        """The broker's whole status, over its socket."""
        documents: list[dict[str, Any]] = []

        async def told() -> bool:  # a broker may just be taking over from another one
            connector = aiohttp.UnixConnector(str(self.folder / "broker.sock"))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get("http://b/api/status") as answer,
            ):
                documents.append(await answer.json())
            return True

        await eventually(told)
        return documents[0]

    async def leases(self, user: str = "") -> list[tuple[str, str, str]]:
        """User, server and state of the living leases."""
        document = await self.broker_status()
        return sorted(
            (lease["user"], lease["server"], lease["state"])
            for lease in document["leases"]
            if not user or lease["user"] == user
        )


async def eventually(check: Any, seconds: float = SOON_SECONDS) -> None:
    """Waits until `check()` (async) is true; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        problem: object = "it is not so"
        try:
            if await check():
                return
        except (aiohttp.ClientError, OSError, AssertionError) as error:
            problem = error
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s: {problem!r}")
        await asyncio.sleep(0.1)


async def is_leased(hub: HubProcess, user: str, profile: str) -> bool:
    """Whether the broker has what a running server of this profile holds, and no more."""
    return await hub.leases(user) == ([(user, "", "running")] if profile == "gpu" else [])
