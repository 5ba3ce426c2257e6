"""Steps per second of a small training loop: alone, on slices, time-slicing, and through MPS set up by hand.

All students warm up, then meet at set times, the windows: for each crowd (1, 2, 8, 15) the first so many
train together for some seconds. What is compared ran on one machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from gpuspawner.node.mps.control import find_program
from gpuspawner.node.mps.patch import MPS_MOUNT
from lab import inspected

from tests.running import System
from tests.webclient import Client, logged_in, start, stop, whole_status

pytestmark = pytest.mark.gpu

STUDENTS = int(os.environ.get("GPUSPAWNER_STUDENTS", "15"))
CROWDS = tuple(crowd for crowd in (1, 2, 8, 15) if crowd <= STUDENTS)
WINDOW_SECONDS = float(os.environ.get("GPUSPAWNER_WINDOW", "6"))
WARM_UP_SECONDS = float(os.environ.get("GPUSPAWNER_WARM_UP", "25"))

TRAIN = """
import json, sys, time, torch
student, first, length, windows = json.loads(ARGUMENTS)
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
for number, crowd in windows:
    begin = first + number * (length + 1)
    if student >= crowd: continue
    while time.time() < begin: time.sleep(0.001)
    steps, start = 0, time.time()
    while time.time() < begin + length:
        for _ in range(10): step()
        torch.cuda.synchronize(); steps += 10
    rates[number] = steps / (time.time() - start)
print(json.dumps({"late": late, "rates": rates}))
"""
ASIDE = """
import subprocess, sys
done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
print(done.stdout or done.stderr)
"""
Windows = list[tuple[int, int]]
"""When who trains: the number of the window, and how many students train in it."""


def code_for(student: int, first: float, windows: Windows) -> str:
    """The training loop of one student; `first` is when the first window begins, in seconds of the epoch."""
    arguments = json.dumps([student, first, WINDOW_SECONDS, windows])
    return f"ARGUMENTS = {arguments!r}\n{TRAIN}"


def rates_of(answers: list[str], windows: Windows) -> dict[int, list[float]]:
    """The students' steps/s in each window; fails if somebody was not ready in time."""
    read = [json.loads(answer) for answer in answers]
    assert max(each["late"] for each in read) < 0, "warm-up took too long: raise GPUSPAWNER_WARM_UP"
    rates = {
        number: [each["rates"][str(number)] for each in read if str(number) in each["rates"]]
        for number, _ in windows
    }
    assert [len(rates[number]) for number, _ in windows] == [crowd for _, crowd in windows]
    return rates


@asynccontextmanager
async def class_of_students(system: System) -> AsyncIterator[list[Client]]:
    """All students with a slice each, in labs of the hub."""
    async with AsyncExitStack() as stack:
        names = [f"student-{number:02d}" for number in range(STUDENTS)]
        clients = [await stack.enter_async_context(logged_in(system, name)) for name in names]
        try:
            await asyncio.gather(*(start(client, "slice") for client in clients))
            yield clients
        finally:
            await asyncio.gather(*(stop(client) for client in clients))


async def in_labs(clients: list[Client], first: float, windows: Windows) -> dict[int, list[float]]:
    """The windows in the students' labs: from a notebook, in a process of its own as by hand."""
    work = [
        client.run_in_kernel(f"CODE = {code_for(number, first, windows)!r}\n{ASIDE}")
        for number, client in enumerate(clients)
    ]
    return rates_of(await asyncio.gather(*work), windows)


