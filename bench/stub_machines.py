"""The other machines of `bench/agents.py`, in one process: real agents with stubs as GPUs and Docker.

Reads labs that have started from its standard input, as JSON, one a line: {"machine": name, "id": id,
"labels": {}}.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import sys
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from gpuspawner.core import labels
from gpuspawner.core.model import Device
from gpuspawner.node.api import Access, Injection, NodeEvent, NodeFacts, Process, Readings, Usage, Users
from gpuspawner.node.engine import Container
from gpuspawner.node.inventory import DriverFacts
from gpuspawner.node.remote.agent import Agent, Hands
from gpuspawner.node.remote.certificates import Identity
from gpuspawner.node.remote.joining import connect

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.unit.node.agents import StubDocker, StubHomes, StubNode

GPUS, READ_SECONDS = 8, 5.0
LOG = logging.getLogger("stub agents")
LOG.setLevel(logging.ERROR)  # a hundred of them say that the broker is away


class Gpus(StubNode):
    """Eight GPUs, whose readings change every five seconds, as those of a real machine; each machine in its
    own rhythm, since they weren't started in the same moment."""

    def __init__(self, facts: NodeFacts) -> None:
        super().__init__(facts)
        self._devices, self._count = facts.devices, 0

    async def way_in(self, info: Any, version: Any, uuids: Any) -> Access:
        return Access(Injection.CDI)

    async def processes(self, uuid: str) -> tuple[Process, ...]:
        return ()

    async def events(self) -> AsyncIterator[NodeEvent]:
        await asyncio.sleep(random.uniform(0, READ_SECONDS))
        while True:
            await asyncio.sleep(READ_SECONDS)
            self._count += 1
            busy = float(self._count % 100)
            yield Readings(
                {each.uuid: Usage(1 << 30, busy, Users(), 60.0, 400.0, 700.0) for each in self._devices}
            )


class Docker(StubDocker):
    """Has the labs that it was told of."""

    def __init__(self) -> None:
        self.labs: dict[str, Container] = {}

    async def list(self, lease_id: str | None = None) -> tuple[Container, ...]:
        return tuple(each for each in self.labs.values() if lease_id in (None, each.lease_id))

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"ServerVersion": "28.5.2", "CDISpecDirs": ["/etc/cdi"]}, {"Version": "28.5.2"}


def facts_of(name: str) -> NodeFacts:
    """A machine with eight GPUs."""
    return NodeFacts(
        name,
        devices=tuple(
            Device(
                f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{name}-{index}')}", "H100 80GB", 80 << 30, index=index
            )
            for index in range(GPUS)
        ),
        driver=DriverFacts("580.95.05", "13.0", GPUS, ()),
    )


async def main(folder: Path, port: int, names: list[str]) -> None:
    """Runs until its standard input ends."""
    gc.disable()
    machines, tasks = {name: Docker() for name in names}, []
    for name, docker in machines.items():
        opening = partial(connect, "127.0.0.1", port, Identity(folder / name / "agent"))
        hands: Any = Hands(Gpus(facts_of(name)), docker, StubHomes(), folder / name)  # type: ignore[arg-type]
        tasks.append(asyncio.create_task(Agent(name, hands, opening, LOG).run()))
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    while line := await told.readline():
        lab = json.loads(line)
        found = Container(lab["id"], labels.parse(lab["labels"]), "running", created_unix_seconds=1)
        machines[lab["machine"]].labs[found.id] = found
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")))
