"""What a lease costs in the broker: acquire with its commit, at 100, 300 and 1,000 devices and 10,000 leases.

    python bench/allocator.py [--folder DIR] [--rounds 1000]

Two loads, each with 10,000 leases in the ledger: `history` (nine devices in ten are held, the other leases
are closed) and `queue` (all devices are held, everybody else waits). The floor is what the disk takes to
write and fsync one page; the ratio is what ten times the devices cost. With `--folder /dev/shm` there is no
disk, and what is left is the program.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core.model import Device, GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Want
from rich.console import Console
from rich.table import Table

LEASES = 10_000
FLEETS = (100, 300, 1000)
STEPS = ("acquire", "set_running", "begin_release", "close")

Times = dict[str, list[float]]


def fleet(count: int) -> list[Device]:
    """Two models, half and half."""
    models = (("H100 80GB", 80), ("A100 40GB", 40))
    return [
        Device(f"GPU-{number:08x}", models[number % 2][0], models[number % 2][1] << 30, index=number)
        for number in range(count)
    ]


def past(devices: list[Device], load: str) -> list[Lease]:
    """The 10,000 leases that exist before the measurement."""
    now = datetime.now(UTC)
    held = len(devices) if load == "queue" else len(devices) * 9 // 10
    rest = LeaseState.WAITING if load == "queue" else LeaseState.CLOSED
    return [
        past_lease(number, devices[number] if number < held else None, rest, now) for number in range(LEASES)
    ]


def past_lease(number: int, device: Device | None, rest: LeaseState, now: datetime) -> Lease:
    """One that holds `device`, or one in the state `rest`."""
    return Lease(
        id=f"{number:032x}",
        hub="hub",
        user=f"user-{number}",
        server="",
        tier="gpu",
        state=rest if device is None else LeaseState.RUNNING,
        want=Want(1, (None, "H100", "A100")[number % 3]),
        created_at=now,
        since=now,
        device_uuids=() if device is None else (device.uuid,),
        memory_bytes=0 if device is None else device.memory_bytes,
    )


async def timed(times: list[float], work: Awaitable[Any]) -> Any:
    """Await `work` and record its milliseconds."""
    began = time.perf_counter()
    answer = await work
    times.append((time.perf_counter() - began) * 1e3)
    return answer


async def measure(folder: Path, count: int, load: str, rounds: int) -> Times:
    """Milliseconds of every step of `rounds` leases, one after the other."""
    devices = fleet(count)
    ledger = Ledger(f"sqlite:///{folder}/{load}-{count}.sqlite")
    await ledger.open()
    await ledger.save(*past(devices, load), at=datetime.now(UTC))
    allocator = Allocator(ledger)
    await allocator.load(devices)
    times: Times = {step: [] for step in STEPS}
    ids = (f"{number:032x}" for number in itertools.count(LEASES))
    oldest = [lease.id for lease in allocator.leases() if lease.state is LeaseState.RUNNING]
    for number in range(rounds):
        asked = GpuRequest(next(ids), "hub", f"new-{number}", "", "gpu", Want(1, (None, "H100")[number % 2]))
        lease = await timed(times["acquire"], allocator.acquire(asked))
        if load == "queue":
            # The newcomer waits; somebody else ends, and the head of the queue gets the device.
            ending = oldest.pop(0)
        else:
            ending = lease.id
            await timed(times["set_running"], allocator.set_running(lease.id, "container"))
        await timed(times["begin_release"], allocator.begin_release(ending, "stopped"))
        await timed(times["close"], allocator.close(ending))
        if load == "queue":
            given = next(each.id for each in allocator.leases() if each.state is LeaseState.RESERVED)
            await timed(times["set_running"], allocator.set_running(given, "container"))
            oldest.append(given)
    await ledger.close()
    return times


def fsync_floor(folder: Path, rounds: int) -> list[float]:
    """Milliseconds to append a 4 KiB page to a file and fsync it."""
    times = []
    path = folder / "floor"
    with path.open("wb", buffering=0) as file:
        for _ in range(rounds):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    path.unlink()
    return times


def percentile(times: list[float], percent: int) -> float:
    """The value that `percent` of the times do not exceed."""
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


def machine() -> str:
    """Where this ran."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    python = f"Python {platform.python_version()}"
    load = f"load {os.getloadavg()[0]:.1f}"
    return ", ".join([f"{os.cpu_count()} cores", cpu, f"Linux {platform.release()}", python, load])


def show(console: Console, load: str, found: dict[int, Times]) -> None:
    """One table: steps down, fleets across, and the ratio of the largest to the smallest."""
    table = Table(title=f"{load}: milliseconds, p50 / p99")
    table.add_column("step")
    for count in found:
        table.add_column(f"{count} devices", justify="right")
    small, large = min(found), max(found)
    table.add_column(f"{large} : {small}", justify="right")
    for step in STEPS:
        cells = [f"{percentile(t[step], 50):.2f} / {percentile(t[step], 99):.2f}" for t in found.values()]
        ratios = [percentile(found[large][step], p) / percentile(found[small][step], p) for p in (50, 99)]
        table.add_row(step, *cells, " / ".join(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where the ledgers are made; default: a temporary folder")
    parser.add_argument("--rounds", type=int, default=1000, help="leases measured for each cell")
    settings = parser.parse_args()
    console = Console()
    console.print(machine())
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        floor = fsync_floor(folder, settings.rounds)
        halves = " / ".join(f"{percentile(floor, percent):.2f}" for percent in (50, 99))
        console.print(f"floor: 4 KiB and fsync in {folder.parent}: {halves} ms")
        for load in ("history", "queue"):
            found = {}
            for count in FLEETS:
                found[count] = await measure(folder, count, load, settings.rounds)
            show(console, load, found)


if __name__ == "__main__":
    asyncio.run(main())
