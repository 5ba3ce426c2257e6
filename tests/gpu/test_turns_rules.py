"""The rules of turns through the real hub, on real GPUs: order, drains, notices, XIDs, meters, GPU-hours.

One class of a few minutes; each check is a row, and one that fails doesn't cost the others. Two GPUs are
needed, a third one for GPU-hours that end (five minutes, beside the rest), a fourth for one that comes later.
GPUSPAWNER_TURNS_CHECKS chooses some: with "hours,xid,killed,kernel,joins" two GPUs are enough, one for the
class, one for the hours, which joins the class at the end.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import docker
import pytest
import sqlalchemy as sa
from attacks import ILLEGAL_ADDRESS
from gpuspawner.broker.ledger import schema
from lab import container_of
from machine import uuids, write_site
from notebook import Notebook, notebook
from rows import Rows

from tests.running import System
from tests.webclient import Client, logged_in, start, stop

pytestmark = pytest.mark.gpu

MAX_TURN_SECONDS = 8.0
PAUSE_AFTER_SECONDS = 2.0
SEATS = 6
PROMISE, LAB_MEMORY = "16G", "8G"
GIB = float(os.environ.get("GPUSPAWNER_TURNS_GIB", "4"))
CHECKS = os.environ.get("GPUSPAWNER_TURNS_CHECKS", "")
KERNEL_SECONDS = 60.0
CLOCK_HZ = 1.9e9
"""About the SM clock of an H100 or H200: `torch.cuda._sleep` counts its cycles."""
HOURS = 0.085
"""Just over the five minutes between the last warning and the end."""
PREPARE = """
import json, time, torch
memory = torch.randint(0, 1 << 31, (int(GIB * (1 << 30)) // 8,), device="cuda")
square = torch.randn(4096, 4096, device="cuda")

def checksum():
    return int(memory.sum().item())

def compute(seconds):
    mine, last, first, gap = 0.0, time.time(), None, 0.0
    while mine < seconds:
        for _ in range(4):
            square @ square
        torch.cuda.synchronize()
        now = time.time()
        mine, gap = mine + min(now - last, 0.1), max(gap, now - last) if first else 0.0
        first, last = first or now, now
    print(json.dumps({"first": first, "end": last, "gap": round(gap, 2)}))

print(json.dumps({"sum": checksum()}))
"""
KERNEL = f"""
_began = time.time()
torch.cuda._sleep(int({KERNEL_SECONDS} * {CLOCK_HZ}))
torch.cuda.synchronize()
print(json.dumps({{"seconds": round(time.time() - _began, 1)}}))
"""
SUM = 'print(json.dumps({"sum": checksum()}))'
MANAGED = """
import ctypes
_cuda, _pointer = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64()
_code = _cuda.cuMemAllocManaged(ctypes.byref(_pointer), ctypes.c_size_t(256 << 20), 1)
_code = _code or _cuda.cuMemsetD8_v2(_pointer, 7, ctypes.c_size_t(256 << 20))
torch.cuda.synchronize()
print(json.dumps({"code": _code}))
"""
RUN = """
import json, subprocess, sys
_done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
print(json.dumps({"status": _done.returncode, "said": (_done.stdout + _done.stderr)[-300:]}))
"""


@dataclass(frozen=True)
class Layout:
    """Which GPU is for what: those of the class, that of the student whose GPU-hours end, one that joins."""

    class_gpus: tuple[str, ...]
    hours: str | None = None
    joins: str | None = None

    @classmethod
    def of(cls, gpus: list[str]) -> Layout:
        """By how many there are; of two, one is for the hours if these were chosen."""
        if len(gpus) == 2 and "hours" in CHECKS.split(","):
            return cls(tuple(gpus[:1]), gpus[1], gpus[1])
        return cls(tuple(gpus[:2]), *gpus[2:4])

    def site(self, *, joined: bool = False) -> dict[str, Any]:
        """A pool for the class, and one of a single GPU for the student whose GPU-hours end."""
        turns = {
            "mode": "turns", "sleep_memory": PROMISE, "pause_after": PAUSE_AFTER_SECONDS, "min_turn": 1.0,
            "max_turn": MAX_TURN_SECONDS, "sleep_after": 900.0,
        }  # fmt: skip
        tier = {"mode": "turns", "memory": PROMISE, "mem_limit": LAB_MEMORY}
        own = [*self.class_gpus, *([self.joins] if joined and self.joins else [])]
        pools = [{"name": "class", "devices": own, "seats": SEATS, **turns}]
        tiers = [{"name": "cpu"}, {"name": "class", "pool": "class", **tier}]
        if self.hours is not None and self.hours not in own:
            pools.append({"name": "hours", "devices": [self.hours], "seats": 1, **turns})
            tiers.append({"name": "hours", "pool": "hours", **tier})
        return {"pools": pools, "tiers": tiers, "quotas": [{"user": "hana", "gpu_hours": HOURS}]}


@dataclass
class Student:
    """Somebody with a server, and their notebook once it is open."""

    client: Client
    book: Notebook | None = None
    sum: int = 0

    async def run(self, code: str) -> dict[str, Any]:
        """A cell."""
        assert self.book is not None
        return await self.book.run(code)


@dataclass
class Class:
    """The system, its students, and what the API says of them."""

    system: System
    admin: Client
    rows: Rows
    stack: AsyncExitStack
    gpus: list[str]
    layout: Layout
    students: dict[str, Student] = field(default_factory=dict)
    awake: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    """Whenever it changed: who was awake."""

    async def join(self, user: str, tier: str = "class") -> None:
        """Logs in and starts a server."""
        client = await self.stack.enter_async_context(logged_in(self.system, user))
        await start(client, tier)
        self.students[user] = Student(client)

    async def open(self, user: str) -> None:
        """Opens a notebook and runs its first cell, which takes memory on a GPU."""
        student = self.students[user]
        student.book = await self.stack.enter_async_context(notebook(student.client))
        student.sum = (await student.run(PREPARE.replace("GIB", repr(GIB), 1)))["sum"]

    async def compute(self, user: str, seconds: float, after: float = 0.0) -> dict[str, Any]:
        """So much GPU time of a cell; `wait` is from pressing Run to the first step's end."""
        await asyncio.sleep(after)
        pressed = time.time()
        found = await self.students[user].run(f"compute({seconds})")
        return {**found, "pressed": pressed, "wait": round(found["first"] - pressed, 2)}

    async def status(self) -> Any:
        """Everybody's leases and devices."""
        return await self.admin.json("services/gpu/api/status")

    async def lease(self, user: str) -> Any:
        """The lease of one user, as the API says it."""
        return next(each for each in (await self.status())["leases"] if each["user"] == user)

    async def turn(self, user: str) -> Any:
        """Where they are."""
        return (await self.lease(user))["turn"] or {"turn": None, "gpu_uuid": None, "position": None}

    async def device(self, gpu: str) -> Any:
        """One GPU."""
        return next(each for each in (await self.status())["devices"] if each["uuid"] == gpu)

    async def press(self, user: str, action: str) -> None:
        """A button of the user's page: wake, yield."""
        client, lease = self.students[user].client, (await self.lease(user))["id"]
        await client.text("services/gpu/")
        await client.send("POST", f"services/gpu/api/leases/{lease}/{action}", {})

    async def drain(self, gpu: str, drained: bool = True) -> None:
        """As on the admin's page."""
        await self.admin.text("services/gpu/")
        await self.admin.send("POST" if drained else "DELETE", "services/gpu/api/drains", {"uuid": gpu})

    async def until(self, good: Callable[[], Awaitable[bool]], seconds: float) -> float:
        """Seconds until it holds. Raises AssertionError if it doesn't in time."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            with suppress(aiohttp.ClientError, AssertionError, ValueError):
                if await good():
                    return round(time.monotonic() - began, 2)
            await asyncio.sleep(0.05)
        leases = [(each["user"], each["turn"], each["notice"]) for each in (await self.status())["leases"]]
        raise AssertionError(f"not within {seconds} s: {leases}")

    async def is_turn(self, user: str, turn: str, gpu: str | None = None) -> bool:
        """Whether they are there."""
        found = await self.turn(user)
        return found["turn"] == turn and gpu in (None, found["gpu_uuid"])

    async def watch(self) -> None:
        """Notes who is awake, until cancelled. A broker that was killed doesn't answer for a moment."""
        while True:
            with suppress(aiohttp.ClientError, AssertionError, ValueError, TimeoutError):
                leases = (await self.status())["leases"]
                turns = [(each["user"], each["turn"]) for each in leases if each["turn"]]
                now = tuple(sorted(user for user, turn in turns if turn["turn"] == "awake"))
                if not self.awake or self.awake[-1][1] != now:
                    self.awake.append((time.time(), now))
            await asyncio.sleep(0.1)

    async def restart_broker(self) -> float:
        """SIGKILL; its keeper starts another one. Seconds until that answers."""
        pid = self.system.broker_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        async def back() -> bool:
            await self.status()
            return self.system.broker_pid() not in (None, pid)

        return await self.until(back, 40)


# ---- the checks


async def check_order(room: Class) -> None:
    """Ben used two GPU-hours lately, Ann and Cem none: Cem comes before Ben, who waits longer."""
    began = time.time()
    ann, ben, cem = await asyncio.gather(
        room.compute("ann", 20), room.compute("ben", 4, after=1.0), room.compute("cem", 4, after=2.0)
    )
    order = [(round(at - began, 1), who) for at, who in room.awake if at >= began]
    limit = 2 * MAX_TURN_SECONDS + MAX_TURN_SECONDS + 3.0
    room.rows.row(
        "rank by use",
        {"waits": {"ann": ann["wait"], "ben": ben["wait"], "cem": cem["wait"]}, "awake": order},
        ok=cem["first"] < ben["first"] and ben["wait"] < limit,
    )


async def check_give_up(room: Class) -> None:
    """Dan has a server without a program: he gets a GPU, gives it up, and it doesn't come back to him."""
    working = asyncio.create_task(room.compute("ann", 20))
    await room.until(lambda: room.is_turn("ann", "awake"), 20)
    await room.press("dan", "wake")
    woke = await room.until(lambda: room.is_turn("dan", "awake"), 3 * MAX_TURN_SECONDS)
    await room.press("dan", "yield")
    passed = await room.until(lambda: room.is_turn("ann", "awake"), 5)
    later = []
    for _ in range(30):
        later.append(await room.turn("dan"))
        await asyncio.sleep(0.15)
    await working
    back = sum(each["turn"] == "awake" or each["position"] is not None for each in later)
    room.rows.row(
        "a turn given up without a program",
        f"awake {woke} s after the wish, the next one {passed} s after it was given up, back in {back} of "
        f"{len(later)} looks",
        ok=back == 0,
    )


async def check_drain(room: Class) -> None:
    """The first GPU is drained: who computes goes on, paused memory leaves, managed memory can't and says so.

    Before it, the second one is given back.
    """
    first, second = room.gpus[:2]
    managed = await room.students["cem"].run(MANAGED)
    computing = asyncio.create_task(room.compute("ann", 6))
    await room.until(lambda: room.is_turn("ann", "awake", first), 20)
    await room.drain(second, False)
    await room.drain(first)
    left = await room.until(lambda: room.is_turn("ben", "asleep"), 30)
    drained = await room.device(first)
    ann = await computing
    room.rows.row(
        "who computes on a drained GPU goes on; paused memory leaves it",
        f"longest gap of who computes {ann['gap']} s; asleep {left} s after the drain; device drained "
        f"{drained['drained']}, healthy {drained['healthy']}",
        ok=ann["gap"] < 1.0 and drained["drained"] and drained["healthy"],
    )
    ben = asyncio.create_task(room.compute("ben", 2))
    woke = await room.until(lambda: room.is_turn("ben", "awake", second), 30)
    await ben
    whole = (await room.students["ben"].run(SUM))["sum"] == room.students["ben"].sum
    room.rows.row("and wakes on the other GPU", f"after {woke} s, sum equal {whole}", ok=whole)
    cem = await room.lease("cem")
    found = await room.compute("cem", 2)
    after = await room.lease("cem")
    room.rows.row(
        "managed memory on a drained GPU",
        f"cuMemAllocManaged {managed['code']}; can_move {cem['turn']['can_move']}; notice {cem['notice']!r}; "
        f"its cell waited {found['wait']} s and computed on GPU {room.gpus.index(after['turn']['gpu_uuid'])}",
        ok=not cem["turn"]["can_move"] and after["turn"]["gpu_uuid"] == first and bool(cem["notice"]),
    )
    await room.drain(first, False)


async def check_managed_shares(room: Class) -> None:
    """Managed memory is only paused: others get their turns on its GPU, and everybody's sums stay."""
    gpu = (await room.turn("cem"))["gpu_uuid"]
    other = next(each for each in room.gpus[:2] if each != gpu)
    await room.drain(other)
    ann, cem = await asyncio.gather(room.compute("ann", 12), room.compute("cem", 12, after=0.5))
    await room.drain(other, False)
    room.rows.row(
        "managed memory is paused for others",
        f"waits {ann['wait']} and {cem['wait']} s, longest gaps {ann['gap']} and {cem['gap']} s",
        ok=max(ann["wait"], cem["wait"]) < 3 * MAX_TURN_SECONDS and min(ann["gap"], cem["gap"]) > 1.0,
    )


def kernel_log() -> list[str]:
    """The lines of the kernel's log that name an XID."""
    text = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
    return [line for line in text.splitlines() if "Xid" in line]


async def check_xid(room: Class) -> None:
    """A program of Dan's writes to an illegal address: an XID of a program, so the GPU stays in service."""
    before = kernel_log()
    died = await room.students["dan"].run(f"CODE = {ILLEGAL_ADDRESS!r}\n{RUN}")
    await asyncio.sleep(2.0)
    logged = kernel_log()[len(before) :]
    devices = (await room.status())["devices"]
    page = await room.admin.text("services/gpu/admin/")
    told = sorted(set(re.findall(r"XID \d+[^<\"]{0,80}", page)))
    ann = await room.compute("ann", 1)
    whole = (await room.students["ann"].run(SUM))["sum"] == room.students["ann"].sum
    room.rows.row(
        "an illegal address, in the program", {"status": died["status"], "said": died["said"][-160:]}
    )
    room.rows.row("an illegal address, in the kernel's log", logged)
    room.rows.row("an illegal address, on the admin's page", told)
    room.rows.row(
        "an illegal address withdraws no GPU and ends nobody else",
        f"healthy {[each['healthy'] for each in devices]}; Ann computes after {ann['wait']} s, sum equal "
        f"{whole}",
        ok="synchronize 700" in died["said"] and whole and all(each["healthy"] for each in devices),
    )


def nvidia_smi(query: str, gpu: str) -> list[str]:
    """The fields that nvidia-smi says of one GPU."""
    command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")


def mib(size_bytes: int | None) -> int | None:
    """In MiB."""
    return None if size_bytes is None else round(size_bytes / (1 << 20))


async def check_meters(room: Class) -> None:
    """What the pages say of memory and use, beside nvidia-smi at about the same time."""
    working = asyncio.create_task(room.compute("ann", 14))
    await room.until(lambda: room.is_turn("ann", "awake"), 30)
    gpu = (await room.turn("ann"))["gpu_uuid"]
    await asyncio.sleep(11.0)  # the node reads every five seconds
    used, reserved, busy = map(float, nvidia_smi("memory.used,memory.reserved,utilization.gpu", gpu))
    device, lease = await room.device(gpu), await room.lease("ann")
    page = await room.students["ann"].client.text("services/gpu/")
    meters = sorted(
        set(re.findall(r"[\d.]+ [KMG]iB of [\d.]+ [KMG]iB|\d+ % busy|in the last hour[^<\"]*", page))
    )
    await working
    gap = abs(device["used_bytes"] / (1 << 20) - used - reserved)
    room.rows.row(
        "meters beside nvidia-smi",
        {
            "nvidia-smi (used, reserved MiB, %)": [used, reserved, busy],
            "device (MiB, %)": [mib(device["used_bytes"]), device["utilization_percent"]],
            "lease (MiB, %)": [mib(lease["used_bytes"]), lease["busy_percent"]],
            "page": meters,
        },
        ok=gap < 64 and abs(device["utilization_percent"] - busy) <= 5 and bool(meters),
    )  # fmt: skip


async def check_engine_reload(room: Class) -> None:
    """Docker reads its settings and the CDI specs again: labs keep their GPU, and new ones get theirs."""
    spec = Path("/etc/cdi/nvidia.yaml")
    spec.write_text(spec.read_text())
    (dockerd,) = subprocess.run(["pgrep", "-x", "dockerd"], capture_output=True, text=True).stdout.split()
    os.kill(int(dockerd), signal.SIGHUP)
    await asyncio.sleep(2.0)
    ann = await room.compute("ann", 1)
    await room.join("gus")
    await room.open("gus")
    gus = await room.compute("gus", 1)
    await stop(room.students["gus"].client)
    room.rows.row(
        "Docker reloaded (SIGHUP), the CDI spec written again",
        f"Ann's first step after {ann['wait']} s; a new server computes after {gus['wait']} s",
    )


async def check_second_broker(room: Class) -> None:
    """Another broker with another state folder doesn't get this machine's GPUs."""
    folder = room.system.folder / "second"
    folder.mkdir()
    (folder / "site.py").write_text(f'c = get_config()\nc.GpuSite.state_dir = "{folder}"\n')
    command = [sys.executable, "-m", "gpuspawner.broker", "--config", str(folder / "site.py")]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=40, check=False
    )
    said = (done.stdout + done.stderr).strip()[-400:]
    owner = f"process {room.system.broker_pid()}"
    room.rows.row(
        "a second broker", f"status {done.returncode}: {said}", ok=done.returncode != 0 and owner in said
    )


async def is_known(room: Class) -> bool:
    """Whether the new broker has looked at everybody."""
    return all(lease["turn"] is not None for lease in (await room.status())["leases"])


async def check_killed_asleep(room: Class) -> None:
    """Two sleep: the container of one is killed, the kernel of the other for lack of its container's memory.

    They sleep because the class's only GPU is drained.
    """
    gpu = room.layout.class_gpus[0]
    for user in ("fay", "gil"):
        await room.join(user)
        await room.open(user)
    await room.drain(gpu)
    try:
        await kill_sleepers(room)
    finally:
        await room.drain(gpu, False)
    await room.open("gil")
    again, ann = await room.compute("gil", 1), await room.compute("ann", 1)
    whole = (await room.students["ann"].run(SUM))["sum"] == room.students["ann"].sum
    room.rows.row(
        "after both",
        f"a new kernel of Gil's server computes after {again['wait']} s, Ann after {ann['wait']} s, "
        f"sum equal {whole}",
        ok=whole,
    )
    await stop(room.students["gil"].client)


async def kill_sleepers(room: Class) -> None:
    """Fay's container by SIGKILL, Gil's kernel by the kernel of the machine."""
    slept = [await room.until(lambda user=user: room.is_turn(user, "asleep"), 60) for user in ("fay", "gil")]  # type: ignore[misc]
    engine = docker.from_env(timeout=60)
    before = await room.lease("fay")
    engine.containers.get(container_of(room.system, "fay")).kill()

    async def is_gone() -> bool:
        return all(each["user"] != "fay" for each in (await room.status())["leases"])

    gone = await room.until(is_gone, 30)
    room.rows.row(
        "a container killed asleep",
        f"asleep after {slept} s, {mib(before['turn']['memory_bytes'])} MiB; its lease ended after {gone} s",
        ok=before["turn"]["turn"] == "asleep",
    )
    lab = engine.containers.get(container_of(room.system, "gil"))
    kernel = next(int(row[1]) for row in lab.top()["Processes"] if "ipykernel_launcher" in row[-1])
    Path(f"/proc/{kernel}/oom_score_adj").write_text("1000")
    limit = lab.attrs["HostConfig"]["Memory"]
    greedy = f"import time; kept = b'x' * {limit + (8 << 30)}; time.sleep(5)"
    code, said = await asyncio.to_thread(lab.exec_run, ["python3", "-c", greedy], user="1000")
    room.rows.row("out of memory, the program that took it", f"ended with {code} {said[-80:]!r}")
    ended = await room.until(lambda: is_dead(kernel), 10)
    room.rows.row("a kernel killed asleep, its container out of memory", f"{ended} s later")


async def is_dead(pid: int) -> bool:
    """Whether a process has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    return True


async def check_kernel(room: Class) -> None:
    """Ann starts one kernel of a minute, then Ben wants the GPU: he is told why no time can be said."""
    working = asyncio.create_task(room.students["ann"].run(KERNEL))
    await room.until(lambda: room.is_turn("ann", "awake"), 20)
    began = time.monotonic()
    ben = asyncio.create_task(room.compute("ben", 2, after=2.0))
    told: list[tuple[float, str | None, float | None]] = []
    while not working.done():
        turn = (await room.lease("ben"))["turn"]
        told.append((round(time.monotonic() - began, 1), turn["held_up"], turn["wait_seconds"]))
        await asyncio.sleep(1.0)
    ann = await working
    found = await ben
    sums = [(await room.students[user].run(SUM))["sum"] == room.students[user].sum for user in ("ann", "ben")]
    changes = [each for before, each in pairwise([(0.0, "", 0.0), *told]) if each[1] != before[1]]
    log = (room.system.folder / "hub.log").read_text().splitlines()
    steps = [line[-120:] for line in log if "Turn: " in line][-8:]
    known = sum(held_up == "kernel" for _, held_up, _ in told)
    room.rows.row(
        "a kernel of a minute",
        f"it took {ann['seconds']} s; Ben waited {found['wait']} s; what he was told began to be "
        f"{changes}, {known} of {len(told)} s that a kernel runs on; the last {told[-1]}; {steps}; "
        f"sums equal {sums}",
        ok=all(sums) and found["wait"] > ann["seconds"] / 2 and known > len(told) / 2,
    )


async def check_sees(room: Class) -> None:
    """A GPU that joins the pool later serves new servers only; the others wait while theirs are drained."""
    layout = room.layout
    if layout.joins is None:
        room.rows.row("a GPU that joins the pool later", "not run: it takes four GPUs")
        return
    if layout.joins == layout.hours:
        await stop(room.students["hana"].client)
    write_site(room.system.folder, layout.site(joined=True))
    back = await room.restart_broker()
    await room.until(lambda: is_known(room), 30)
    await room.join("eve")
    for gpu in layout.class_gpus:
        await room.drain(gpu)
    ben = asyncio.create_task(room.compute("ben", 1))
    await room.open("eve")
    eve = await room.compute("eve", 1)
    where, waits = await room.turn("eve"), await room.turn("ben")
    for gpu in layout.class_gpus:
        await room.drain(gpu, False)
    found = await ben
    room.rows.row(
        "a GPU that joins the pool later",
        f"broker back after {back} s; the new server computes on GPU {room.gpus.index(where['gpu_uuid'])}, "
        f"waited {eve['wait']} s; the old one meanwhile {waits['turn']}, {waits['position']} in line, first "
        f"step after {found['wait']} s",
        ok=where["gpu_uuid"] == layout.joins and waits["turn"] in ("paused", "asleep"),
    )


async def hours_end(room: Class) -> None:
    """Hana computes on and on. At the end of her GPU-hours she is put to sleep; a grant wakes her."""
    hana = room.students["hana"]
    began = time.time()
    working = asyncio.create_task(room.compute("hana", 3600 * HOURS + 60))
    notices: list[tuple[float, str]] = []

    async def asleep() -> bool:
        lease = await room.lease("hana")
        if lease["notice"] and (not notices or notices[-1][1] != lease["notice"]):
            notices.append((round(time.time() - began), lease["notice"]))
        return bool(lease["kept_asleep"]) and lease["turn"]["turn"] == "asleep"

    slept = await room.until(asleep, 3600 * HOURS + 90)
    lease = await room.lease("hana")
    await asyncio.sleep(3.0)
    still = (await room.turn("hana"))["turn"]
    await room.admin.text("services/gpu/")
    grant = {"subject": "user:hana", "gpu_hours": 1, "reason": "a test"}
    await room.admin.send("POST", "services/gpu/api/grants", grant)
    granted = time.time()
    found = await working
    whole = (await hana.run(SUM))["sum"] == hana.sum
    room.rows.row(
        "GPU-hours end in turns",
        {
            "asleep after (s)": slept, "why": lease["kept_asleep"], "notices": notices, "3 s later": still,
            "its cell ended after the grant (s)": round(found["end"] - granted, 1), "sum equal": whole,
        },
        ok=still == "asleep" and whole,
    )  # fmt: skip


def count_past_use(room: Class, user: str, gpu_seconds: float) -> None:
    """A session of the past, in the ledger: what fair share reads at the broker's start."""
    engine = sa.create_engine(f"sqlite:///{room.system.folder / 'ledger.sqlite'}")
    now, lease_id = datetime.now(UTC), uuid.uuid4().hex
    began, ended = now - timedelta(seconds=gpu_seconds + 900), now - timedelta(seconds=900)
    with engine.begin() as connection:
        like = sa.select(schema.leases).where(schema.leases.c.user == user)
        row = dict(connection.execute(like).mappings().first() or {})
        del row["number"]
        row |= {"id": lease_id, "state": "closed", "created_at": began, "since": ended, "container_id": None}
        connection.execute(sa.insert(schema.leases).values(row))
        interval = {
            "lease_id": lease_id, "device_count": 1, "gpu_fraction": 1.0, "started_at": began,
            "ended_at": ended, "seen_at": ended, "seconds": gpu_seconds, "boot_id": "past",
            "steady_start_seconds": 0.0,
        }  # fmt: skip
        connection.execute(sa.insert(schema.awake).values(interval))
        device = {"lease_id": lease_id, "ordinal": 0, "device_uuid": room.gpus[0], "gpu_fraction": 1.0}
        connection.execute(sa.insert(schema.lease_devices).values(device))
    engine.dispose()


@asynccontextmanager
async def opened(system: System, rows: Rows, gpus: list[str], layout: Layout) -> AsyncIterator[Class]:
    """Ann, Ben, Cem and Dan in the class; Hana on a GPU of her own."""
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(logged_in(system, "admin"))
        await admin.text("services/gpu/")
        room = Class(system, admin, rows, stack, gpus, layout)
        names = ("ann", "ben", "cem", "dan")
        hana = [room.join("hana", "hours")] if layout.hours is not None else []
        await asyncio.gather(*(room.join(name) for name in names), *hana)
        watching = asyncio.create_task(room.watch())
        yield room
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        for student in room.students.values():
            with suppress(AssertionError, aiohttp.ClientError):
                await stop(student.client)


@dataclass(frozen=True)
class Check:
    """One of the rows. `gpus`: so many GPUs must be the class's; 0: any number, and 1: one alone."""

    what: str
    run: Callable[[Class], Awaitable[None]]
    seconds: float
    gpus: int = 0

    def suits(self, layout: Layout) -> bool:
        """Whether it is chosen, and can be shown with these GPUs."""
        chosen = self.what in CHECKS.split(",") if CHECKS else True
        return chosen and self.gpus in (0, len(layout.class_gpus))


CHECK_TABLE = (
    Check("order", check_order, 90),
    Check("give_up", check_give_up, 60),
    Check("drain", check_drain, 90, gpus=2),
    Check("managed", check_managed_shares, 60, gpus=2),
    Check("xid", check_xid, 60),
    Check("killed", check_killed_asleep, 120, gpus=1),
    Check("kernel", check_kernel, 120, gpus=1),
    Check("meters", check_meters, 60),
    Check("reload", check_engine_reload, 60),
    Check("second", check_second_broker, 45),
)


async def test_the_rules_of_turns(start_system: Any, record: Callable[[str, Any], None]) -> None:
    gpus, rows = uuids(), Rows()
    if len(gpus) < 2:
        pytest.skip("needs two GPUs")
    layout = Layout.of(gpus)
    with start_system(layout.site()) as system:
        async with opened(system, rows, gpus, layout) as room:
            count_past_use(room, "ben", 7200.0)
            rows.row("the broker killed, the next one answers (s)", await room.restart_broker())
            beside = []
            if "hana" in room.students:
                await room.open("hana")
                beside.append(asyncio.create_task(rows.check("hours", hours_end(room), 480)))
            await rows.check("first cells", first_cells(room), 90)
            for check in CHECK_TABLE:
                if check.suits(layout):
                    await rows.check(check.what, check.run(room), check.seconds)
            await asyncio.gather(*beside)
            # Last: it kills the broker, and then users are warned again before their GPU-hours end.
            if not CHECKS or "joins" in CHECKS.split(","):
                await rows.check("joins", check_sees(room), 90)
            metrics = await room.admin.text("services/gpu/metrics")
    shown = [line for line in metrics.splitlines() if line.startswith("gpuspawner_turn_switches_total")]
    rows.row("switches", shown)
    for what, value in rows.seen.items():
        record(what, value)
    assert rows.failed == []


async def first_cells(room: Class) -> None:
    """All on one GPU, also of those whose server began with the other one, which is drained."""
    began, others = time.monotonic(), room.layout.class_gpus[1:]
    for gpu in others:
        await room.drain(gpu)
    for name in ("ann", "ben", "cem"):
        await room.open(name)
    dan = room.students["dan"]
    dan.book = await room.stack.enter_async_context(notebook(dan.client))
    where = {name: (await room.turn(name))["gpu_uuid"] for name in ("ann", "ben", "cem")}
    places = {name: None if gpu is None else room.gpus.index(gpu) for name, gpu in where.items()}
    room.rows.row(
        f"three programs while {len(others)} other GPUs are drained",
        f"on GPUs {places}, {time.monotonic() - began:.1f} s",
        ok=not set(others) & set(where.values()),
    )
