"""Health with moved time on simulated devices, and with real time through pynvml on scripted ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pynvml
import pytest
from gpuspawner.core.model import DeviceHealth
from gpuspawner.node.health import HealthMonitor
from gpuspawner.node.inventory import NvmlInventory, XidEvent
from gpuspawner.node.inventory.simulated import SimulatedInventory, parse_simulated
from gpuspawner.node.xid import sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Script
from tests.prompt import going_first
from tests.soon import SOON_SECONDS

START = datetime(2026, 1, 1, tzinfo=UTC)
XID_79 = "The driver reported a fault of the GPU (XID 79). An admin has to restart the machine"
A, B = (device.uuid for device in parse_simulated("2 x H100 80GB"))


class Bench:
    """Two simulated devices under a monitor whose time only moves by `after`."""

    def __init__(self, recover_seconds: float = 30.0) -> None:
        self.seconds = 0.0
        self.changes: list[DeviceHealth] = []
        self.failing = False
        self.inventory = SimulatedInventory(parse_simulated("2 x H100 80GB"))
        self.monitor = HealthMonitor(
            self.inventory,
            self.on_change,
            clock=self.clock,
            monotonic=lambda: self.seconds,
            interval_seconds=3600.0,
            recover_seconds=recover_seconds,
        )

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    async def on_change(self, health: DeviceHealth) -> None:
        if self.failing:
            raise OSError("disk full")
        self.changes.append(health)

    async def after(self, seconds: float) -> list[DeviceHealth]:
        """Moves time, checks all, and returns what was reported meanwhile."""
        self.seconds += seconds
        await self.monitor.check_round()
        return self.taken()

    def taken(self) -> list[DeviceHealth]:
        changes, self.changes = self.changes, []
        return changes


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    await bench.monitor.watch(bench.inventory.devices())
    try:
        yield bench
    finally:
        await bench.monitor.stop()


def withdrawn(uuid: str, reason: str, seconds: float) -> DeviceHealth:
    return DeviceHealth(uuid, False, reason, START + timedelta(seconds=seconds))


def back(uuid: str, seconds: float) -> DeviceHealth:
    return DeviceHealth(uuid, True, "", START + timedelta(seconds=seconds))


async def test_all_well_says_nothing() -> None:
    async with running(Bench()) as bench:
        assert await bench.after(1) == []
        assert bench.monitor.health == {A: DeviceHealth(A, True), B: DeviceHealth(B, True)}


async def test_a_device_broken_at_start_was_reported_when_start_returns() -> None:
    bench = Bench()
    bench.inventory.break_device(A, "Too hot")
    async with running(bench):
        assert bench.taken() == [withdrawn(A, "Too hot", 0)]


async def test_a_failed_check_withdraws_that_device_alone_and_good_ones_bring_it_back() -> None:
    async with running(Bench()) as bench:
        bench.inventory.break_device(A, "Too hot")
        assert await bench.after(1) == [withdrawn(A, "Too hot", 1)]
        assert await bench.after(1) == []
        bench.inventory.break_device(A, "Too cold")
        assert await bench.after(1) == [withdrawn(A, "Too cold", 1)]  # since the first withdrawal
        bench.inventory.break_device(A, "")
        assert await bench.after(1) == []  # first good check at 4 s
        assert await bench.after(29) == []
        bench.inventory.break_device(A, "Too hot")
        assert await bench.after(0.5) == [withdrawn(A, "Too hot", 1)]
        bench.inventory.break_device(A, "")
        assert await bench.after(1) == []  # first good check at 34.5 s: counted anew
        assert await bench.after(29) == []
        assert await bench.after(1) == [back(A, 64.5)]
        assert await bench.after(100) == []


async def test_an_xid_withdraws_its_device_at_once() -> None:
    async with running(Bench()) as bench:
        await bench.monitor.handle_xid(XidEvent(B, 79))
        assert bench.taken() == [withdrawn(B, XID_79, 0)]
        assert await bench.after(10) == []
        await bench.monitor.handle_xid(XidEvent(B, 48))
        reason = sentence(48)
        assert bench.taken() == [withdrawn(B, reason, 0)]
        assert await bench.after(1) == []
        assert await bench.after(29) == []
        assert await bench.after(1) == [back(B, 41)]


async def test_an_xid_without_a_device_hits_all() -> None:
    async with running(Bench()) as bench:
        await bench.monitor.handle_xid(XidEvent(None, 79))
        assert bench.taken() == [withdrawn(A, XID_79, 0), withdrawn(B, XID_79, 0)]


async def test_xids_of_programs_and_of_other_gpus_change_nothing() -> None:
    async with running(Bench()) as bench:
        for xid in (13, 31, 43, 45, 63, 68, 94):
            await bench.monitor.handle_xid(XidEvent(A, xid))
            await bench.monitor.handle_xid(XidEvent(None, xid))
        await bench.monitor.handle_xid(XidEvent("GPU-not-ours", 79))
        assert bench.taken() == []


async def test_the_newest_xids_of_each_device_are_known() -> None:
    async with running(Bench()) as bench:
        for number in range(25):
            await bench.monitor.handle_xid(XidEvent(A, 43))
            await bench.after(number / 100)
        await bench.monitor.handle_xid(XidEvent(None, 31))
        await bench.monitor.handle_xid(XidEvent("GPU-not-ours", 79))
        found = bench.monitor.xids()
        assert {uuid: [seen.xid for seen in each] for uuid, each in found.items()} == {
            A: [31, *[43] * 19], B: [31],
        }  # fmt: skip
        assert [seen.at for seen in found[A]] == sorted((seen.at for seen in found[A]), reverse=True)


async def test_a_device_that_waits_for_a_reset_stays_withdrawn() -> None:
    async with running(Bench()) as bench:
        bench.inventory.hold_for_reset(A, "Reset it")
        assert await bench.after(1) == []  # by itself it withdraws nothing
        await bench.monitor.handle_xid(XidEvent(A, 64))
        assert len(bench.taken()) == 1
        assert await bench.after(1) == []
        assert await bench.after(30) == [withdrawn(A, "Reset it", 1)]
        bench.inventory.hold_for_reset(A, "")
        assert await bench.after(1) == []
        assert await bench.after(30) == [back(A, 63)]


async def test_a_change_that_could_not_be_reported_is_reported_again() -> None:
    async with running(Bench()) as bench:
        bench.inventory.break_device(A, "Too hot")
        bench.failing = True
        assert await bench.after(1) == []
        assert bench.monitor.failures == 1
        bench.failing = False
        assert await bench.after(1) == [withdrawn(A, "Too hot", 1)]
        assert bench.monitor.failures == 1


async def test_an_inventory_that_raises_anything_else_is_unreadable_too() -> None:
    class Odd(SimulatedInventory):
        def check(self, uuid: str) -> None:
            raise ZeroDivisionError("odd")

    changes: list[DeviceHealth] = []

    async def on_change(health: DeviceHealth) -> None:
        changes.append(health)

    odd = Odd(parse_simulated("1 x H100 80GB"))
    monitor = HealthMonitor(odd, on_change, clock=lambda: START)
    await monitor.watch(odd.devices())
    await monitor.stop()
    assert changes == [withdrawn(A, "Checking the GPU failed: ZeroDivisionError('odd')", 0)]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("check"), st.booleans(), st.floats(0.1, 20)),
        st.tuples(st.just("xid"), st.sampled_from([13, 31, 48, 79]), st.floats(0.1, 20)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_healthy_exactly_when_good_for_long_enough(events: list[tuple[str, int, float]]) -> None:
    """Against a naive model that keeps the whole history and looks through it anew each time."""

    async def run() -> None:
        history: list[tuple[float, str]] = []
        async with running(Bench()) as bench:
            for kind, value, seconds in events:
                bench.seconds += seconds
                if kind == "check":
                    bench.inventory.break_device(A, "" if value else "Too hot")
                    await bench.monitor.check_round()
                    history.append((bench.seconds, "good" if value else "bad"))
                else:
                    await bench.monitor.handle_xid(XidEvent(A, value))
                    if value not in (13, 31):
                        history.append((bench.seconds, "bad"))
                assert bench.monitor.health[A].healthy == naive(history)
                assert bench.monitor.health[B].healthy

    asyncio.run(run())


def naive(history: list[tuple[float, str]]) -> bool:
    bad = [number for number, (_, verdict) in enumerate(history) if verdict == "bad"]
    since = history[bad[-1] + 1 :] if bad else []
    return not bad or (bool(since) and since[-1][0] - since[0][0] >= 30.0)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(A), Gpu(B)]
        script.write()
        yield script


class Live:
    """The real pynvml under a monitor with the broker's own intervals, but a short recovery."""

    def __init__(self) -> None:
        self.inventory = NvmlInventory()
        self.changes: asyncio.Queue[DeviceHealth] = asyncio.Queue()
        self.monitor = HealthMonitor(self.inventory, self.changes.put, recover_seconds=1.0)

    async def next(self, seconds: float = SOON_SECONDS) -> tuple[str, bool, str]:
        health = await asyncio.wait_for(self.changes.get(), seconds)
        return health.uuid, health.healthy, health.reason