@contextmanager
def mps_by_hand(folder: Path, uuid: str, percent: float, memory_bytes: int) -> Iterator[Path]:
    """A control daemon as its documentation starts it, with the limits of a slice; gives its pipe folder."""
    program = find_program().path
    assert program is not None
    pipe, log = folder / "pipe", folder / "log"
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": uuid,
        "CUDA_MPS_PIPE_DIRECTORY": str(pipe),
        "CUDA_MPS_LOG_DIRECTORY": str(log),
    }
    folder.mkdir()
    for each in (folder, pipe, log):
        each.mkdir(exist_ok=True)
        each.chmod(0o755)
    subprocess.run([str(program), "-d"], env=environment, check=True)
    commands = [
        f"set_default_active_thread_percentage {percent:g}",
        f"set_default_device_pinned_mem_limit 0 {memory_bytes >> 20}M",
    ]
    try:
        for command in commands:
            subprocess.run([str(program)], env=environment, input=command, text=True, check=True)
        yield pipe
    finally:
        subprocess.run([str(program)], env=environment, input="quit", text=True, check=False, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def in_containers(
    model: dict[str, Any], pipe: Path, first: float, windows: Windows
) -> dict[int, list[float]]:
    """The windows in containers started by hand: like that lab, but for the hub and the daemon."""
    mount = {"Type": "bind", "Source": str(pipe), "Target": MPS_MOUNT, "ReadOnly": True}
    host = {**model["HostConfig"], "NetworkMode": "none", "PortBindings": {}, "Mounts": [mount]}
    with closing(docker.APIClient(timeout=300)) as engine:
        made = [
            engine.create_container(
                model["Config"]["Image"],
                ["python3", "-c", code_for(number, first, windows)],
                environment=model["Config"]["Env"],
                user=model["Config"]["User"],
                host_config=host,
            )["Id"]
            for number in range(STUDENTS)
        ]
        try:
            for each in made:
                engine.start(each)
            for each in made:
                assert engine.wait(each)["StatusCode"] == 0, engine.logs(each).decode()[-2000:]
            outputs = [engine.logs(each, stderr=False).decode() for each in made]
        finally:
            for each in made:
                engine.remove_container(each, force=True)
    return rates_of(outputs, windows)


def site_of(*, mps: bool) -> dict[str, Any]:
    """A pool of as many slices as students, with MPS or without."""
    pool = {"name": "class", "mode": "slice", "slices": STUDENTS, "mps": mps}
    return {"pools": [pool], "tiers": [{"name": "cpu"}, {"name": "slice", "mode": "slice"}]}


async def test_slices_against_time_slicing(
    start_system: Callable[[dict[str, Any]], Any], record: Callable[[str, Any], None]
) -> None:
    results = {}
    windows = list(enumerate(CROWDS))
    for name, mps in (("slices (MPS)", True), ("time-slicing", False)):
        with start_system(site_of(mps=mps)) as system:
            async with class_of_students(system) as clients:
                results[name] = await in_labs(clients, time.time() + WARM_UP_SECONDS, windows)
        for number, crowd in windows:
            rates = results[name][number]
            row = {
                "sum": round(sum(rates), 1),
                "mean": round(sum(rates) / crowd, 1),
                "least": round(min(rates), 1),
            }
            record(f"{name}, {crowd} students (steps/s)", row)
    for number, crowd in windows:
        ratio = sum(results["slices (MPS)"][number]) / sum(results["time-slicing"][number])
        record(f"{crowd} students: slices over time-slicing", round(ratio, 2))


async def test_slices_against_mps_by_hand(
    start_system: Callable[[dict[str, Any]], Any], record: Callable[[str, Any], None]
) -> None:
    """In pairs: both classes are there all the time and train in turn, ABBA for each crowd."""
    pairs = [
        (crowd, (4 * place, 4 * place + 3), (4 * place + 1, 4 * place + 2))
        for place, crowd in enumerate(CROWDS)
    ]
    ours = [(number, crowd) for crowd, numbers, _ in pairs for number in numbers]
    theirs = [(number, crowd) for crowd, _, numbers in pairs for number in numbers]
    with start_system(site_of(mps=True)) as system:
        async with class_of_students(system) as clients, logged_in(system, "admin") as admin:
            lease = (await whole_status(admin))["leases"][0]
            uuid, percent, size = lease["device_uuids"][0], lease["compute_percent"], lease["memory_bytes"]
            model = inspected(system, lease["user"])
            with mps_by_hand(Path("/tmp") / f"gst-{os.getpid()}", uuid, percent, size) as pipe:
                first = time.time() + WARM_UP_SECONDS
                by_hand = asyncio.to_thread(in_containers, model, pipe, first, theirs)
                labs, hand = await asyncio.gather(in_labs(clients, first, ours), by_hand)
    for crowd, our_numbers, their_numbers in pairs:
        ours_sums = [sum(labs[number]) for number in our_numbers]
        hand_sums = [sum(hand[number]) for number in their_numbers]
        row = {
            "slices": [round(each, 1) for each in ours_sums],
            "by hand": [round(each, 1) for each in hand_sums],
        }
        record(f"{crowd} students (steps/s, two windows each)", row)
        record(f"{crowd} students: slices over MPS by hand", round(sum(ours_sums) / sum(hand_sums), 3))
