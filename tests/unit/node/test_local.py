"""This machine as a node: NVML that hangs or fails, devices that appear late, what is reported."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from gpuspawner.config.site import GpuSite
from gpuspawner.core.errors import ConfigError, DeviceFault
from gpuspawner.core.model import Device, DeviceHealth
from gpuspawner.node.api import (
    Access,
    DesiredState,
    Injection,
    MpsProgram,
    Node,
    NodeEvent,
    NodeFacts,
    Readings,
    Usage,
    Users,
)
from gpuspawner.node.claim import DeviceClaim
from gpuspawner.node.inventory import (
    ComputeMode,
    DriverFacts,
    Inventory,
    NvmlInventory,
    Patience,
    open_inventory,
)
from gpuspawner.node.inventory.simulated import SimulatedInventory, parse_simulated
from gpuspawner.node.local import LocalNode, LocalSettings
from gpuspawner.node.processes import ProcessTable

from tests.nvml.scripted import Script
from tests.soon import SOON_SECONDS
from tests.unit.lease_examples import UUIDS

A, B = UUIDS
LOG = logging.getLogger("node")
NO_MPS = MpsProgram(None, "not here")
LOST = 15
BOTH = DesiredState(frozenset({A, B}))


def nvml() -> Inventory:
    """The scripted driver; a GPU that hangs is given up on soon."""
    return NvmlInventory(Patience(0.3))


class Reader:
    """Reads a node's events as the broker does."""

    def __init__(self, node: Node) -> None:
        self.seen: list[NodeEvent] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._read(node))

    async def _read(self, node: Node) -> None:
        async for event in node.events():
            self.seen.append(event)
            self._news.set()

    async def until(self, what: Callable[[NodeEvent], bool]) -> NodeEvent:
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                for event in self.seen:
                    if what(event):
                        return event
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def node_in(
    folder: Path, inventory: Callable[[], Inventory] = nvml, claim: DeviceClaim | None = None
) -> AsyncIterator[LocalNode]:
    settings = LocalSettings(
        inventory, folder, find_mps=lambda: NO_MPS, open_seconds=1.0, look_seconds=0.1, read_seconds=0.05,
        claim=claim,
    )  # fmt: skip
    node = LocalNode(settings, LOG)
    try:
        yield node
    finally:
        await node.close()


def h100(uuid: str, index: int) -> Device:
    return Device(uuid, "NVIDIA H100 80GB HBM3", 85_520_809_984, (9, 0), 132, 5120, 2_619_000_000, index)


async def test_what_a_machine_has(script: Script, tmp_path: Path) -> None:
    script.change(1, mode=2)
    async with node_in(tmp_path) as node:
        facts = await node.start()
        assert facts == NodeFacts(
            name=facts.name,
            devices=tuple(replace(each, node=facts.name) for each in (h100(A, 0), h100(B, 1))),
            compute_modes={A: ComputeMode.DEFAULT, B: ComputeMode.PROHIBITED},
            driver=DriverFacts("580.159.04", "13.0", 2, ()),
            guard_obstacle=facts.guard_obstacle,
            mps=NO_MPS,
            mps_pipes=facts.mps_pipes,
            memory_bytes=facts.memory_bytes,
        )
        assert not facts.incomplete


async def test_real_gpus_are_of_one_node_and_simulated_ones_of_any(script: Script, tmp_path: Path) -> None:
    driver_file = tmp_path / "nvidiactl"
    driver_file.touch()

    def claim() -> DeviceClaim:
        return DeviceClaim(driver_file, wait_seconds=0.1)

    def simulated() -> Inventory:
        return SimulatedInventory(parse_simulated("1 x H100 80GB"), tmp_path)

    async with node_in(tmp_path / "a", claim=claim()) as first:
        await first.start()
        async with node_in(tmp_path / "b", claim=claim()) as second:
            with pytest.raises(ConfigError, match=rf"GPUs of this machine \(process {os.getpid()}\)"):
                await second.start()
        async with node_in(tmp_path / "c", simulated, claim()) as third:
            assert (await third.start()).simulated
    async with node_in(tmp_path / "b", claim=claim()) as second:
        assert len((await second.start()).devices) == 2


