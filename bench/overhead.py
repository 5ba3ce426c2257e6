"""What the broker adds to a spawn: from the request to the settings of its container, and the fence.

A real broker process with simulated devices and its ledger on the disk (one fsync a commit), asked over its
socket by the spawner's own client; no container is made. One after the other, as clicks come.

    python bench/overhead.py --rounds 500
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import rich
from gpuspawner.core.errors import Refusal
from gpuspawner.core.labels import Owner
from gpuspawner.core.model import GpuRequest
from gpuspawner.core.want import Want
from gpuspawner.hub.container import ContainerFacts, plan
from gpuspawner.protocol.client import BrokerClient
from rich.table import Table
from spawn import percentile

SETTINGS = """
c = get_config()
c.GpuSite.state_dir = {folder!r}
c.GpuSite.inventory = "simulated"
c.GpuSite.simulated_devices = "64 x H100 80GB"
"""


@contextlib.contextmanager
def running_broker(folder: Path) -> Iterator[Path]:
    """A broker as a process; gives the path of its socket."""
    config = folder / "config.py"
    config.write_text(SETTINGS.format(folder=str(folder)))
    command = [sys.executable, "-m", "gpuspawner.broker", "--config", str(config)]
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield folder / "broker.sock"
    finally:
        process.terminate()
        process.wait(10)


async def one(client: BrokerClient, number: int) -> tuple[float, float]:
    """Seconds until the container's settings are known, and of the fence; the lease is given back."""
    begin = time.perf_counter()
    request = GpuRequest(uuid.uuid4().hex, "bench", f"user-{number}", "", "gpu", Want(1))
    async with client.acquire(request, lambda *_: None) as grant:
        facts = ContainerFacts(
            name=f"lab-{number}",
            image="lab",
            command=("lab-server",),
            owner=Owner("bench", request.user, "", "gpu"),
            env={},
            port=8888,
            container_user="1000:100",
            network="labs",
        )
        assert plan(facts, grant.patch).create["labels"]
        granted = time.perf_counter()
        await client.confirm(request.lease_id)
        return granted - begin, time.perf_counter() - granted


async def measure(socket: Path, rounds: int) -> list[tuple[float, float]]:
    """The times of `rounds` spawns, after ten that warm up."""
    client = BrokerClient(str(socket))
    try:
        for _ in range(100):
            with contextlib.suppress(Refusal):
                await one(client, 0)
                break
            await asyncio.sleep(0.2)
        return [await one(client, number % 50) for number in range(rounds + 10)][10:]
    finally:
        await client.close()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, running_broker(Path(folder)) as socket:
        measured = asyncio.run(measure(socket, rounds))
    table = Table("added to a spawn", "rounds", "p50 ms", "p99 ms", "most ms")
    columns = {
        "request, policy, placement, commit, settings": [first for first, _ in measured],
        "the fence before `docker start`": [second for _, second in measured],
        "both": [first + second for first, second in measured],
    }
    for name, values in columns.items():
        cells = (percentile(values, 50), percentile(values, 99), max(values))
        table.add_row(name, str(rounds), *(f"{cell * 1000:.2f}" for cell in cells))
    rich.print(table)


if __name__ == "__main__":
    main()
