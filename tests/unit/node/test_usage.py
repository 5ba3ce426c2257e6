"""How busy devices are: what NVML says, and None for what it does not say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from gpuspawner.node.inventory import NvmlInventory
from gpuspawner.node.usage import Usage, UsageMonitor, UsageSettings
from gpuspawner.node.users import Users

from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Mig, Script
from tests.soon import SOON_SECONDS

A, B, SMALL = "GPU-aaaaaaaa", "GPU-bbbbbbbb", "MIG-cccccccc"
NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
LOG = logging.getLogger("usage")


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """A GPU that is busy, and an instance of another one."""
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(A, used=5 << 30, util=71), Gpu(B, mig=1)]
        script.add(Mig(SMALL, gpu=1).line())
        yield script


async def test_what_is_in_use_and_how_busy_it_is(script: Script) -> None:
    inventory = NvmlInventory()
    monitor = UsageMonitor(inventory, LOG, UsageSettings(0.2, lambda: NOON))
    monitor.watch([A, SMALL])
    await monitor.round()
    found = monitor.now()
    assert found[A] == Usage(5 << 30, 71.0, Users())
    assert found[SMALL].utilization_percent is None
    assert found[SMALL].used_bytes is not None
    assert found[SMALL].users is None
    script.change(0, util=0, celsius=64, draw_mw=90_000, limit_mw=700_000)
    await monitor.round()
    assert monitor.now()[A] == Usage(5 << 30, 0.0, Users(), 64.0, 90.0, 700.0)  # idle is 0, not told is None
    script.change(0, lost=15)
    await monitor.round()
    assert monitor.now()[A] == Usage(None, None, Users(unknown_at=NOON))
    await monitor.stop()
    inventory.close()


async def test_a_device_that_hangs_is_not_told_and_delays_nobody(script: Script) -> None:
    inventory = NvmlInventory()
    monitor = UsageMonitor(inventory, LOG, UsageSettings(0.2, lambda: NOON))
    monitor.watch([A, SMALL])
    line = script.hang("nvmlDeviceGetUtilizationRates", gpu=0)
    async with asyncio.timeout(SOON_SECONDS):
        await monitor.round()
    assert set(monitor.now()) == {SMALL}
    await monitor.round()
    script.drop(line)
    await monitor.round()
    assert monitor.now()[A] == Usage(5 << 30, 71.0, Users())
    await monitor.stop()
    inventory.close()
