"""Turns on this machine: what is against them, and the check of the driver that opens a pool."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.node import turning
from gpuspawner.node.checkpoint.canary import CanaryResult
from gpuspawner.node.checkpoint.client import HelperDriver
from gpuspawner.node.inventory.simulated import SimulatedInventory
from gpuspawner.node.turning import LocalTurns, can_move, ending_danger, main_memory_bytes, turns_obstacle

from tests.checkpoint.standin import FOLDER

LOG = logging.getLogger("turning")
DRIVER = "580.159.04"
ALL = (1 << 41) - 1
HELPER = (sys.executable, "-m", "tests.checkpoint.standin")


def rights(tmp_path: Path, capabilities: int) -> Path:
    """A /proc/self/status with these capabilities."""
    path = tmp_path / "status"
    path.write_text(f"Name:\tpython3\nCapEff:\t{capabilities:016x}\n")
    return path


@pytest.mark.parametrize(
    ("driver", "capabilities", "said"),
    [
        (DRIVER, 1 << 19 | 1 << 21, ""),
        ("570.86.15", 1 << 19 | 1 << 21, ""),
        ("610.57.04", ALL, ""),
        (DRIVER, 1 << 19, "The broker has no permission to pause programs of containers: run it as root"),
        (DRIVER, 0, "The broker has no permission to pause programs of containers: run it as root"),
        (
            "550.54.14",
            ALL,
            "Driver 550.54.14 can't move a program's GPU memory: install 580 or newer",
        ),
        ("595.71.05", ALL, ""),
        (
            None,
            ALL,
            "The version of the NVIDIA driver is not available: install driver 580 or newer",
        ),
    ],
)
def test_what_is_against_turns(tmp_path: Path, driver: str | None, capabilities: int, said: str) -> None:
    assert turns_obstacle(driver, rights(tmp_path, capabilities)) == said


def test_which_driver_wakes_on_another_gpu() -> None:
    assert [can_move(each) for each in ("570.86.15", DRIVER, "610.57.04", None)] == [False, True, True, False]


def test_the_main_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert main_memory_bytes(meminfo) is None
    meminfo.write_text("MemTotal:       263840512 kB\nMemFree:        1 kB\n")
    assert main_memory_bytes(meminfo) == 263840512 << 10


@pytest.fixture
async def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTurns]:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(turning, "HelperDriver", partial(HelperDriver, command=HELPER))
    found = LocalTurns(SimulatedInventory(()), tmp_path, LOG)
    yield found
    await found.close()


def canary(monkeypatch: pytest.MonkeyPatch, *results: CanaryResult) -> list[str]:
    """What the next checks find; the GPUs that they used."""
    left, asked = list(results), []

    async def run(driver: Any, gpu_uuid: str) -> CanaryResult:
        asked.append(gpu_uuid)
        return left.pop(0)

    monkeypatch.setattr(turning, "run_canary", run)
    return asked


async def test_a_driver_is_checked_until_it_passed_once(
    turns: LocalTurns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = canary(monkeypatch, CanaryResult("its memory was lost"), CanaryResult(), CanaryResult("worse"))
    assert await turns.check(DRIVER, ["GPU-1", "GPU-2"]) == "its memory was lost"
    assert not (tmp_path / "turns-checked.json").exists()
    assert await turns.check(DRIVER, ["GPU-1", "GPU-2"]) == ""
    assert json.loads((tmp_path / "turns-checked.json").read_text()) == {"driver": DRIVER}
    assert await turns.check(DRIVER, ["GPU-2"]) == ""  # not again
    assert asked == ["GPU-1", "GPU-1"]
    assert await turns.check("610.1", ["GPU-2"]) == "worse"  # another version
    assert asked == ["GPU-1", "GPU-1", "GPU-2"]


async def test_a_damaged_record_means_another_check(
    turns: LocalTurns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = canary(monkeypatch, CanaryResult())
    (tmp_path / "turns-checked.json").write_text("[")
    assert await turns.check(DRIVER, ["GPU-1"]) == ""
    assert asked == ["GPU-1"]


async def test_a_helper_that_does_not_start_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turning, "HelperDriver", partial(HelperDriver, command=("/nowhere/python",)))
    turns = LocalTurns(SimulatedInventory(()), tmp_path, LOG)
    reason = await turns.check(DRIVER, ["GPU-1"])
    await turns.close()
    assert reason == "The checkpoint helper can't be started: No such file or directory"


def test_drivers_that_hang_when_a_woken_program_is_killed() -> None:
    danger = ending_danger("595.71.05")
    assert danger.startswith("With driver 595.71.05, killing a program that slept and was woken can hang the")
    assert danger.endswith(": install 580, or 610 or newer")
    assert [ending_danger(each) for each in (None, "580.159.04", "610.57.04")] == ["", "", ""]


async def test_with_such_a_driver_programs_sleep_before_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def start(self: HelperDriver) -> None:
        raise DeviceFault("no driver here")

    monkeypatch.setattr(HelperDriver, "start", start)
    turns = LocalTurns(cast(Any, None), tmp_path, logging.getLogger("turning"))
    assert await turns.check("595.71.05", ["GPU-1"]) == "no driver here"
    assert turns.hands.sleeps_before_end
    assert "can hang the machine" in caplog.text
    await turns.check("580.159.04", ["GPU-1"])
    assert not turns.hands.sleeps_before_end
    await turns.close()
