"""A class through the real hub, on real GPUs: real labs, notebooks' kernels, bursty cells by a seeded script.

Three students a GPU, six on two, for GPUSPAWNER_TURNS_MINUTES (8): each trains for 5 to 30 s of GPU time,
then thinks for 10 to 60 s. The seeds are the same for each GPUSPAWNER_TURNS_WAY:

    turns      in turns; everybody's memory fits on the GPUs
    pressure   in turns; it doesn't fit (22 GiB each on two GPUs of 80), so memory moves to main memory
    whole      one has each GPU to the end, since people keep their server; the others wait in the queue
    sliced     slices without MPS: the GPU's time is sliced
    mps        slices with MPS

GPUSPAWNER_TURNS_KILLS ("60 helper, 120 broker sleep", see `kills.py`): what is killed, from which second on,
and in which phase. No kernel may end, the loss after a number of steps and the sum over the student's memory
must be those of an undisturbed run, and never may two be awake on a GPU. Each cell and each kill is printed
at once, and a run that hangs ends a while after its time and says where it was. What was seen is recorded;
`turns_ways.py` runs all ways and makes the table.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kills import Killer, parse_kills
from machine import CHOSEN
from notebook import Notebook, notebook
from rows import Rows

from tests.running import System
from tests.webclient import Client, logged_in, serving, whole_status

pytestmark = pytest.mark.gpu

WAY = os.environ.get("GPUSPAWNER_TURNS_WAY", "turns")
IN_TURNS = WAY in ("turns", "pressure")
MINUTES = float(os.environ.get("GPUSPAWNER_TURNS_MINUTES", "8"))
GPUS = len(os.environ.get(CHOSEN, "0,1").split(","))
STUDENTS = int(os.environ.get("GPUSPAWNER_TURNS_STUDENTS", 3 * GPUS))
MAX_TURN_SECONDS = float(os.environ.get("GPUSPAWNER_TURNS_MAX_TURN", "15"))
GIB = float(os.environ.get("GPUSPAWNER_TURNS_GIB", "22" if WAY == "pressure" else "6"))
KILLS = os.environ.get("GPUSPAWNER_TURNS_KILLS", "")
SLEEP_AFTER_SECONDS = float(os.environ.get("GPUSPAWNER_TURNS_SLEEP_AFTER", "25"))
LATE_SECONDS = 150.0
"""So long after the class's time the last cells, and the sums over all memory, may end."""
LOOK_SECONDS = 0.25
NOTED_SECONDS = 0.2
PROMISE = f"{round(GIB + 14)}G"


def _site(way: str) -> dict[str, Any]:
    """Pools and tiers; the tier is called as its way."""
    if way in ("turns", "pressure"):
        pool: dict[str, Any] = {
            "mode": "turns", "seats": STUDENTS, "sleep_memory": PROMISE, "pause_after": 1.0, "min_turn": 1.0,
            "max_turn": MAX_TURN_SECONDS, "sleep_after": SLEEP_AFTER_SECONDS,
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
    )
    torch.zeros(1, device="cuda").add_(1)
    torch.cuda.synchronize()
    touched = time.time()
    model = model.cuda()
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
    print(json.dumps({
        "touched": touched, "first": first, "end": time.time(), "loss": loss_then, "steps": steps,
    }))

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

    rows: Rows
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
    turns: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """By user: since when they were awake, each time, and whether they were paused or asleep before."""
    last: dict[str, str] = field(default_factory=dict)
    """By user: where they were at the last look."""
    after_turn: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the begin of a turn to the first operation's result, by where the memory was before."""

    def look(self, leases: list[dict[str, Any]]) -> None:
        """One answer of the API."""
        turns = {each["user"]: each["turn"] for each in leases if each["turn"] is not None}
        for user, turn in turns.items():
            since = datetime.fromisoformat(turn["since"]).timestamp()
            mine = self.turns.setdefault(user, [])
            if turn["turn"] == "awake" and (not mine or since - mine[-1][0] > 0.1):
                mine.append((since, self.last.get(user, "asleep")))
            if turn["turn"] != "awake":
                self.last[user] = turn["turn"]
        where = [turn["gpu_uuid"] for turn in turns.values() if turn["turn"] == "awake"]
        self.awake[len(where)] += 1
        if len(set(where)) < len(where):
            self.shared.append(f"{time.time():.1f} {where}")

    def ran(self, user: str, pressed: float, found: dict[str, Any]) -> None:
        """A cell has ended."""
        self.waits.append(found["first"] - pressed)
        self.steps += found["steps"]
        self.ended = max(self.ended, found["end"])
        self.losses.append(found["loss"])
        # The broker notes the turn's begin when the wake is done; by then the program may have computed.
        latest = found["touched"] + NOTED_SECONDS
        begun = [each for each in self.turns.get(user, []) if pressed < each[0] <= latest]
        after = {"wait": round(self.waits[-1], 3), "steps": found["steps"], "loss": found["loss"]}
        if begun:
            since, before = begun[-1]
            self.after_turn.setdefault(before, []).append(found["touched"] - since)
            after |= {"before": before, "first operation": round(found["touched"] - since, 4)}
        self.rows.row(f"{user}, cell {len(self.waits)}", after)

    def killed_one(self, name: str, what: Any) -> None:
        """The broker or its helper was killed."""
        self.killed[name] += 1
        self.rows.row(f"killed: {name}", what)


