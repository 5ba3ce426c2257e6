"""A class through the real hub, on real GPUs: real labs, notebooks' kernels, bursty cells by a seeded script.

Six students on two GPUs for GPUSPAWNER_TURNS_MINUTES (8): each trains for 5 to 30 s of GPU time, then thinks
for 10 to 60 s. The seeds are the same for each GPUSPAWNER_TURNS_WAY:

    turns      in turns; everybody's memory fits on the GPUs
    pressure   in turns; it doesn't fit (22 GiB each on two GPUs of 80), so memory moves to main memory
    whole      two have a GPU each to the end, since people keep their server; the others wait in the queue
    sliced     slices without MPS: the GPU's time is sliced
    mps        slices with MPS

GPUSPAWNER_TURNS_KILLS ("60 helper, 120 broker"): what is killed when, in seconds. No kernel may end, the loss
after a number of steps and the sum over the student's memory must be those of an undisturbed run, and never
may two be awake on a GPU. What was seen is recorded; `turns_ways.py` runs all ways and makes the table.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from notebook import Notebook, notebook
from running import System
from webclient import Client, logged_in, serving, whole_status

pytestmark = pytest.mark.gpu

WAY = os.environ.get("GPUSPAWNER_TURNS_WAY", "turns")
IN_TURNS = WAY in ("turns", "pressure")
MINUTES = float(os.environ.get("GPUSPAWNER_TURNS_MINUTES", "8"))
STUDENTS = int(os.environ.get("GPUSPAWNER_TURNS_STUDENTS", "6"))
GIB = float(os.environ.get("GPUSPAWNER_TURNS_GIB", "22" if WAY == "pressure" else "6"))
KILLS = os.environ.get("GPUSPAWNER_TURNS_KILLS", "")
GPUS = 2
PROMISE = f"{round(GIB + 14)}G"


def _site(way: str) -> dict[str, Any]:
    """Pools and tiers; the tier is called as its way."""
    if way in ("turns", "pressure"):
        pool: dict[str, Any] = {
            "mode": "turns", "seats": STUDENTS, "sleep_memory": PROMISE, "pause_after": 1.0, "min_turn": 1.0,
            "max_turn": 15.0, "sleep_after": 25.0,
        }  # fmt: skip
        tier: dict[str, Any] = {"mode": "turns", "memory": PROMISE}
    elif way == "whole":
        pool, tier = {"mode": "whole"}, {"devices": 1}
    else:
        pool = {"mode": "slice", "slices": -(-STUDENTS // GPUS), "mps": way == "mps"}
        tier = {"mode": "slice"}
    return {
        "pools": [{"name": "class", **pool}],
        "tiers": [{"name": "cpu"}, {"name": WAY, "mem_limit": "8G", **tier}],
    }


SITE = _site(WAY)
CHECKED_STEPS = 200
NOTICE = Path(__file__).resolve().parents[2] / "images" / "lab-base" / "gpuspawner_notice.py"
PREPARE = """
import json, time, torch
_scope = {"__name__": "gpuspawner_notice"}
exec(compile(SOURCE, "gpuspawner_notice.py", "exec"), _scope)
_scope["load_ipython_extension"](get_ipython())
torch.backends.cuda.matmul.allow_tf32 = False
generator = torch.Generator(device="cuda").manual_seed(NUMBER)
memory = torch.randint(0, 1 << 31, (int(GIB * (1 << 30)) // 8,), generator=generator, device="cuda")

def checksum():
    return int(memory.sum().item())

def train(steps):
    torch.manual_seed(7)
    model = torch.nn.Sequential(
        torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 4096), torch.nn.ReLU(),
        torch.nn.Linear(4096, 10),
    ).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.randn(4096, 1024, device="cuda")
    target = torch.randint(0, 10, (4096,), device="cuda")
    first = loss_then = None
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(data), target)
        loss.backward()
        optimizer.step()
        if step == 0:
            torch.cuda.synchronize()
            first = time.time()
        if step == CHECKED - 1:
            loss_then = loss.item()
    torch.cuda.synchronize()
    print(json.dumps({"first": first, "end": time.time(), "loss": loss_then, "steps": steps}))

print(json.dumps({"sum": checksum()}))
"""


def prepare(number: int) -> str:
    """The notebook's first cell: memory of its own, the training, and the lab's own line about waiting."""
    values = {"SOURCE": NOTICE.read_text(), "NUMBER": number, "GIB": GIB, "CHECKED": CHECKED_STEPS}
    code = PREPARE
    for name, value in values.items():
        code = re.sub(rf"\b{name}\b", lambda _, value=value: repr(value), code, count=1)  # type: ignore[misc]
    return code


@dataclass
class Seen:
    """What the class came to. `waits` are from pressing Run to the first result."""

    waits: list[float] = field(default_factory=list)
    steps: int = 0
    ended: float = 0.0
    """When the last cell had ended, by time.time()."""
    losses: list[float] = field(default_factory=list)
    sums: list[tuple[int, int]] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    """Times at which two were awake on a GPU."""
    awake: Counter[int] = field(default_factory=Counter)
    """How many GPUs had somebody awake, by sample."""
    lines: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)


async def live(number: int, student: Notebook, speed: float, end: float, seen: Seen) -> None:
    """Trains and thinks until the end; then its memory is compared."""
    draw = random.Random(number)
    before = (await student.run('print(json.dumps({"sum": checksum()}))'))["sum"]
    await asyncio.sleep(draw.uniform(0, 10))
    while time.time() < end:
        steps = max(CHECKED_STEPS, int(draw.uniform(5, 30) * speed))
        pressed = time.time()
        found = await student.run(f"train({steps})")
        seen.waits.append(found["first"] - pressed)
        seen.steps += found["steps"]
        seen.ended = max(seen.ended, found["end"])
        seen.losses.append(found["loss"])
        await asyncio.sleep(max(0.0, min(draw.uniform(10, 60), end - time.time())))
    after = (await student.run('print(json.dumps({"sum": checksum()}))'))["sum"]
    seen.sums.append((before, after))
    seen.lines += student.lines


async def watch(admin: Client, seen: Seen) -> None:
    """Who is awake, as the API says it; until cancelled. A broker that was just killed doesn't answer."""
    while True:
        with suppress(AssertionError, aiohttp.ClientError, ValueError, TimeoutError):
            status = await whole_status(admin)
            where = [
                lease["turn"]["gpu_uuid"]
                for lease in status["leases"]
                if lease["turn"] is not None and lease["turn"]["turn"] == "awake"
            ]
            seen.awake[len(where)] += 1
            if len(set(where)) < len(where):
                seen.shared.append(f"{time.time():.1f} {where}")
        await asyncio.sleep(0.5)


