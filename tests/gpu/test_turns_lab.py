"""A class in turns through the real hub: real labs, notebooks' kernels, bursty cells by a seeded script.

Six students on two GPUs for GPUSPAWNER_TURNS_MINUTES (8): each trains for 5 to 30 s of GPU time, then thinks
for 10 to 60 s. No kernel may end, the loss after a number of steps and the sum over the student's memory must
be those of an undisturbed run, and never may two be awake on a GPU. What was seen is printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import statistics
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from webclient import Client, execute_request, logged_in, serving, whole_status

pytestmark = pytest.mark.gpu

MINUTES = float(os.environ.get("GPUSPAWNER_TURNS_MINUTES", "8"))
STUDENTS = int(os.environ.get("GPUSPAWNER_TURNS_STUDENTS", "6"))
GIB = float(os.environ.get("GPUSPAWNER_TURNS_GIB", "6"))
SITE: dict[str, Any] = {
    "pools": [
        {
            "name": "turns", "mode": "turns", "seats": STUDENTS, "sleep_memory": "20G", "pause_after": 1.0,
            "min_turn": 1.0, "max_turn": 15.0, "sleep_after": 25.0,
        }
    ],
    "tiers": [{"name": "cpu"}, {"name": "turns", "mode": "turns", "memory": "20G", "mem_limit": "8G"}],
}  # fmt: skip
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


class Notebook:
    """A kernel and its websocket, for as long as the notebook is open."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.lines: list[str] = []
        """What was shown about waiting for a GPU."""

    async def run(self, code: str) -> dict[str, Any]:
        """A cell that prints one JSON document. An error of the code, or the kernel's end, fails the test."""
        request = execute_request(code)
        await self.socket.send_json(request)
        text = ""
        async for item in self.socket:
            message = item.json()
            content = message["content"]
            state = content.get("execution_state")
            assert state not in ("restarting", "autorestarting", "dead"), "the kernel ended"
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            assert message["msg_type"] != "error", "\n".join(content["traceback"])
            if message["msg_type"] == "stream":
                text += content["text"]
            if message["msg_type"] in ("display_data", "update_display_data"):
                self.lines.append(content["data"].get("text/plain", ""))
            if message["msg_type"] == "status" and state == "idle":
                found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
                return found
        raise AssertionError("the kernel's websocket closed early")


@asynccontextmanager
async def notebook(client: Client) -> AsyncIterator[Notebook]:
    """An open one."""
    base = f"user/{client.user}/"
    await client.text(f"{base}lab")
    kernel = await client.send("POST", f"{base}api/kernels", {"name": "python3"})
    address = client.url(f"{base}api/kernels/{kernel['id']}/channels?session_id={uuid.uuid4().hex}")
    async with client.session.ws_connect(address, max_msg_size=0, heartbeat=None) as socket:
        yield Notebook(socket)


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
    """Who is awake, as the API says it; until cancelled."""
    while True:
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


def switches(metrics: str) -> list[str]:
    """The metrics of turns that count something."""
    lines = [line for line in metrics.splitlines() if line.startswith("gpuspawner_turn_")]
    return [
        line for line in lines if "_bucket" not in line and "_created" not in line and line[-4:] != " 0.0"
    ]


async def test_a_class_in_turns(system: Any, record: Callable[[str, Any], None]) -> None:
    seen = Seen()
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(logged_in(system, "admin"))
        clients = [await stack.enter_async_context(logged_in(system, f"student{n}")) for n in range(STUDENTS)]
        started = [await stack.enter_async_context(serving(each, "turns")) for each in clients]
        record("click to ready (s)", [round(each, 2) for each in started])
        students = [await stack.enter_async_context(notebook(each)) for each in clients]
        # The first one alone: what an undisturbed run gives, and how fast it is.
        await students[0].run(prepare(0))
        reference = await students[0].run(f"train({CHECKED_STEPS})")
        alone = await students[0].run("train(300)")
        speed = 300 / (alone["end"] - alone["first"])
        record("steps/s of one alone", round(speed, 1))
        await asyncio.gather(
            *(student.run(prepare(number)) for number, student in enumerate(students[1:], 1))
        )
        watching = asyncio.create_task(watch(admin, seen))
        began = time.time()
        end = began + MINUTES * 60
        await asyncio.gather(*(live(n, each, speed, end, seen) for n, each in enumerate(students)))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        status = await whole_status(admin)
        assert len(status["devices"]) == 2
        metrics = await admin.text("services/gpu/metrics")
    record("switches", switches(metrics))
    waits = sorted(seen.waits)
    p95 = waits[int(0.95 * (len(waits) - 1))]
    record("cells", len(waits))
    told = statistics.median(waits), p95, waits[-1]
    record("waits p50, p95, most (s)", [round(each, 3) for each in told])
    record("steps in all", seen.steps)
    record("seconds until the last cell ended", round(seen.ended - began, 1))
    record("GPUs with somebody awake, samples", dict(seen.awake))
    record("lines shown", [len(seen.lines), *seen.lines[:4]])
    record("losses", [len(seen.losses), reference["loss"], sorted(set(seen.losses))])
    assert seen.shared == []
    assert all(before == after for before, after in seen.sums)
    assert len(seen.sums) == STUDENTS
    assert set(seen.losses) == {reference["loss"]}
