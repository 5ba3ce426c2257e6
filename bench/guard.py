"""What the guard costs: CPU time of its threads while it watches 200 real processes.

NVML is the scripted one of the tests, so its own share is missing: measure that on a GPU machine with
`--nvml real`, which watches the machine's own processes. The pair is the same process without a guard.

    python bench/guard.py                     # 200 processes on 8 GPUs, 30 s
    python bench/guard.py --gpus 1            # all on one GPU
    python bench/guard.py --nvml real         # on a GPU machine, with the processes that run there
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import rich

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpuspawner.node.guard.guard import Guard, GuardEvent
from gpuspawner.node.guard.judge import Quota, QuotaPlan
from gpuspawner.node.inventory import Inventory, NvmlInventory
from gpuspawner.node.processes import Process, ProcessTable

from tests.nvml import scripted
from tests.nvml.scripted import Gpu

LIMIT_PERCENT = 1.0
GIB = 1 << 30


@contextlib.contextmanager
def sleepers(count: int) -> Iterator[list[int]]:
    """The pids of processes that do nothing."""
    processes = [subprocess.Popen(["sleep", "3600"]) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


class _InContainers(ProcessTable):
    """As if the processes lay in containers, 25 in each: what is read and remembered is the same."""

    def look(self, pid: int) -> Process | None:
        found = super().look(pid)
        if found is None or found.container_ids:
            return found
        return replace(found, container_ids=(f"{found.pid // 25:064x}",))


async def cpu_percent(inventory: Inventory, plan: QuotaPlan, seconds: float) -> tuple[float, float]:
    """CPU of one core that this process takes with the guard, and without, in percent."""

    async def on_event(event: GuardEvent) -> None:
        raise AssertionError(event)

    shares = []
    for guarded in (False, True):
        guard = Guard(inventory, on_event)
        if guarded:
            await guard.start(plan)
        await asyncio.sleep(1)
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        shares.append(100 * (time.process_time() - cpu) / (time.monotonic() - wall))
        if guarded:
            assert guard.failures == 0
            await guard.stop()
    return shares[1], shares[0]


def scripted_run(count: int, gpus: int, seconds: float) -> tuple[float, float]:
    """The shares on the scripted library."""
    uuids = [f"GPU-{number:08x}" for number in range(gpus)]
    with tempfile.TemporaryDirectory() as folder, scripted.loaded(Path(folder) / "nvml") as script:
        script.gpus = [Gpu(uuid) for uuid in uuids]
        with sleepers(count) as pids:
            script.lines = [
                f"process gpu={number % gpus} pid={pid} memory={GIB} mps=1" for number, pid in enumerate(pids)
            ]
            script.write()
            containers = {f"{pid // 25:064x}" for pid in pids}
            quotas = tuple(
                Quota(container[-8:], container, uuid, 200 * GIB, True)
                for container in sorted(containers)
                for uuid in uuids
            )
            inventory = NvmlInventory()
            found = asyncio.run(cpu_percent(inventory, QuotaPlan(quotas), seconds))
            inventory.close()
    return found


def main() -> int:
    """0 if the guard takes less than one percent of a core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=200)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--nvml", choices=("scripted", "real"), default="scripted")
    wanted = parser.parse_args()
    if wanted.nvml == "real":
        inventory = NvmlInventory()
        plan = QuotaPlan(tuple(Quota("none", "0" * 64, each.uuid, 1 << 60) for each in inventory.devices()))
        share, alone = asyncio.run(cpu_percent(inventory, plan, wanted.seconds))
        inventory.close()
        what = f"{len(plan.quotas)} real GPUs"
    else:
        import gpuspawner.node.guard.guard as module

        module.ProcessTable = _InContainers  # type: ignore[attr-defined]
        share, alone = scripted_run(wanted.processes, wanted.gpus, wanted.seconds)
        what = f"{wanted.processes} processes on {wanted.gpus} GPUs"
    rich.print(
        f"{what}: the guard takes {share:.2f} % of a core (the process without it {alone:.2f} %), "
        f"{share / LIMIT_PERCENT:.2f} times the limit of {LIMIT_PERCENT:g} %"
    )
    return 0 if share < LIMIT_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
