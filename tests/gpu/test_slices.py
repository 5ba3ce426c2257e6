"""Slices under attack, under faults, and what they leave in memory: in labs of the hub, on a real GPU."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attacks import ATTACKS, GRAB, ILLEGAL_ADDRESS, Attack
from lab import EIGHT_SLICES, container_of
from sampler import Sampler

from tests.running import System
from tests.webclient import Client, KernelEnded, all_free, logged_in, serving, whole_status

pytestmark = pytest.mark.gpu

GIB = 1 << 30
QUOTA_BYTES = 8 * GIB
SITE = EIGHT_SLICES

RUN = """
import json, os, subprocess, sys, time
code, environment, seconds = json.loads(ARGUMENTS)
begin = time.time()
process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment}, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
try:
    output, _ = process.communicate(timeout=seconds)
except subprocess.TimeoutExpired:
    process.kill(); output, _ = process.communicate(); output += " (still there at the end)"
seconds = round(time.time() - begin, 1)
print(json.dumps({"saw": output[-300:], "exit": process.returncode, "seconds": seconds}))
"""
NEIGHBOUR = """
import time, torch
a = torch.randn(1024, 1024, device="cuda")
def rate(seconds):
    steps, begin = 0, time.time()
    while time.time() - begin < seconds:
        for _ in range(50): b = a @ a
        torch.cuda.synchronize(); steps += 50
    return steps / (time.time() - begin)
rate(1)
log = open("/tmp/rates", "a", buffering=1)
while True: log.write(f"{time.time()} {rate(0.5)}\\n")
"""
DETACHED = """
import subprocess, sys
log = open("/tmp/neighbour.log", "w")
subprocess.Popen(["setsid", "--fork", sys.executable, "-c", CODE], stdout=log, stderr=log).wait()
"""
"""Nobody's child: a kernel that shuts down ends its children."""


def run_attack(attack: Attack) -> str:
    """The notebook's cell."""
    arguments = json.dumps([attack.code, attack.environment, attack.seconds])
    return f"ARGUMENTS = {arguments!r}\n{RUN}"


@asynccontextmanager
async def training_neighbour(client: Client) -> AsyncIterator[Callable[[], Any]]:
    """A lab that multiplies matrices all the time; gives a function that reads (time, products/s) pairs."""
    async with serving(client, "slice"):
        await client.run_in_kernel(f"CODE = {NEIGHBOUR!r}\n{DETACHED}")

        async def rates() -> list[tuple[float, float]]:
            text = await client.run_in_kernel("print(open('/tmp/rates').read())")
            return [(float(line.split()[0]), float(line.split()[1])) for line in text.splitlines() if line]

        look = "import os; print(os.path.exists('/tmp/rates') or open('/tmp/neighbour.log').read())"
        for _ in range(10):
            await asyncio.sleep(2)
            said = await client.run_in_kernel(look)
            if said == "True\n":
                break
        else:
            pytest.fail(f"the neighbour computes nothing: {said}")
        await asyncio.sleep(3)
        yield rates


class Scene:
    """Mallory's lab beside Nora's, who multiplies matrices: an attack at a time, and what it cost whom."""

    def __init__(self, mallory: Client, admin: Client, rates: Callable[[], Any], uuid: str) -> None:
        self.mallory, self.admin, self.rates, self.uuid = mallory, admin, rates, uuid
        self.calm = 0.0

    async def begin(self) -> None:
        """Notes how fast the neighbour is while nothing happens."""
        calm = [rate for _, rate in await self.rates()][-4:]
        self.calm = sum(calm) / len(calm)

    async def run(self, work: Awaitable[str], container_id: str) -> tuple[list[str], dict[str, Any]]:
        """What each line of `work` printed, with what outside eyes saw meanwhile."""
        begin = time.time()
        with Sampler(self.uuid, QUOTA_BYTES + (64 << 20)) as sampler:
            lines = (await work).splitlines()
            await asyncio.sleep(1.7)  # the neighbour notes its speed every half second
        during = [rate for at, rate in await self.rates() if begin + 1 < at < time.time()]
        leases = (await whole_status(self.admin))["leases"]
        mine = [lease["notice"] for lease in leases if lease["user"] == "mallory"]
        return lines, {
            "peak_gib": round(sampler.peaks.get(container_id, 0) / GIB, 2),
            "over_seconds": round(sampler.over_seconds.get(container_id, 0.0), 2),
            "neighbour": round(min(during) / self.calm, 2) if during else None,
            "notice": next(iter(mine), None),
        }


