"""Steps per second of a small training loop: alone, on slices, time-slicing, and through MPS set up by hand.

All students warm up, then meet at set times: for each crowd (1, 2, 8, 15) the first so many train together
for some seconds. What is compared ran on one machine, one after the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.node.mpscontrol import find_program
from running import System
from webclient import Client, logged_in, start, stop

pytestmark = pytest.mark.gpu

STUDENTS = 15
CROWDS = (1, 2, 8, 15)
WINDOW_SECONDS = 6.0
WARM_UP_SECONDS = float(os.environ.get("GPUSPAWNER_WARM_UP", "25"))

TRAIN = """
import json, sys, time, torch
student, first, window, crowds = json.loads(ARGUMENTS)
torch.manual_seed(student)
layers = [torch.nn.Linear(784, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024), torch.nn.ReLU()]
model = torch.nn.Sequential(*layers, torch.nn.Linear(1024, 10)).cuda()
adam = torch.optim.Adam(model.parameters())
x = torch.randn(256, 784, device="cuda"); y = torch.randint(10, (256,), device="cuda")
def step():
    adam.zero_grad(); torch.nn.functional.cross_entropy(model(x), y).backward(); adam.step()
for _ in range(200): step()
torch.cuda.synchronize()
late = time.time() - first
rates = {}
for number, crowd in enumerate(crowds):
    begin = first + number * (window + 1)
    if student >= crowd: continue
    while time.time() < begin: time.sleep(0.001)
    steps, start = 0, time.time()
    while time.time() < begin + window:
        for _ in range(10): step()
        torch.cuda.synchronize(); steps += 10
    rates[crowd] = steps / (time.time() - start)
print(json.dumps({"late": late, "rates": rates}))
"""


def code_for(student: int, first: float) -> str:
    """The training loop of one student; `first` is when the first window begins, in seconds of the epoch."""
    arguments = json.dumps([student, first, WINDOW_SECONDS, CROWDS])
    return f"ARGUMENTS = {arguments!r}\n{TRAIN}"


def summary(answers: list[str]) -> dict[str, dict[str, float]]:
    """Sum and mean of the steps/s by crowd; fails if somebody was not ready in time."""
    read = [json.loads(answer) for answer in answers]
    assert max(each["late"] for each in read) < 0, "warm-up took too long: raise GPUSPAWNER_WARM_UP"
    result = {}
    for crowd in CROWDS:
        rates = [each["rates"][str(crowd)] for each in read if str(crowd) in each["rates"]]
        assert len(rates) == crowd
        result[str(crowd)] = {
            "sum": round(sum(rates), 1),
            "mean": round(sum(rates) / crowd, 1),
            "least": round(min(rates), 1),
        }
    return result


async def through_the_hub(system: System, tier: str) -> dict[str, dict[str, float]]:
    """The crowds in labs of the hub."""
    async with AsyncExitStack() as stack:
        names = [f"student-{number:02d}" for number in range(STUDENTS)]
        clients: list[Client] = [await stack.enter_async_context(logged_in(system, name)) for name in names]
        try:
            await asyncio.gather(*(start(client, tier) for client in clients))
            first = time.time() + WARM_UP_SECONDS
            work = (client.run_in_kernel(code_for(number, first)) for number, client in enumerate(clients))
            return summary(await asyncio.gather(*work))
        finally:
            await asyncio.gather(*(stop(client) for client in clients))


@contextmanager
def mps_by_hand(folder: Path, percent: float, memory_gib: float) -> Iterator[dict[str, str]]:
    """A control daemon as its documentation starts it, with the limits of a slice."""
    program = find_program().path
    assert program is not None
    environment = {
        **os.environ,
        "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"),
        "CUDA_MPS_LOG_DIRECTORY": str(folder / "log"),
    }
    for name in ("pipe", "log"):
        (folder / name).mkdir()
    subprocess.run([str(program), "-d"], env=environment, check=True)
    commands = [
        f"set_default_active_thread_percentage {percent}",
        f"set_default_device_pinned_mem_limit 0 {int(memory_gib * 1024)}M",
    ]
    try:
        for command in commands:
            subprocess.run([str(program)], env=environment, input=command, text=True, check=True)
        yield environment
    finally:
        subprocess.run([str(program)], env=environment, input="quit", text=True, check=False, timeout=30)


async def by_hand(environment: dict[str, str]) -> dict[str, dict[str, float]]:
    """The crowds as plain processes of this machine."""
    first = time.time() + WARM_UP_SECONDS
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code_for(number, first), env=environment, stdout=subprocess.PIPE
        )
        for number in range(STUDENTS)
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    return summary([output.decode() for output, _ in outputs])


SLICES = {"name": "class", "mode": "slice", "slices": STUDENTS}
TIERS = [{"name": "cpu"}, {"name": "slice", "mode": "slice"}]


async def test_slices_against_time_slicing_and_mps_by_hand(
    start_system: Callable[[dict[str, Any]], Any], record: Callable[[str, Any], None], tmp_path: Path
) -> None:
    results = {}
    with start_system({"pools": [{**SLICES, "mps": True}], "tiers": TIERS}) as system:
        results["slices (MPS)"] = await through_the_hub(system, "slice")
    record("steps/s", results)
    with mps_by_hand(tmp_path, 200 / STUDENTS, 5) as environment:
        results["MPS by hand"] = await by_hand(environment)
    with start_system({"pools": [{**SLICES, "mps": False}], "tiers": TIERS}) as system:
        results["time-slicing"] = await through_the_hub(system, "slice")
    for crowd in map(str, CROWDS):
        sums = {name: result[crowd]["sum"] for name, result in results.items()}
        record(
            f"{crowd} students: slices over time-slicing",
            round(sums["slices (MPS)"] / sums["time-slicing"], 2),
        )
        record(
            f"{crowd} students: slices over MPS by hand", round(sums["slices (MPS)"] / sums["MPS by hand"], 3)
        )