async def test_a_compute_mode_that_can_not_be_read_is_unknown(script: Script, tmp_path: Path) -> None:
    script.fault("nvmlDeviceGetComputeMode", 999, gpu=0)
    async with node_in(tmp_path) as node:
        assert (await node.start()).compute_modes == {A: None, B: ComputeMode.DEFAULT}


async def test_an_nvml_that_hangs_at_the_start_is_said_and_its_gpus_come_when_it_answers(
    script: Script, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = script.hang("nvmlInitWithFlags")
    async with node_in(tmp_path) as node:
        async with asyncio.timeout(SOON_SECONDS):
            facts = await node.start()
            await node.apply(BOTH)
        fault = "NVML has not answered for 1 s: see `dmesg` and `nvidia-smi`. GPUs are leased once it answers"
        assert (facts.devices, facts.fault, facts.simulated, facts.incomplete) == ((), fault, False, True)
        assert fault in caplog.messages
        assert await node.health() == ()
        with pytest.raises(DeviceFault, match="NVML has not answered"):
            await node.settle(A)
        reader = Reader(node)
        script.drop(line)
        late = await reader.until(lambda event: isinstance(event, NodeFacts))
        assert isinstance(late, NodeFacts)
        assert ([device.uuid for device in late.devices], late.fault) == ([A, B], "")
        assert await node.health() == (DeviceHealth(A, True), DeviceHealth(B, True))
        used = Readings({A: Usage(0, 0.0, Users()), B: Usage(0, 0.0, Users())})
        assert await reader.until(lambda event: event == used)


async def test_a_node_ends_while_nvml_hangs(script: Script, tmp_path: Path) -> None:
    line = script.hang("nvmlInitWithFlags")
    async with asyncio.timeout(SOON_SECONDS):
        async with node_in(tmp_path) as node:
            await node.start()
    script.drop(line)
    await asyncio.sleep(0.1)


async def test_an_nvml_that_fails_at_the_start_is_a_setting_to_change(script: Script, tmp_path: Path) -> None:
    def broken() -> Inventory:
        raise ConfigError("The driver is broken")

    async with node_in(tmp_path, broken) as node:
        with pytest.raises(ConfigError, match="The driver is broken"):
            await node.start()


@pytest.mark.parametrize("way", ["hangs", "is lost"])
async def test_a_gpu_that_can_not_be_read_at_the_start_comes_late(
    script: Script, tmp_path: Path, way: str
) -> None:
    line = script.hang("nvmlDeviceGetName", gpu=0) if way == "hangs" else script.add("# lost")
    script.change(0, lost=LOST if way == "is lost" else 0)
    async with node_in(tmp_path) as node:
        facts = await node.start()
        assert ([device.uuid for device in facts.devices], len(facts.left_out)) == ([B], 1)
        await node.apply(BOTH)
        assert await node.health() == (DeviceHealth(B, True),)
        reader = Reader(node)
        script.drop(line)
        script.change(0, lost=0)
        late = await reader.until(lambda event: isinstance(event, NodeFacts) and not event.left_out)
        assert isinstance(late, NodeFacts)
        assert {device.uuid for device in late.devices} == {A, B}
        assert set(await node.health()) == {DeviceHealth(A, True), DeviceHealth(B, True)}


async def test_a_device_that_somebody_holds_and_that_is_not_listed_is_looked_for(
    script: Script, tmp_path: Path
) -> None:
    both, script.gpus = script.gpus, script.gpus[:1]
    script.write()
    async with node_in(tmp_path) as node:
        assert not (await node.start()).incomplete
        reader = Reader(node)
        await node.apply(DesiredState(frozenset({A})))
        script.gpus = both
        script.write()
        await asyncio.sleep(0.5)
        assert not any(isinstance(event, NodeFacts) for event in reader.seen)  # nobody asked for it
        await node.apply(BOTH)
        late = await reader.until(lambda event: isinstance(event, NodeFacts))
        assert isinstance(late, NodeFacts)
        assert {device.uuid for device in late.devices} == {A, B}


async def test_one_that_hangs_is_withdrawn_alone(script: Script, tmp_path: Path) -> None:
    async with node_in(tmp_path) as node:
        await node.start()
        await node.apply(BOTH)
        reader = Reader(node)
        lines = [
            script.hang(function, gpu=0)
            for function in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMigMode")
        ]
        gone = await reader.until(lambda event: isinstance(event, DeviceHealth))
        assert isinstance(gone, DeviceHealth)
        assert (gone.uuid, gone.healthy) == (A, False)
        script.change(1, lost=LOST)  # its handle has to be found again, beside one that hangs
        await reader.until(lambda event: isinstance(event, DeviceHealth) and event.uuid == B)
        script.change(1, lost=0)
        await asyncio.sleep(1.5)
        assert {event.uuid for event in reader.seen if isinstance(event, DeviceHealth)} == {A, B}
        b = next(each for each in await node.health() if each.uuid == B)
        assert b.reason.startswith("The GPU is lost")  # it waits for its time, and does not hang
        for line in lines:
            script.drop(line)


async def test_simulated_devices_have_health_and_nothing_else(tmp_path: Path) -> None:
    inventory = SimulatedInventory(parse_simulated("1 x H100 80GB"))
    async with node_in(tmp_path, lambda: inventory) as node:
        facts = await node.start()
        (device,) = facts.devices
        assert (facts.simulated, facts.driver, facts.mps_pipes) == (True, None, "")
        inventory.break_device(device.uuid, "Too hot")
        await node.apply(DesiredState(frozenset({device.uuid})))
        (health,) = await node.health()
        assert (health.uuid, health.healthy, health.reason) == (device.uuid, False, "Too hot")
        await node.settle(device.uuid)
        assert await node.way_in({}, {}, [device.uuid]) == Access(Injection.NONE)


async def test_who_uses_a_device_now(script: Script, tmp_path: Path) -> None:
    """By pid, with what the process calls itself; pids that are no process any more are left out."""
    script.process(os.getpid(), 1 << 30, gpu=0)
    script.process(2**22 + 1, 1 << 30, gpu=0)
    async with node_in(tmp_path) as node:
        with pytest.raises(DeviceFault, match="NVML is not open"):
            await node.processes(A)
        await node.start()
        (process,) = await node.processes(A)
        assert process == ProcessTable().look(os.getpid())
        assert await node.processes(B) == ()
        line = script.hang("nvmlDeviceGetComputeRunningProcesses_v3", gpu=1)
        with pytest.raises(DeviceFault, match="has not answered for 2 s"):
            await node.processes(B)
        assert await node.processes(A) == (process,)
        script.drop(line)


@pytest.mark.parametrize(("plugged", "kind"), [(("0000:41:00.0",), "fault"), ((), "simulated")])
async def test_a_driver_that_is_loaded_after_the_broker_has_started(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugged: tuple[str, ...], kind: str
) -> None:
    """At a boot: with a GPU in the machine its GPUs are not simulated, but looked for again."""
    monkeypatch.setattr("gpuspawner.node.inventory.opening.nvidia_pci_devices", lambda: plugged)
    script.init = 9  # NVML_ERROR_DRIVER_NOT_LOADED
    script.write()
    async with node_in(tmp_path, lambda: open_inventory(GpuSite())) as node:
        facts = await node.start()
        assert (facts.simulated, bool(facts.fault)) == (kind == "simulated", kind == "fault")
        if kind == "simulated":
            return
        assert facts.fault.startswith("The NVIDIA driver is not loaded: run `modprobe nvidia`")
        reader = Reader(node)
        script.init = 0
        script.write()
        late = await reader.until(lambda event: isinstance(event, NodeFacts) and not event.fault)
        assert isinstance(late, NodeFacts)
        assert [device.uuid for device in late.devices] == [A, B]
