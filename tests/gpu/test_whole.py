"""One whole GPU through the real hub, on real hardware: leased, used, counted, given back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import docker
import pytest
from lab import container_of

from tests.running import System
from tests.webclient import all_free, logged_in, serving, stop, whole_status

pytestmark = pytest.mark.gpu

LOOK = """
import glob, json, shutil, subprocess, torch
smi = shutil.which("nvidia-smi")
devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
print(json.dumps({
    "cuda": torch.cuda.is_available(),
    "uuids": [f"GPU-{device.uuid}" for device in devices],
    "nodes": sorted(glob.glob("/dev/nvidia[0-9]*")),
    "smi": subprocess.run([smi, "-L"], capture_output=True, text=True).stdout if smi else "",
}))
"""

PRODUCT = """
import json, torch
torch.manual_seed(0)
n = 8192
a = torch.randn(n, n, dtype=torch.bfloat16, device="cuda")
b = torch.randn(n, n, dtype=torch.bfloat16, device="cuda")
for _ in range(5): a @ b
start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
times = []
for _ in range(20):
    start.record(); c = a @ b; end.record(); torch.cuda.synchronize(); times.append(start.elapsed_time(end))
rows = 512
reference = a[:rows].double().cpu() @ b.double().cpu()
error = ((c[:rows].double().cpu() - reference).norm() / reference.norm()).item()
times.sort()
tflops = 2 * n**3 / times[10] / 1e9
print(json.dumps({"error": error, "tflops": tflops, "device": torch.cuda.get_device_name()}))
"""


async def test_exactly_the_leased_gpu_and_a_product_checked_against_float64(
    system: System, record: Callable[[str, Any], None]
) -> None:
    async with logged_in(system, "anna") as anna, logged_in(system, "admin") as admin:
        async with serving(anna, "gpu") as seconds:
            record("click to ready, first (s)", round(seconds, 2))
            status = await whole_status(admin)
            assert status["simulated"] is False
            (lease,) = status["leases"]
            seen = json.loads(await anna.run_in_kernel(LOOK))
            assert (seen["cuda"], seen["uuids"]) == (True, lease["device_uuids"])
            assert len(seen["nodes"]) == 1
            assert seen["smi"].count("UUID: GPU-") == 1

            product = json.loads(await anna.run_in_kernel(PRODUCT))
            record("bf16 8192x8192 product", product)
            assert product["error"] < 1e-2  # bf16 has 8 bits of mantissa; the sum is kept in float32
        record("device free after the stop (s)", round(await all_free(admin), 2))


async def test_a_cpu_server_sees_no_gpu(system: System) -> None:
    async with logged_in(system, "bob") as bob, serving(bob, "cpu"):
        seen = json.loads(await bob.run_in_kernel(LOOK))
        assert (seen["cuda"], seen["uuids"], seen["nodes"]) == (False, [], [])


async def test_the_next_in_line_gets_the_gpu_of_a_killed_container(
    system: System, record: Callable[[str, Any], None]
) -> None:
    async with (
        logged_in(system, "carla") as carla,
        logged_in(system, "dora") as dora,
        logged_in(system, "admin") as admin,
    ):
        devices = (await whole_status(admin))["devices"]
        if len(devices) > 1:
            pytest.skip("this machine has several GPUs: the line is tested on simulated ones")
        async with serving(carla, "gpu"):
            await carla.run_in_kernel(FILL)
            await dora.submit("hub/spawn", profile="gpu")
            waiting = asyncio.create_task(dora.progress())
            while not (await whole_status(admin))["queue"]:
                await asyncio.sleep(0.1)
            begin = time.perf_counter()
            with closing(docker.from_env()) as engine:
                engine.containers.get(container_of(system, "carla")).kill()
            events = await waiting
            record("killed container to the next one's lab (s)", round(time.perf_counter() - begin, 2))
        assert "1st in line for a GPU" in " ".join(event.get("message", "") for event in events)
        assert events[-1].get("ready"), events
        seen = json.loads(await dora.run_in_kernel(LOOK))
        await stop(dora)
        assert seen["uuids"] == [devices[0]["uuid"]]
        await all_free(admin)


FILL = "import torch; x = torch.full((1 << 30,), 7, dtype=torch.uint8, device='cuda')"
CANARY = """
import torch
left = []
while torch.cuda.mem_get_info()[0] > 3 << 30:
    left.append(torch.full((1 << 30,), 0xA5, dtype=torch.uint8, device="cuda"))
torch.cuda.synchronize()
print(len(left))
"""
SEARCH = """
import torch
found = looked = 0
kept = []
while torch.cuda.mem_get_info()[0] > 3 << 30:
    block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    found += any(int((part == 0xA5).sum()) > 1 << 20 for part in block.split(1 << 26))
    looked += 1; kept.append(block)
print(looked, found)
"""


async def test_what_one_leaves_in_memory_the_next_cannot_read(
    system: System, record: Callable[[str, Any], None]
) -> None:
    async with (
        logged_in(system, "emil") as emil,
        logged_in(system, "fred") as fred,
        logged_in(system, "admin") as admin,
    ):
        async with serving(emil, "gpu"):
            written = int(await emil.run_in_kernel(CANARY))
        await all_free(admin)
        async with serving(fred, "gpu"):
            looked, found = map(int, (await fred.run_in_kernel(SEARCH)).split())
        record("canary, whole (GiB written, looked at, found)", [written, looked, found])
        assert looked > 0
        assert found == 0
        await all_free(admin)
