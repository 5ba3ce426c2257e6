"""The hub's side of a server's life, step by step as the spawner takes them: request, create, start, stop.

Runs in the test, or as a process of its own that kills itself before or after a step.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import docker
import docker.errors
from gpuspawner.core.model import ContainerPatch, GpuRequest
from gpuspawner.core.want import Want
from gpuspawner.protocol.client import BrokerClient, Grant

T = TypeVar("T")
IMAGE = "gpuspawner-test/tiny"
STEPS = ("acquire", "remove_old", "create", "confirm", "start", "ready", "close_hold")
"""What a spawn does, in order; `ready` stands for the wait until the server answers."""


@dataclass
class Server:
    """One user's server; `name` is the container's and stays the same over its lives."""

    client: BrokerClient
    engine: docker.APIClient
    user: str
    name: str
    hub: str = "hub"
    device_count: int = 1
    want: Want | None = None
    """None: whole GPUs."""
    command: tuple[str, ...] = ("/bin/busybox", "sleep", "600")
    at_step: Callable[[str, str], None] = lambda step, when: None
    queued: list[str] = field(default_factory=list)
    lease_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    container_id: str = ""

    @asynccontextmanager
    async def spawning(self) -> AsyncIterator[Grant]:
        """The spawn up to `ready`; the hold closes at the end of the block."""
        want = self.want or Want(self.device_count)
        request = GpuRequest(self.lease_id, self.hub, self.user, "", "gpu", want)
        self.at_step("acquire", "before")
        async with self.client.acquire(request, lambda place: self.queued.append(place.message)) as grant:
            self.at_step("acquire", "after")
            await self.step("remove_old", lambda: remove(self.engine, self.name))
            self.container_id = await self.step("create", lambda: self.create(grant.patch))
            self.at_step("confirm", "before")
            await self.client.confirm(self.lease_id)
            self.at_step("confirm", "after")
            await self.step("start", lambda: self.engine.start(self.container_id))
            await self.step("ready", lambda: None)
            yield grant
            self.at_step("close_hold", "before")
        self.at_step("close_hold", "after")

    async def spawn(self) -> Grant:
        """A whole spawn."""
        async with self.spawning() as grant:
            pass
        return grant

    async def step(self, name: str, call: Callable[[], T]) -> T:
        """A Docker call as a step, in a thread."""
        self.at_step(name, "before")
        result = await asyncio.to_thread(call)
        self.at_step(name, "after")
        return result

    def create(self, patch: ContainerPatch) -> str:
        """Creates the container as the spawner does, from the patch."""
        mounts = [docker.types.Mount(**mount) for mount in patch.mounts]
        made = self.engine.create_container(
            IMAGE,
            list(self.command),
            name=self.name,
            environment=patch.env,
            labels=patch.labels,
            host_config=self.engine.create_host_config(mounts=mounts, network_mode="none"),
        )
        return str(made["Id"])


def remove(engine: docker.APIClient, container: str) -> None:
    """Removes a container; none is fine."""
    try:
        engine.remove_container(container, force=True, v=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        if error.response is None or error.response.status_code != 409:
            raise


async def main(order: dict[str, Any]) -> None:
    """A hub of one user as a process: spawns, then waits to be killed."""
    kill_step, kill_when = order.get("kill") or ("", "")

    def at_step(step: str, when: str) -> None:
        if (step, when) == (kill_step, kill_when):
            os.kill(os.getpid(), signal.SIGKILL)

    client = BrokerClient(order["socket"])
    engine = docker.APIClient(base_url=order["docker_host"], version="auto")
    server = Server(client, engine, order["user"], order["name"], at_step=at_step, lease_id=order["lease_id"])
    await server.spawn()
    print("spawned", flush=True)
    await asyncio.sleep(600)
