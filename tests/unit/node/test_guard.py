"""The guard's shell without containers: what users read, when it looks again, what it leaves alone."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from dataclasses import replace

import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.core.model import Device
from gpuspawner.node.guard.guard import DeviceGuard, Guard, GuardEvent, GuardSettings, Pace
from gpuspawner.node.guard.judge import Offence, ProcessSample, Quota, QuotaPlan, Verdict
from gpuspawner.node.guard.sentence import sentence_of
from gpuspawner.node.inventory import GpuProcess
from gpuspawner.node.inventory.simulated import SimulatedInventory
from gpuspawner.node.processes import Process, ProcessTable

from tests.soon import until

GPU = "GPU-1"
GIB = 1 << 30
ANNA = "a" * 64
QUOTA = Quota("lease", ANNA, GPU, 8 * GIB)
ORDERS = QuotaPlan((QUOTA,))
ADVICE = (
    "If it was a notebook's kernel, restart it; use smaller batches or a smaller model, and shut down "
    "kernels that you no longer need: each keeps its memory."
)


class Fake(SimulatedInventory):
    """A device whose processes and memory a test sets."""

    def __init__(self) -> None:
        super().__init__((Device(GPU, "fake", 80 * GIB),))
        self.listed: tuple[GpuProcess, ...] = ()
        self.used = 0
        self.looks: list[float] = []
        self.broken = ""

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        self.looks.append(time.monotonic())
        if self.broken:
            raise DeviceFault(self.broken)
        return self.listed

    def used_bytes(self, uuid: str) -> int:
        return self.used


def verdict(offence: Offence, used_gib: float = 9, seconds: float = 2.04) -> Verdict:
    seen = ProcessSample(Process(7, 1, "python3", (ANNA,)), ANNA, GIB)
    quota = None if offence is Offence.NO_LEASE else QUOTA
    return Verdict(seen, offence, quota, int(used_gib * GIB), seconds)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            verdict(Offence.MEMORY),
            f"this server used 9.0 GiB of its 8.0 GiB of GPU memory for 2.0 s. {ADVICE}",
        ),
        (
            verdict(Offence.MEMORY, 40, 0.0),
            f"this server used 40 GiB of its 8.0 GiB of GPU memory. {ADVICE}",
        ),
        (
            verdict(Offence.MEMORY, 8.03),
            f"this server used 31 MiB more than its 8.0 GiB of GPU memory for 2.0 s. {ADVICE}",
        ),
        (
            verdict(Offence.NO_LEASE),
            "it used a GPU that this server has no lease for. Use the GPU that the server was given; for "
            "another one, start a server with another tier.",
        ),
        (
            verdict(Offence.BYPASSED_MPS),
            "it bypassed MPS, which shares this GPU. Don't change the CUDA_MPS_ settings, "
            "and restart the kernel.",
        ),
    ],
)
def test_what_the_user_reads(found: Verdict, sentence: str) -> None:
    assert sentence_of(found) == f"Your process 'python3' was ended: {sentence}"


def test_a_process_of_the_host_is_never_ended(caplog: pytest.LogCaptureFixture) -> None:
    """The test's own process, far over and on a device with quotas."""
    inventory, times, events = Fake(), iter(range(100)), list[GuardEvent]()
    inventory.listed = (GpuProcess(os.getpid(), 70 * GIB, False),)
    caplog.set_level(logging.INFO)
    settings = GuardSettings(monotonic=lambda: float(next(times)))
    watch = DeviceGuard(GPU, inventory, settings, logging.getLogger("test"))
    pauses = [watch.look(ORDERS, events.append) for _ in range(20)]
    assert (events, pauses) == ([], [1.0] * 20)
    assert len(caplog.messages) == 1


def test_a_device_that_can_not_be_read_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    inventory = Fake()
    inventory.broken = "The GPU is lost"
    caplog.set_level(logging.INFO)
    watch = DeviceGuard(GPU, inventory, GuardSettings(), logging.getLogger("test"))
    assert [watch.look(ORDERS, print) for _ in range(3)] == [1.0] * 3
    assert watch.blind == "The GPU is lost"
    inventory.broken = ""
    watch.look(ORDERS, print)
    assert watch.blind == ""
    assert caplog.messages == [
        f"Quotas can't be enforced: The GPU is lost devices={GPU}",
        f"Quotas are enforced again devices={GPU}",
    ]  # fmt: skip