@pytest.fixture
async def live(script: Script) -> AsyncIterator[Live]:
    with going_first():
        live = Live()
        await live.monitor.watch(live.inventory.devices())
        yield live
        await live.monitor.stop()
        await asyncio.to_thread(live.inventory.close)


LOST = "The GPU is lost (it fell off the bus): reset it or restart the machine (NVML: GPU is lost)"


async def test_xid_79_withdraws_that_gpu_within_5_s_and_it_recovers(script: Script, live: Live) -> None:
    script.xid(0, 13)
    script.xid(1, 79)
    assert await live.next(5) == (B, False, XID_79)
    assert await live.next() == (B, True, "")
    assert live.monitor.health[A] == DeviceHealth(A, True)
    assert live.changes.empty()


async def test_a_lost_gpu_is_withdrawn_within_5_s_and_comes_back(script: Script, live: Live) -> None:
    script.change(0, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    assert await live.next(5) == (A, False, LOST)
    assert live.monitor.health[B] == DeviceHealth(B, True)
    script.change(0, lost=0)
    assert await live.next() == (A, True, "")


async def test_a_hanging_call_withdraws_its_gpu_and_delays_no_other(script: Script, live: Live) -> None:
    line = script.hang("nvmlDeviceGetMemoryInfo", gpu=0)
    silent = "The GPU has not answered for 2 s: see `dmesg` and `nvidia-smi`"
    assert await live.next() == (A, False, silent)
    script.change(1, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    assert await live.next() == (B, False, LOST)
    checking = [thread.name for thread in threading.enumerate() if thread.name.startswith("nvml-check")]
    assert len(checking) == 2
    script.drop(line)
    assert await live.next() == (A, True, "")


async def test_a_hang_in_waiting_for_xids_leaves_the_checks_alone(script: Script, live: Live) -> None:
    script.hang("nvmlEventSetWait_v2")
    await asyncio.sleep(0.6)
    script.change(1, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    assert await live.next() == (B, False, LOST)
    async with asyncio.timeout(SOON_SECONDS):
        await live.monitor.stop()


async def test_a_gpu_that_takes_the_event_set_with_it(script: Script, live: Live) -> None:
    line = script.fault("nvmlEventSetWait_v2", pynvml.NVML_ERROR_GPU_IS_LOST)
    script.change(0, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    assert await live.next() == (A, False, LOST)
    script.drop(line)
    await asyncio.sleep(1.5)
    script.xid(1, 79)
    assert await live.next() == (B, False, XID_79)
