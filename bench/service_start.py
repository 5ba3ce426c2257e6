"""Start of a lab as a Swarm service against a container, in pairs: the same image, the same engine.

    .venv/bin/python bench/service_start.py [--pairs 20] [--image gpuspawner/lab-base:0.1.0] [--encrypted]

Needs root, and the newer Docker Engine in .cache/engine-cdi. Three engines in network namespaces are one
Swarm (`tests/swarm/cluster.py`); all labs start on the manager's, by the product's own code, from `create`
until `start` returns: the lab's program was started. Beside the pairs, a few services start with a
health check that succeeds at once, and a few whose image is named by its tag; nothing answers at the
registry's address there. Then some starts are watched: what our own calls of Docker take, and when the task
comes into each state.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import docker
from gpuspawner.config.swarm import GpuSwarm
from gpuspawner.core.labels import Owner
from gpuspawner.core.limits import Machine
from gpuspawner.hub.container import ContainerFacts, ContainerPlan, plan
from gpuspawner.hub.containers import Containers
from gpuspawner.hub.docker import DockerEngine
from gpuspawner.hub.engine import LabEngine
from gpuspawner.hub.network import LabNetwork, ensure_network
from gpuspawner.hub.swarm import services as swarm_services
from gpuspawner.hub.swarm.document import state_of
from gpuspawner.hub.swarm.opening import HubPlace, open_services
from gpuspawner.hub.swarm.service import NANO

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.docker.engine import missing
from tests.swarm.cluster import Cluster, cluster

HUB = f"startbench-{secrets.token_hex(3)}"
GATEWAY_IMAGE = "gpuspawner/base:0.1.0"
SUBNET = "10.213.48.0/24"
FEW = WATCHED = 5
LOOK_SECONDS = 0.01
"""How often a watched task is asked for its state."""
SERVICE, CONTAINER = "service", "container"
CHECKED, BY_TAG = "service with a health check", "service by tag"
CHECK = {"Test": ["CMD", "true"], "Interval": 30 * NANO, "Timeout": 5 * NANO, "StartPeriod": 60 * NANO}
"""With the times of the lab images' own."""


class Timed(DockerEngine):
    """Notes how long each call of Docker takes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.took: list[tuple[str, float]] = []

    def call_here(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As it is, and timed."""
        began = time.perf_counter()
        try:
            return super().call_here(method, *args, **kwargs)
        finally:
            self.took.append((method, time.perf_counter() - began))


class Bench:
    """A hub's two ways to run labs on the manager's machine."""

    def __init__(self, machines: Cluster, image: str, *, encrypted: bool) -> None:
        self.image, self.node = image, machines.manager.name
        self.docker = Timed({"base_url": machines.manager.docker_host})
        settings = GpuSwarm(
            subnet="10.214.48.0/22", encrypted=encrypted, heartbeat=5, gateway_image=GATEWAY_IMAGE
        )
        place = HubPlace(HUB, HUB, SUBNET, "", lab_port=8888, hub_port=8081)
        self.services = open_services(place, settings, self.docker, logging.getLogger("bench"))
        network = LabNetwork(HUB, SUBNET, 8888)
        containers = Containers(self.docker, network, "1000:100")
        self.engines: dict[str, LabEngine] = {SERVICE: self.services, CONTAINER: containers}
        self._number = 0

    async def prepare(self) -> None:
        """The labs' network, and all that is made once for a hub."""
        await self.docker.run(lambda call: ensure_network(call, HUB, SUBNET))
        for kind in (SERVICE, CONTAINER):
            await self.start(kind)

    def plan(self, kind: str) -> ContainerPlan:
        """The next lab: a program that waits, as the hub's settings have it otherwise."""
        self._number += 1
        facts = ContainerFacts(
            name=f"{HUB}-{self._number}",
            image=self.image,
            command=("sleep", "600"),
            owner=Owner(HUB, f"u{self._number}", "", "gpu"),
            env={"JUPYTERHUB_SERVICE_PREFIX": f"/user/u{self._number}/"},
            port=8888,
            container_user="1000:100",
            network=HUB,
            machine=Machine(raises_limits=False),
        )
        found = plan(facts, None)
        if kind == CHECKED:
            found = replace(found, create={**found.create, "healthcheck": CHECK})
        return found if kind == CONTAINER else replace(found, node=self.node)

    async def start(
        self, kind: str, watch: Callable[[str], Awaitable[None]] | None = None
    ) -> tuple[float, float]:
        """Seconds for `create` and for `start` of one lab, which is removed again."""
        engine = self.engines[CONTAINER if kind == CONTAINER else SERVICE]
        wanted = self.plan(kind)
        began = time.perf_counter()
        with by_tag() if kind == BY_TAG else nullcontext():
            created = await engine.create(wanted)
        made = time.perf_counter()
        watching = None if watch is None else asyncio.ensure_future(watch(created.lab_id))
        await engine.start(created.lab_id)
        ended = time.perf_counter()
        if watching is not None:
            await watching
        await engine.remove(created.lab_id)
        await self.services.settle()
        return made - began, ended - made