def test_a_look_that_hangs_is_said_while_it_does() -> None:
    """NVML hangs in one call only, so the device's health says nothing of it."""
    inventory, now, said = Fake(), [0.0], list[str]()
    settings = GuardSettings(monotonic=lambda: now[0])
    watch = DeviceGuard(GPU, inventory, settings, logging.getLogger("test"))

    def hang(uuid: str) -> tuple[GpuProcess, ...]:
        for now[0] in (4.0, 7.0):
            said.append(watch.blind)
        return ()

    inventory.processes = hang  # type: ignore[method-assign]
    watch.look(ORDERS, print)
    assert said == ["", "NVML has not reported for 7 s which processes use the GPU: see `dmesg`"]
    assert watch.blind == ""


def test_memory_that_nvml_does_not_tell_is_no_quota_held() -> None:
    inventory, now = Fake(), [0.0]
    settings = GuardSettings(monotonic=lambda: now[0])
    watch = DeviceGuard(GPU, inventory, settings, logging.getLogger("test"))
    mine = ProcessTable().look(os.getpid())
    assert mine is not None
    watch._table.look_all = lambda pids: {7: replace(mine, container_ids=(ANNA,))}  # type: ignore[method-assign]
    inventory.listed = (GpuProcess(7, None, False),)
    said = []
    for now[0] in (0.0, 4.0, 6.0):
        watch.look(ORDERS, print)
        said.append(watch.blind)
    assert said == ["", "", "NVML doesn't report how much memory the processes on the GPU use"]
    inventory.listed = (GpuProcess(7, GIB, False),)
    watch.look(ORDERS, print)
    assert watch.blind == ""


async def ignore(_: GuardEvent) -> None:
    raise AssertionError


async def test_a_jump_of_the_device_s_memory_is_looked_at_soon() -> None:
    inventory = Fake()
    guard = Guard(inventory, ignore, settings=GuardSettings(pace=Pace(interval_seconds=30)))
    await guard.start(ORDERS)
    await until(lambda: inventory.looks)
    inventory.used = 200 << 20
    await asyncio.sleep(0.4)
    assert len(inventory.looks) == 1
    inventory.used = 300 << 20
    await until(lambda: len(inventory.looks) == 2)
    await guard.stop()


async def test_orders_are_obeyed_at_once_and_threads_end() -> None:
    inventory = Fake()
    guard = Guard(inventory, ignore, settings=GuardSettings(pace=Pace(interval_seconds=30)))
    await guard.start(QuotaPlan())
    assert inventory.looks == []
    guard.set_plan(ORDERS)
    await until(lambda: inventory.looks)
    guard.set_plan(ORDERS)
    await asyncio.sleep(0.2)
    assert len(inventory.looks) == 1  # the same orders are no reason to look
    guard.set_plan(QuotaPlan((), device_uuids=frozenset({GPU})))
    await until(lambda: len(inventory.looks) == 2)
    guard.set_plan(QuotaPlan())
    await guard.stop()
    await guard.stop()
    await until(lambda: not any(each.name.startswith("guard") for each in threading.enumerate()))
    assert guard.failures == 0


async def test_an_error_of_our_own_is_counted_and_the_guard_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    inventory = Fake()
    inventory.listed = (None,)  # type: ignore[assignment]
    guard = Guard(inventory, ignore, settings=GuardSettings(pace=Pace(interval_seconds=0.05)))
    await guard.start(ORDERS)
    await until(lambda: guard.failures > 1)
    inventory.listed = ()
    looks = len(inventory.looks)
    await until(lambda: len(inventory.looks) > looks + 1)
    failures = guard.failures
    await until(lambda: len(inventory.looks) > looks + 4)
    assert guard.failures == failures
    await guard.stop()


def test_a_guard_that_was_not_started_takes_no_orders() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        Guard(Fake(), ignore).set_plan(ORDERS)
