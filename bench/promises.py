"""What is promised to happen within some seconds, timed on a real hub with real containers, N times each.

    python bench/promises.py              # 10 times each
    python bench/promises.py --times 3

Tests hold that these things happen; how soon depends on how busy the machine is, and is measured here. The
labs are those of the tests (a shell script in a static busybox), the failing GPUs are scripted (tests/nvml).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.hub.conftest import import_images
from tests.hub.hubprocess import DOCKER_SOCKET, NAME, SUBNET, HubProcess, eventually
from tests.nvml.scripted import ENVIRONMENT, Gpu, Script, build

LOOK_SECONDS = 0.005
LOST, FINE = 15, 0
"""NVML's codes: the GPU is lost, and no error."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What is promised, within how many seconds, and what causes it once and returns when it has happened."""

    name: str
    bound_seconds: float
    once: Callable[[], Awaitable[float]]


async def seconds_until(happened: Callable[[], Awaitable[bool]], limit_seconds: float = 60.0) -> float:
    """How long from now until it has happened. Raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(limit_seconds):
        while not await happened():
            await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic() - began


class Usual:
    """A hub with two simulated GPUs, both taken."""

    def __init__(self, hub: HubProcess) -> None:
        self._hub = hub

    def promises(self) -> tuple[Promise, ...]:
        """Those that it keeps."""
        return (
            Promise("labs' network removed: the hub is reached again, and says so", 10.0, self.network),
            Promise("a start in the queue is cancelled: its place is free", 1.0, self.place),
            Promise("a server is stopped: its GPU is reserved for the next in line", 5.0, self.next_in_line),
            Promise("a lab is cut from the network: it is connected again", 10.0, self.cut),
        )

    async def network(self) -> float:
        """The network is empty: one that labs use can't be removed."""
        await self._hub.add_users("one")
        said = self._hub.log.count("The labs' network")
        self._hub.engine.remove_network(NAME)

        async def repaired() -> bool:
            try:
                status, _ = await asyncio.wait_for(self._hub.call("GET", "/users/one"), 1.0)
            except (OSError, TimeoutError):
                return False
            return status == 200 and self._hub.log.count("The labs' network") > said

        return await seconds_until(repaired)

    async def place(self) -> float:
        """From the click on Stop to a queue without that server."""
        async with both_taken(self._hub):
            waiting = asyncio.create_task(self._hub.post("three", {"profile": "gpu"}))
            await eventually(lambda: self._in_line("three"))
            cancel = asyncio.create_task(self._hub.call("DELETE", "/users/three/server"))

            async def gone() -> bool:
                return not await self._in_line("three")

            took = await seconds_until(gone)
            await asyncio.gather(cancel, waiting)
            await self._hub.stop_server("three")
        return took

    async def next_in_line(self) -> float:
        """From the stop of a server to the lease of who waits; the container's end is part of it."""
        async with both_taken(self._hub):
            waiting = asyncio.create_task(self._hub.post("three", {"profile": "gpu"}))
            await eventually(lambda: self._in_line("three"))
            stop = asyncio.create_task(self._hub.call("DELETE", "/users/one/server"))

            async def served() -> bool:
                return [state for _, _, state in await self._hub.leases("three")] in (
                    ["reserved"],
                    ["running"],
                )

            took = await seconds_until(served)
            await asyncio.gather(stop, waiting)
            await self._hub.stop_server("three")
        return took

    async def cut(self) -> float:
        """As by `docker network disconnect`."""
        spawned = await self._hub.spawn("one", {"profile": "cpu"})
        assert spawned.ready, spawned
        lab = self._hub.inspect("one")["Id"]
        self._hub.engine.disconnect_container_from_network(lab, NAME, force=True)

        async def connected() -> bool:
            networks = self._hub.inspect("one")["NetworkSettings"]["Networks"]
            return bool(networks.get(NAME, {}).get("IPAddress"))

        took = await seconds_until(connected)
        await self._hub.stop_server("one")
        return took

    async def _in_line(self, user: str) -> bool:
        return any(entry["user"] == user for entry in (await self._hub.broker_status())["queue"])


@asynccontextmanager
async def both_taken(hub: HubProcess) -> AsyncIterator[None]:
    """Both GPUs have a server inside the block."""
    for user in ("one", "two"):
        spawned = await hub.spawn(user, {"profile": "gpu"})
        assert spawned.ready, spawned
    yield
    for user in ("one", "two"):
        await hub.stop_server(user)


