"""How full the disks are: in metrics, in the log when it changes, and without Docker what is known."""

from __future__ import annotations

import asyncio
import logging
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.observe.disks import DiskWatch
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.disk import Disk, DiskState
from gpuspawner.core.errors import EngineFault
from gpuspawner.node.inventory.simulated import SimulatedInventory
from gpuspawner.node.local import LocalNode, LocalSettings

from tests.soon import SOON_SECONDS

GIB = 1 << 30
Used = namedtuple("Used", "total used free")


class Machine:
    """A disk whose free space a test sets, and Docker."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.asked, self.down = 50 * GIB, 0, False
        self.root = root
        usage = lambda path: Used(100 * GIB, 0, self.free)  # noqa: E731 - it is only this
        monkeypatch.setattr("gpuspawner.node.disks.shutil.disk_usage", usage)
        self.metrics = Metrics()

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self.asked += 1
        if self.down:
            raise EngineFault("Docker is down")
        return {"DockerRootDir": str(self.root)}, {}

    def watch(self) -> DiskWatch:
        settings = LocalSettings(lambda: SimulatedInventory(()), self.root)
        log = logging.getLogger("disks")
        return DiskWatch(self.facts, LocalNode(settings, log).disks, self.metrics, log)

    def gauge(self, name: str, holds: str = "images, homes and logs") -> float | None:
        return self.metrics.registry.get_sample_value(f"gpuspawner_disk_{name}_bytes", {"holds": holds})


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


async def test_low_space_is_said_before_it_bites(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = machine.watch()
    assert watch.now() == ()
    for free in (50, 5, 5, 0, 60):
        machine.free = free * GIB
        await watch.round()
        assert (machine.gauge("free"), machine.gauge("total")) == (free * GIB, 100 * GIB)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]
    folder = machine.root
    assert caplog.messages == [
        f"Disk of images, homes and logs: 5.0 GiB of 100 GiB free at {folder}: low",
        f"Disk of images, homes and logs: 0 B of 100 GiB free at {folder}: full, so that servers can't start",
        f"Disk of images, homes and logs: 60 GiB of 100 GiB free at {folder}",
    ]
    assert watch.now() == (Disk("images, homes and logs", str(folder), 60 * GIB, 100 * GIB),)
    assert machine.asked == 1


async def test_where_docker_does_not_say_its_folder_the_brokers_own_is_known(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.down = True
    watch = machine.watch()
    await watch.round()
    assert [disk.holds for disk in watch.now()] == ["the broker's state"]
    machine.down = False
    await watch.round()
    assert [disk.holds for disk in watch.now()] == ["images, homes and logs"]
    assert machine.gauge("free", "the broker's state") is None  # it is the same disk
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere")
    elsewhere = machine.watch()
    await elsewhere.round()
    assert [disk.holds for disk in elsewhere.now()] == ["the broker's state"]


@pytest.mark.parametrize(("free", "state"), [(1 * GIB - 1, "full"), (GIB, "low"), (10 * GIB, "ok")])
def test_when_a_disk_is_low(free: int, state: str) -> None:
    assert Disk("homes", "/x", free, 1000 * GIB).state is DiskState(state)


async def test_a_failure_is_counted_each_time_and_logged_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpuspawner.broker.observe.disks.ROUND_SECONDS", 0.0)
    rounds = 0

    async def read(root: str) -> tuple[Disk, ...]:
        nonlocal rounds
        rounds += 1
        raise RuntimeError("broken")

    watch = DiskWatch(machine.facts, read, machine.metrics, logging.getLogger("disks"))
    watching = asyncio.create_task(watch.run())
    async with asyncio.timeout(SOON_SECONDS):
        while rounds < 3:
            await asyncio.sleep(0)
    watching.cancel()
    assert [record.message for record in caplog.records] == ["The disks can't be read; trying again: broken"]
    counted = machine.metrics.registry.get_sample_value("gpuspawner_loop_errors_total", {"loop": "disks"})
    assert counted == rounds