@contextmanager
def by_tag() -> Iterator[None]:
    """Services name their images as the settings do."""
    with mock.patch.object(swarm_services, "pinned", lambda image, reference: reference):
        yield


def in_words(seconds: list[float]) -> str:
    """Median and range, in milliseconds."""
    middle, least, most = (1000 * each for each in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle:6.0f} ms ({least:.0f} to {most:.0f})"


async def pairs(bench: Bench, count: int) -> None:
    """Starts in turn; which of the two comes first changes with each pair."""
    kinds = [SERVICE, CONTAINER]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(count):
        for kind in reversed(kinds) if number % 2 else kinds:
            found[kind].append(await bench.start(kind))
    for kind in (CHECKED, BY_TAG):
        for _ in range(FEW):
            found[kind].append(await bench.start(kind))
    kinds = list(found)
    sums = {kind: [sum(each) for each in found[kind]] for kind in kinds}
    for kind in kinds:
        created, started = ([each[part] for each in found[kind]] for part in (0, 1))
        print(f"{kind}: {in_words(sums[kind])}; create {in_words(created)}, start {in_words(started)}")
    ratios = [one / other for one, other in zip(sums[SERVICE], sums[CONTAINER], strict=True)]
    print(f"service / container, median of {count} pairs: {statistics.median(ratios):.2f}", flush=True)


async def watch(bench: Bench, kind: str) -> None:
    """Where the time of some starts goes."""
    calls: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    states: dict[str, list[float]] = defaultdict(list)

    async def follow(lab_id: str) -> None:
        began, seen = time.time(), set[str]()
        while "running" not in seen:
            for task in await asyncio.to_thread(tasks_of, lab_id):
                state = state_of(task)
                if state not in seen:
                    seen.add(state)
                    at = datetime.fromisoformat(task["Status"]["Timestamp"][:26].rstrip("Z") + "+00:00")
                    states[state].append(at.timestamp() - began)
            await asyncio.sleep(LOOK_SECONDS)

    def tasks_of(lab_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.tasks(filters={"service": lab_id})
        return found

    client: Any = bench.docker.client()
    for _ in range(WATCHED):
        bench.docker.took.clear()
        await bench.start(kind, None if kind == CONTAINER else follow)
        for method in {method for method, _ in bench.docker.took}:
            took = [seconds for each, seconds in bench.docker.took if each == method]
            calls[method].append(sum(took))
            counts[method] = max(counts[method], len(took))
    print(f"calls of Docker in one {kind}, with its removal, median of {WATCHED}:")
    for method, sums in sorted(calls.items(), key=lambda each: -statistics.median(each[1])):
        print(f"  {method} ({counts[method]} times at most) {in_words(sums)}")
    for state, seconds in sorted(states.items(), key=lambda each: statistics.median(each[1])):
        print(f"  task {state}, after `create` returned: {in_words(seconds)} in {len(seconds)}")


async def main() -> None:
    """Runs it, and prints the load before."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--image", default="gpuspawner/lab-base:0.1.0")
    parser.add_argument(
        "--encrypted", action="store_true", help="the labs' networks, as the setting's default"
    )
    asked = parser.parse_args()
    if (why := missing()) is not None:
        sys.exit(why)
    with cluster() as machines:
        source: Any = docker.APIClient(version="auto", timeout=600)
        target: Any = machines.manager.client
        for image in {asked.image, GATEWAY_IMAGE}:
            list(target.load_image(source.get_image(image)))
        bench = Bench(machines, asked.image, encrypted=asked.encrypted)
        await bench.prepare()
        print(f"{asked.image}; load {os.getloadavg()[0]:.1f}", flush=True)
        await pairs(bench, asked.pairs)
        for kind in (CONTAINER, SERVICE):
            await watch(bench, kind)
        bench.docker.close()


if __name__ == "__main__":
    asyncio.run(main())
