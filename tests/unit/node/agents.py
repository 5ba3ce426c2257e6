"""A broker's door on loopback, agents as real processes, and a wire between them that can be cut."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gpuspawner.core.model import DeviceHealth
from gpuspawner.node.api import DesiredState, NodeEvent, NodeFacts
from gpuspawner.node.remote.agent import Agent, Hands
from gpuspawner.node.remote.certificates import Authority, Identity
from gpuspawner.node.remote.door import Door
from gpuspawner.node.remote.joining import JoinLine, connect
from gpuspawner.node.remote.link import LinkPace
from gpuspawner.node.remote.membership import Membership
from gpuspawner.node.remote.remote_node import RemoteNode

from tests.unit.moved_homes import FakeFiles, Trouble

LOG = logging.getLogger("agents")
DEVICES = "a: 1 x H100 80GB; b: 2 x T4 16GB"
QUICK = LinkPace(alive_seconds=0.2, silence_seconds=1.5, call_seconds=5.0)


class Cable:
    """A TCP connection through the test: it can be cut without a word, as by a broken switch."""

    def __init__(self, port: int) -> None:
        self._to, self.port = port, 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        self._flows.clear()

    def mend(self) -> None:
        self._flows.set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._flows.wait()
                target.write(data)
        except OSError:
            pass
        finally:
            target.close()


class Broker:
    """What a broker has of its agents: its keys, who has joined, a door; and what stands for machine b."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "keys")
        self.membership = Membership(folder)
        self.port = 0
        self.node = RemoteNode("b", LOG, QUICK)
        self.door = Door(self.authority, self.membership, self._node_of, LOG)
        self.events: list[NodeEvent] = []
        self._reading: asyncio.Task[None] | None = None

    def _node_of(self, name: str) -> RemoteNode | None:
        return self.node if name == "b" else None

    async def start(self, *, read: bool = True) -> None:
        """`read`: events are collected here; else somebody else reads them."""
        self.node = RemoteNode("b", LOG, QUICK)
        self.door = Door(self.authority, self.membership, self._node_of, LOG)
        self.port = await self.door.open("127.0.0.1", self.port)
        self.facts = await self.node.start()
        self._reading = asyncio.create_task(self._read()) if read else None

    async def stop(self) -> None:
        await self.node.close()
        await self.door.close()
        if self._reading is not None:
            await self._reading

    async def _read(self) -> None:
        async for event in self.node.events():
            self.events.append(event)

    @property
    def away(self) -> str:
        """As the node's facts say it now."""
        return self.node.facts.away

    def line(self) -> JoinLine:
        """A line with a new token."""
        token = self.membership.make_token()
        return JoinLine("127.0.0.1", self.port, token, self.authority.broker_fingerprint)


class StubNode:
    """A machine whose GPUs are always well, and where nobody computes."""

    def __init__(self, facts: NodeFacts) -> None:
        self._facts = facts

    async def start(self) -> NodeFacts:
        return self._facts

    async def apply(self, desired: DesiredState) -> None:
        return

    async def health(self) -> tuple[DeviceHealth, ...]:
        return tuple(DeviceHealth(device.uuid, healthy=True) for device in self._facts.devices)

    async def processes(self, uuid: str) -> tuple[Any, ...]:
        return ()

    async def reload_stamp(self) -> int | None:
        return None

    async def disks(self, docker_root: str) -> tuple[Any, ...]:
        return ()

    async def events(self) -> AsyncIterator[NodeEvent]:
        await asyncio.Event().wait()
        yield self._facts

    async def close(self) -> None:
        return


class StubDocker:
    """A Docker Engine without containers."""

    async def list(self, lease_id: str | None = None) -> tuple[Any, ...]:
        return ()

    async def images(self) -> frozenset[str]:
        return frozenset()

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}

    def watch_events(self, sink: Any) -> None:
        return


class StubHomes(FakeFiles):
    """No homes, and no copies that would have to end."""

    def __init__(self) -> None:
        super().__init__("b", Trouble())

    async def end_all(self) -> None:
        self.copies.clear()


@asynccontextmanager
async def stub_agent(facts: NodeFacts, address: str, folder: Path) -> AsyncIterator[None]:
    """A real agent in this process, of a machine that has joined from `folder`, with these GPUs."""
    host, _, port = address.rpartition(":")
    node: Any = StubNode(facts)
    docker: Any = StubDocker()
    connecting = partial(connect, host, int(port), Identity(folder / "agent"))
    running = asyncio.create_task(
        Agent(facts.name, Hands(node, docker, StubHomes(), folder), connecting, LOG).run(0.1)
    )
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def agent(folder: Path, *arguments: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The agent of machine b, as a process; `env` is added to its environment."""
    command = (sys.executable, "-m", "gpuspawner.node.remote.agent_process", "--name=b", *arguments)
    more = (f"--GpuSite.simulated_devices={DEVICES}", "--GpuSite.inventory=simulated")
    folder.mkdir(exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *command,
        *more,
        env={**os.environ, "GPUSPAWNER_STATE_DIR": str(folder), **env},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