def parse_kills(text: str) -> list[tuple[float, str]]:
    """ "60 helper, 120 broker" as pairs, in order. Raises ValueError for anything else."""
    found = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        seconds, what = part.split()
        if what not in ("helper", "broker"):
            raise ValueError(f"{what!r} can't be killed: helper, broker")
        found.append((float(seconds), what))
    return sorted(found)


def helper_of(broker_pid: int, proc: Path = Path("/proc")) -> int | None:
    """The process that talks to the driver: a child of the broker."""
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == broker_pid and "checkpoint.helper" in (folder / "cmdline").read_text():
                return int(folder.name)
    return None


async def kill(system: System, began: float, seen: Seen) -> None:
    """Kills the broker and its helper at their times, whatever they are doing."""
    for at, what in parse_kills(KILLS):
        await asyncio.sleep(max(0.0, began + at - time.time()))
        broker = system.broker_pid()
        pid = broker if what == "broker" or broker is None else helper_of(broker)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            seen.killed[what] += 1


def switches(metrics: str) -> list[str]:
    """The metrics of turns that count something."""
    lines = [line for line in metrics.splitlines() if line.startswith("gpuspawner_turn_")]
    return [
        line for line in lines if "_bucket" not in line and "_created" not in line and line[-4:] != " 0.0"
    ]


async def queue_up(client: Client) -> None:
    """Asks for a server and doesn't wait for it."""
    await client.text("hub/home")
    await client.send("POST", client.api_path, {"profile": WAY})


async def test_a_class(system: System, record: Callable[[str, Any], None]) -> None:
    seen = Seen()
    places = GPUS if WAY == "whole" else STUDENTS
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(logged_in(system, "admin"))
        clients = [await stack.enter_async_context(logged_in(system, f"student{n}")) for n in range(STUDENTS)]
        started = [await stack.enter_async_context(serving(each, WAY)) for each in clients[:places]]
        record("click to ready (s)", [round(each, 2) for each in started])
        students = [await stack.enter_async_context(notebook(each)) for each in clients[:places]]
        # The first one alone: what an undisturbed run gives, and how fast it is.
        await students[0].run(prepare(0))
        reference = await students[0].run(f"train({CHECKED_STEPS})")
        alone = await students[0].run("train(300)")
        speed = 300 / (alone["end"] - alone["first"])
        record("steps/s of one alone", round(speed, 1))
        await asyncio.gather(
            *(student.run(prepare(number)) for number, student in enumerate(students[1:], 1))
        )
        for client in clients[places:]:
            await queue_up(client)
        began = time.time()
        beside = [asyncio.create_task(watch(admin, seen)), asyncio.create_task(kill(system, began, seen))]
        end = began + MINUTES * 60
        await asyncio.gather(*(live(n, each, speed, end, seen) for n, each in enumerate(students)))
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        status = await whole_status(admin)
        assert len(status["devices"]) == GPUS
        waiting = [lease["user"] for lease in status["leases"] if lease["state"] == "waiting"]
        assert len(waiting) == STUDENTS - places
        seen.waits += [MINUTES * 60] * len(waiting)  # they waited in the queue all the time
        metrics = await admin.text("services/gpu/metrics")
        for client in clients[places:]:
            await client.send("DELETE", client.api_path)
    note(record, seen, alone_speed=speed, began=began, metrics=metrics)
    record("losses", [len(seen.losses), reference["loss"], sorted(set(seen.losses))])
    assert seen.killed == Counter(what for _, what in parse_kills(KILLS))
    assert seen.shared == []
    assert all(before == after for before, after in seen.sums)
    assert len(seen.sums) == places
    assert set(seen.losses) == {reference["loss"]}


def note(
    record: Callable[[str, Any], None], seen: Seen, *, alone_speed: float, began: float, metrics: str
) -> None:
    """What the class came to."""
    waits = sorted(seen.waits)
    told = statistics.median(waits), waits[int(0.95 * (len(waits) - 1))], waits[-1]
    seconds = seen.ended - began
    record("way", WAY)
    record("GiB of each", GIB)
    record("killed", dict(seen.killed))
    record("switches", switches(metrics))
    record("cells", len(waits))
    record("waits p50, p95, most (s)", [round(each, 3) for each in told])
    record("steps in all", seen.steps)
    record("seconds until the last cell ended", round(seconds, 1))
    record("used part of the GPUs' time", round(seen.steps / alone_speed / seconds / GPUS, 3))
    record("GPUs with somebody awake, samples", dict(seen.awake))
    record("lines shown", [len(seen.lines), *seen.lines[:4]])
