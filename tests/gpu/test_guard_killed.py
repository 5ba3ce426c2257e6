"""How soon the quota of a slice holds again after the broker was killed, on a real GPU."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pynvml
import pytest
from lab import EIGHT_SLICES, container_of
from notebook import notebook

from tests.running import System
from tests.webclient import logged_in, serving, whole_status

pytestmark = pytest.mark.gpu

SITE = EIGHT_SLICES
GIB = 1 << 30
OVER_BYTES = 12 * GIB
"""More than the 8 GiB of the slice by so much that it ends at the guard's second look."""
RESUMES_SECONDS = 5.0
"""From the start of the new broker's process: about two are usual; the exact time is recorded."""
PROGRAM = """
import os, time, torch
torch.ones(1, device="cuda")
open("/tmp/ready", "w").close()
while not os.path.exists("/tmp/grab"): time.sleep(0.01)
kept = [torch.ones(1 << 28, dtype=torch.uint8, device="cuda") for _ in range(56)]
torch.cuda.synchronize()
time.sleep(60)
"""
BEGIN = """
import json, os, subprocess, sys, time
_log = open("/tmp/grab.log", "w")
subprocess.Popen([sys.executable, "-c", CODE], stdout=_log, stderr=_log,
                 env={**os.environ, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "garbage"})
while not os.path.exists("/tmp/ready"): time.sleep(0.05)
print(json.dumps({}))
"""
"""The variable throws MPS's own limit off (docs/measurements.md), so that only the guard is left."""


def started_at(pid: int) -> float:
    """When a process began, by time.time()."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    booted = time.time() - uptime
    assert abs(booted - int(boot.split()[1])) < 60
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def gone(pid: int) -> bool:
    """Whether a process has ended. Its parent, a kernel that doesn't wait for it, leaves it as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def greedy(gpu: str) -> int | None:
    """The pid of the process with too much memory, if there is one."""
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
    found = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    return next((each.pid for each in found if (each.usedGpuMemory or 0) > OVER_BYTES), None)


async def test_a_killed_brokers_successor_ends_who_is_over_the_quota(
    system: System, record: Callable[[str, Any], None]
) -> None:
    pynvml.nvmlInit()
    async with logged_in(system, "anna") as anna, logged_in(system, "admin") as admin, serving(anna, "slice"):
        gpu = next(each["device_uuids"][0] for each in (await whole_status(admin))["leases"])
        container = docker.from_env().containers.get(container_of(system, "anna"))
        async with notebook(anna) as book:
            await book.run(f"CODE = {PROGRAM!r}\n{BEGIN}")
            broker = system.broker_pid()
            assert broker is not None
            os.kill(broker, signal.SIGKILL)
            killed = time.time()
            container.exec_run("touch /tmp/grab", user="1000")
            pid, successor, over = None, None, None
            while time.time() - killed < 60:
                with suppress(OSError, ValueError):
                    now = system.broker_pid()
                    successor = now if now not in (None, broker) else successor
                if pid is None and (pid := greedy(gpu)) is not None:
                    over = time.time()
                if pid is not None and gone(pid):
                    break
                await asyncio.sleep(0.01)
            ended = time.time()
        assert pid is not None
        assert successor is not None
        assert over is not None
        took = ended - max(started_at(successor), over)
        async with asyncio.timeout(20):
            while not (notice := await notice_of(admin, "anna")):
                await asyncio.sleep(0.1)
    record("guard after a killed broker (s)", {
        "broker killed to its successor's start": round(started_at(successor) - killed, 2),
        "broker killed to 12 GiB taken": round(over - killed, 2),
        "from the later of both to the end of the program": round(took, 2),
        "notice": notice,
    })  # fmt: skip
    assert took < RESUMES_SECONDS


async def notice_of(admin: Any, user: str) -> str:
    """What the API says to the user; "" while a broker starts."""
    with suppress(AssertionError):
        leases = (await whole_status(admin))["leases"]
        return next((str(each["notice"]) for each in leases if each["user"] == user), "")
    return ""
