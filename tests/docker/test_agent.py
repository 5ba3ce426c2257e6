"""Another machine with this machine's Docker Engine: its agent is a real process, labs are real containers.

The broker's own Docker has no container, so that all it knows of the labs comes through the agent.
"""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gpuspawner.core.want import Want
from gpuspawner.node.remote.certificates import Identity
from gpuspawner.node.remote.joining import join
from gpuspawner.node.remote.members import make_line

from tests.docker.empty_docker import empty_docker
from tests.docker.faulty_docker import FaultyDocker, Rule
from tests.docker.life import remove
from tests.docker.place import Place
from tests.soon import until
from tests.unit.node.agents import agent

pytestmark = pytest.mark.docker

T4 = Want(1, "t4")


@dataclass
class Elsewhere:
    """Machine b, with two T4, and the broker of machine a, which has one H100."""

    place: Place
    folder: Path
    """The agent's state folder."""
    docker: FaultyDocker
    """What the agent's Docker calls go through."""
    address: str
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)
    process: asyncio.subprocess.Process | None = None

    async def up(self) -> None:
        """The agent starts; returns when b serves."""
        self.process = await self._running.enter_async_context(
            agent(self.folder, f"--broker={self.address}", DOCKER_HOST=self.docker.host)
        )
        await until(self.serves)

    async def kill(self) -> None:
        """kill -9 of the agent; returns when the broker knows."""
        assert self.process is not None
        self.process.kill()
        await until(self.is_away)

    async def close(self) -> None:
        await self._running.aclose()

    async def _health(self) -> list[bool]:
        devices = (await self.place.client.status())["devices"]
        return [each["healthy"] for each in devices if each["node"] == "b"]

    async def serves(self) -> bool:
        return await self._health() == [True, True]

    async def is_away(self) -> bool:
        return True not in await self._health()


@pytest.fixture
async def b(place: Place) -> AsyncIterator[Elsewhere]:
    """The broker runs and b has joined; its agent isn't started yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    place.settings = {
        "GpuSite": {"inventory": "simulated", "simulated_devices": "a: 1 x H100 80GB"},
        "GpuBroker": {"reconcile_seconds": 0.2, "agents_address": address},
    }
    folder = Path(tempfile.mkdtemp(prefix="gs-b-"))
    proxied = FaultyDocker(folder / "docker.sock")
    async with empty_docker(place.folder / "empty.sock") as own, proxied as proxy:
        place.env = {"DOCKER_HOST": own}
        await place.start()
        await join(make_line(place.folder, address), "b", Identity(folder / "agent"))
        found = Elsewhere(place, folder, proxy, address)
        yield found
        await found.close()


def read_notice(b: Elsewhere, lease_id: str) -> str:
    return (b.folder / "leases" / lease_id / "notice").read_text()


async def test_a_lab_on_another_machine_is_seen_and_ended_through_its_agent(b: Elsewhere) -> None:
    await b.up()
    anna = b.place.server(want=T4)
    grant = await anna.spawn()
    assert grant.lease.node == "b"
    [mount] = grant.patch.mounts
    assert mount["source"] == str(b.folder / "leases" / anna.lease_id)
    assert json.loads((Path(mount["source"]) / "lease.json").read_text())["user"] == "anna"
    await b.place.settled("anna")
    await asyncio.to_thread(remove, b.place.engine, anna.container_id)  # the lab ends by itself
    await b.place.settled()
    assert list((b.folder / "leases").iterdir()) == []
    ben = b.place.server("ben", want=T4)
    await ben.spawn()
    await b.place.settled("ben")
    await b.place.client.release(ben.lease_id)  # the hub stops it: the agent removes its container
    await b.place.settled()


async def test_what_happens_behind_a_dead_agent_frees_nothing_before_it_is_back(b: Elsewhere) -> None:
    await b.up()
    anna, ben, cleo = (b.place.server(user, want=T4) for user in ("anna", "ben", "cleo"))
    await anna.spawn()
    await ben.spawn()
    await b.place.settled("anna", "ben")
    await b.kill()
    await asyncio.to_thread(remove, b.place.engine, anna.container_id)
    waiting = asyncio.create_task(cleo.spawn())
    await b.place.client.release(ben.lease_id)  # nobody can end it there now
    await asyncio.sleep(1)  # five rounds
    assert await b.place.leases() == {"anna": ("running", 1), "ben": ("releasing", 1), "cleo": ("waiting", 0)}
    assert b.place.containers() == {"ben": "running"}
    await b.up()
    await waiting
    await b.place.settled("cleo")


@pytest.mark.parametrize("agent_dies", [False, True])
async def test_a_new_broker_finds_the_labs_of_the_other_machine(b: Elsewhere, agent_dies: bool) -> None:
    await b.up()
    anna, ben = b.place.server(want=T4), b.place.server("ben", want=T4)
    await anna.spawn()
    await ben.spawn()
    await b.place.settled("anna", "ben")
    await b.place.kill_broker()
    if agent_dies:
        assert b.process is not None
        b.process.kill()
    await asyncio.to_thread(remove, b.place.engine, anna.container_id)
    await b.place.restart()
    if agent_dies:
        await asyncio.sleep(1)
        assert await b.place.leases() == {"anna": ("running", 1), "ben": ("running", 1)}
        assert "GPU(s) that leases hold were not found" not in b.place.log
        await b.up()
    await b.place.settled("ben")


async def test_a_docker_engine_that_does_not_answer_its_agent_frees_nothing(b: Elsewhere) -> None:
    await b.up()
    anna, ben = b.place.server(want=T4), b.place.server("ben", want=T4)
    await anna.spawn()
    await b.place.settled("anna")
    b.docker.rules.append(Rule("/containers/", "500", times=10_000))
    await until(b.is_away)
    await asyncio.to_thread(remove, b.place.engine, anna.container_id)
    waiting = asyncio.create_task(ben.spawn())
    await asyncio.sleep(1)
    assert await b.place.leases() == {"anna": ("running", 1), "ben": ("waiting", 0)}
    b.docker.rules.clear()
    await until(b.serves)
    await waiting
    await b.place.settled("ben")