@pytest.fixture
async def scene(system: System) -> AsyncIterator[Scene]:
    async with (
        logged_in(system, "mallory") as mallory,
        logged_in(system, "nora") as nora,
        logged_in(system, "admin") as admin,
        training_neighbour(nora) as rates,
        serving(mallory, "slice"),
    ):
        (device,) = (await whole_status(admin))["devices"]
        made = Scene(mallory, admin, rates, device["uuid"])
        await mallory.text("user/mallory/lab")  # logs in there, once: several kernels start at a time later
        await made.begin()
        yield made


async def test_the_quota_holds(scene: Scene, record: Callable[[str, Any], None]) -> None:
    container = container_of(scene.mallory.system, "mallory")
    failed = []
    for attack in ATTACKS:
        lines, cost = await scene.run(scene.mallory.run_in_kernel(run_attack(attack)), container)
        row = {**json.loads(lines[-1]), **cost}
        record(f"attack: {attack.name}", row)
        if row["over_seconds"] > 6 or row["neighbour"] is None:
            failed.append(attack.name)
    assert failed == []


async def in_turn(kernels: list[Awaitable[str]]) -> str:
    """A line for each kernel: what it printed, or that it was ended."""
    said = []
    for result in await asyncio.gather(*kernels, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, KernelEnded):
            raise result
        said.append(str(result).replace("\n", " "))
    return "\n".join(said)


async def test_two_kernels_and_two_servers(
    scene: Scene, system: System, record: Callable[[str, Any], None]
) -> None:
    """Kernels of one server count together; a second server of the same user is a lease of its own."""
    work = GRAB + "grab(6, 8)"
    one = container_of(system, "mallory")
    kernels = in_turn([scene.mallory.run_in_kernel(work) for _ in range(2)])
    lines, cost = await scene.run(kernels, one)
    record("attack: two kernels, 6 GiB each", {"saw": lines, **cost})
    assert cost["over_seconds"] < 6
    async with logged_in(system, "mallory") as browser:
        second = browser.at("second")
        async with serving(second, "slice"):
            kernels = in_turn([each.run_in_kernel(work) for each in (scene.mallory, second)])
            lines, cost = await scene.run(kernels, container_of(system, "mallory", "second"))
    record("attack: two servers, 6 GiB each", {"saw": lines, **cost})
    assert all("has 6.0 GiB" in line for line in lines)


async def test_who_is_hit_by_an_illegal_address(system: System, record: Callable[[str, Any], None]) -> None:
    async with (
        logged_in(system, "mallory") as mallory,
        logged_in(system, "nora") as nora,
        training_neighbour(nora) as rates,
        serving(mallory, "slice"),
    ):
        begin = time.time()
        attack = Attack("illegal address", ILLEGAL_ADDRESS)
        record("fault: who did it", json.loads(await mallory.run_in_kernel(run_attack(attack))))
        await asyncio.sleep(3)
        last = (await rates())[-1][0]
        record("fault: neighbour lives on", last > begin + 2)
        words = await nora.run_in_kernel("print(open('/tmp/neighbour.log').read()[-300:])")
        record("fault: what the neighbour saw", words)
        work = Attack("new work", "import torch; print(float(torch.ones(9, device='cuda').sum()))", {}, 30)
        while True:
            again = json.loads(await nora.run_in_kernel(run_attack(work)))
            if again["exit"] == 0 or time.time() - begin > 60:
                break
        record("fault: new work of the neighbour (s after the fault)", round(time.time() - begin, 1))
        assert (again["exit"], again["saw"]) == (0, "9.0\n")


WRITE = """
import torch
kept = [torch.full((1 << 28,), 0xA5, dtype=torch.uint8, device="cuda") for _ in range(24)]
torch.cuda.synchronize()
print(len(kept))
"""
SEARCH = """
import torch
kept = [torch.empty(1 << 28, dtype=torch.uint8, device="cuda") for _ in range(24)]
filled = [any(int((part == 0xA5).sum()) > 1 << 18 for part in block.split(1 << 24)) for block in kept]
print(len(kept), sum(filled))
"""


async def test_what_a_slice_leaves_in_memory_the_next_cannot_read(
    system: System, record: Callable[[str, Any], None]
) -> None:
    async with (
        logged_in(system, "emil") as emil,
        logged_in(system, "fred") as fred,
        logged_in(system, "nora") as nora,
        logged_in(system, "admin") as admin,
    ):
        async with serving(nora, "slice"):  # keeps the MPS server alive between the two
            await nora.run_in_kernel(f"CODE = {NEIGHBOUR!r}\n{DETACHED}")
            async with serving(emil, "slice"):
                written = int(await emil.run_in_kernel(WRITE))
            async with serving(fred, "slice"):
                looked, found = map(int, (await fred.run_in_kernel(SEARCH)).split())
        record("canary, slice (blocks of 256 MiB written, looked at, found)", [written, looked, found])
        assert looked == 24
        assert found == 0
        await all_free(admin)