class Failing:
    """A hub whose broker sees two scripted GPUs."""

    def __init__(self, hub: HubProcess, script: Script) -> None:
        self._hub, self._script = hub, script

    def promises(self) -> tuple[Promise, ...]:
        """Those that it keeps."""
        return (
            Promise("a GPU is lost: it is out of service, and named", 10.0, self.lost),
            Promise("a GPU hangs: a loss of another one is named", 10.0, self.lost_beside_a_hang),
            Promise("a GPU reports XID 79: it is out of service, and named", 10.0, self.xid),
        )

    async def lost(self) -> float:
        """As one that fell off the bus; it is put back afterwards."""
        self._script.change(1, lost=LOST)
        took = await seconds_until(lambda: self._is(1, healthy=False))
        self._script.change(1, lost=FINE)
        await seconds_until(lambda: self._is(1, healthy=True))
        return took

    async def lost_beside_a_hang(self) -> float:
        """The other GPU's calls never return meanwhile."""
        line = self._script.hang("nvmlDeviceGetMemoryInfo", gpu=0)
        await seconds_until(lambda: self._is(0, healthy=False))
        took = await self.lost()
        self._script.drop(line)
        await seconds_until(lambda: self._is(0, healthy=True))
        return took

    async def xid(self) -> float:
        """A GPU that answers but has reported a fault; it is back after a while without one."""
        self._script.xid(1, 79)
        took = await seconds_until(lambda: self._is(1, healthy=False))
        await seconds_until(lambda: self._is(1, healthy=True), 300.0)
        return took

    async def _is(self, number: int, *, healthy: bool) -> bool:
        devices = (await self._hub.broker_status())["devices"]
        (device,) = [each for each in devices if each["uuid"] == f"GPU-{number}"]
        return bool(device["healthy"] is healthy)


@contextmanager
def hub_with(environment: dict[str, str]) -> Iterator[HubProcess]:
    """A started hub of its own, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="gb-"))
    with docker_engine() as engine:
        import_images(engine)
        ensure_network(calls_of(engine), NAME, SUBNET)
        hub = HubProcess(folder, f"unix://{DOCKER_SOCKET}", **environment)
        try:
            hub.start()
            yield hub
        finally:
            hub.close()
            engine.remove_network(NAME)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def docker_engine() -> Iterator[docker.APIClient]:
    """The Docker Engine of this machine."""
    client = docker.APIClient(base_url=f"unix://{DOCKER_SOCKET}", version="auto")
    try:
        yield client
    finally:
        client.close()


def scripted_gpus(folder: Path) -> tuple[Script, dict[str, str]]:
    """Two GPUs, and the environment in which a broker sees them."""
    script = Script(folder / "nvml", [Gpu("GPU-0"), Gpu("GPU-1")])
    script.write()
    hook = folder / "nvidia-container-runtime-hook"  # the broker looks for a way into containers
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    environment = {
        ENVIRONMENT: str(script.path),
        "GPUSPAWNER_TEST_LIBRARIES": str(build().parent),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    return script, environment


async def measure(promises: tuple[Promise, ...], times: int, table: Table) -> None:
    """A row each."""
    for promise in promises:
        seen = sorted([await promise.once() for _ in range(times)])
        verdict = "kept" if seen[-1] <= promise.bound_seconds else "BROKEN"
        table.add_row(
            promise.name,
            f"{promise.bound_seconds:.0f} s",
            f"{statistics.median(seen):.2f} s",
            f"{seen[-1]:.2f} s",
            verdict,
        )


def main() -> None:
    """Prints each promise, its bound, and what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--times", type=int, default=10, help="how often each is caused (10)")
    times = parser.parse_args().times
    table = Table("promised", "within", "median", "longest", f"of {times}")
    with hub_with({"GPUSPAWNER_TEST_QUEUE_TIMEOUT": "600"}) as hub:
        asyncio.run(measure(Usual(hub).promises(), times, table))
    with tempfile.TemporaryDirectory(prefix="gb-nvml-") as folder:
        script, environment = scripted_gpus(Path(folder))
        with hub_with(environment) as hub:
            asyncio.run(measure(Failing(hub, script).promises(), times, table))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