async def live(number: int, student: Notebook, speed: float, end: float, seen: Seen) -> None:
    """Trains and thinks until the end; then its memory is compared."""
    draw = random.Random(number)
    before = (await student.run('print(json.dumps({"sum": checksum()}))'))["sum"]
    await asyncio.sleep(draw.uniform(0, 10))
    while time.time() < end:
        steps = max(CHECKED_STEPS, int(draw.uniform(5, 30) * speed))
        pressed = time.time()
        seen.ran(f"student{number}", pressed, await student.run(f"train({steps})"))
        await asyncio.sleep(max(0.0, min(draw.uniform(10, 60), end - time.time())))
    after = (await student.run('print(json.dumps({"sum": checksum()}))'))["sum"]
    seen.sums.append((before, after))
    seen.lines += student.lines
    seen.rows.row(f"student{number}, sums equal", before == after, ok=before == after)


async def watch(admin: Client, seen: Seen) -> None:
    """Who is awake, as the API says it; until cancelled. A broker that was just killed doesn't answer."""
    while True:
        with suppress(AssertionError, aiohttp.ClientError, ValueError, TimeoutError):
            seen.look((await whole_status(admin))["leases"])
        await asyncio.sleep(LOOK_SECONDS)


async def run_class(
    admin: Client, students: list[Notebook], speed: float, seen: Seen, beside: Awaitable[None]
) -> None:
    """All live until the end of the class, while something happens beside them. A hang is a failed row."""
    end = time.time() + MINUTES * 60
    watching, happening = asyncio.create_task(watch(admin, seen)), asyncio.ensure_future(beside)
    lives = [asyncio.create_task(live(n, each, speed, end, seen)) for n, each in enumerate(students)]
    done, late = await asyncio.wait(lives, timeout=MINUTES * 60 + LATE_SECONDS)
    for task in (watching, *late):
        task.cancel()
    if late:
        leases = (await whole_status(admin))["leases"]
        seen.rows.row(f"{len(late)} did not end", [(each["user"], each["turn"]) for each in leases], ok=False)
    for task in done:
        if (error := task.exception()) is not None:
            seen.rows.row("a student failed", f"{type(error).__name__}: {error}"[-500:], ok=False)
    await asyncio.gather(watching, *late, return_exceptions=True)
    try:
        await asyncio.wait_for(happening, LATE_SECONDS / 5)
    except Exception as error:  # a row, so that the class is recorded
        seen.rows.row("the kills", f"{type(error).__name__}: {error}"[-500:], ok=False)


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
    seen = Seen(Rows())
    places = GPUS if WAY == "whole" else STUDENTS
    kills = parse_kills(KILLS)
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(logged_in(system, "admin"))
        clients = [await stack.enter_async_context(logged_in(system, f"student{n}")) for n in range(STUDENTS)]
        started = [await stack.enter_async_context(serving(each, WAY)) for each in clients[:places]]
        record("click to ready (s)", [round(each, 2) for each in started])
        students = [await stack.enter_async_context(notebook(each)) for each in clients[:places]]
        reference, speed = await alone(students)
        record("steps/s of one alone", round(speed, 1))
        for client in clients[places:]:
            await queue_up(client)
        seen.rows.row("the class begins", {"speed": round(speed, 1), "loss": reference})
        began = time.time()
        killer = Killer(system, admin, seen.killed_one)
        await run_class(admin, students, speed, seen, killer.run(kills, began))
        status = await whole_status(admin)
        waiting = [lease["user"] for lease in status["leases"] if lease["state"] == "waiting"]
        seen.waits += [MINUTES * 60] * len(waiting)  # they waited in the queue all the time
        metrics = await admin.text("services/gpu/metrics")
        note(record, seen, alone_speed=speed, began=began, metrics=metrics)
        record("losses", [len(seen.losses), reference, sorted(set(seen.losses))])
        for client in clients[places:]:
            await client.send("DELETE", client.api_path)
    assert seen.rows.failed == []
    assert (len(status["devices"]), len(waiting)) == (GPUS, STUDENTS - places)
    assert seen.killed == Counter(kill.name for kill in kills)
    assert seen.shared == []
    assert len(seen.sums) == places
    assert set(seen.losses) == {reference}


async def alone(students: list[Notebook]) -> tuple[float, float]:
    """The loss of an undisturbed run and its steps/s, of the first; then the others' first cells."""
    await students[0].run(prepare(0))
    reference = await students[0].run(f"train({CHECKED_STEPS})")
    alone = await students[0].run("train(300)")
    await asyncio.gather(*(student.run(prepare(number)) for number, student in enumerate(students[1:], 1)))
    return reference["loss"], 300 / (alone["end"] - alone["first"])


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
    record("students, GPUs", [STUDENTS, GPUS])
    record("used part of the GPUs' time", round(seen.steps / alone_speed / seconds / GPUS, 3))
    record("GPUs with somebody awake, samples", dict(seen.awake))
    record("lines shown", [len(seen.lines), *seen.lines[:4]])
    for before, seconds in seen.after_turn.items():
        ordered = sorted(seconds)
        told = len(ordered), statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]
        record(f"first operation after a turn's begin, was {before} (n, p50, p95, most, s)", told)
