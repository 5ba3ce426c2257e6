"""Which containers used a device, by scripted NVML: plain processes, clients of MPS, what can't be told."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from gpuspawner.node.inventory import NvmlInventory, ProcessUse
from gpuspawner.node.processes import MPS_SERVER, Process
from gpuspawner.node.users import DeviceUsers, Users

from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Mig, Script

A, SMALL = "GPU-aaaaaaaa", "MIG-cccccccc"
ANNA, BEN, EVE = "a" * 64, "b" * 64, "e" * 64
OURS = frozenset({ANNA, BEN})
NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
NOT_SUPPORTED, BROKEN = 3, 999


class Processes:
    """The machine's processes as a test sets them."""

    def __init__(self) -> None:
        self.present: dict[int, Process] = {}
        self.cpu: dict[int, float] = {}

    def add(self, pid: int, *containers: str, name: str = "python3") -> int:
        self.present[pid] = Process(pid, 1, name, containers)
        self.cpu[pid] = 5.0
        return pid

    def look_all(self, pids: Collection[int]) -> dict[int, Process]:
        return {pid: self.present[pid] for pid in pids if pid in self.present}

    def cpu_seconds(self, process: Process) -> float | None:
        return self.cpu.get(process.pid)

    def close(self) -> None:
        """Nothing is held."""


class Bench:
    """A device that is looked at every five seconds."""

    def __init__(self, script: Script, inventory: NvmlInventory, uuid: str) -> None:
        self.script, self.processes, self.now = script, Processes(), NOON
        self.users = DeviceUsers(uuid, inventory, self.processes, lambda: self.now)

    def look(self, ours: frozenset[str] = OURS) -> Users | None:
        self.now += timedelta(seconds=5)
        return self.users.look(ours)

    def at(self, look: int) -> datetime:
        return NOON + timedelta(seconds=5 * look)


@pytest.fixture
def inventory(tmp_path: Path) -> Iterator[tuple[Script, NvmlInventory]]:
    """A GPU, and an instance of another one."""
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(A), Gpu("GPU-bbbbbbbb", mig=1)]
        script.add(Mig(SMALL, gpu=1).line())
        found = NvmlInventory()
        yield script, found
        found.close()


@pytest.fixture
def bench(inventory: tuple[Script, NvmlInventory]) -> Bench:
    return Bench(*inventory, A)


def test_nvml_tells_each_sample_once_and_none_of_them_is_no_fault(
    inventory: tuple[Script, NvmlInventory],
) -> None:
    script, nvml = inventory
    assert nvml.process_use(A, 7) == ProcessUse(frozenset(), 7)
    lines = [script.use(1, 0, mem=2), script.use(2, 0), script.use(3), script.use(4, 4_000_000)]
    found = nvml.process_use(A, 7)
    assert found is not None
    assert found.pids == {1, 3}
    assert nvml.process_use(A, found.until_us + 60_000_000) == ProcessUse(
        frozenset(), found.until_us + 60_000_000
    )
    for line in lines:
        script.drop(line)
    assert nvml.process_use(A, found.until_us) == ProcessUse(frozenset(), found.until_us)
    assert nvml.process_use(SMALL, 0) is None
    script.fault("nvmlDeviceGetProcessUtilization", NOT_SUPPORTED)
    assert nvml.process_use(A, 0) is None


def test_the_busy_one_is_told_from_the_one_that_only_holds_memory(bench: Bench) -> None:
    """40 GB held and nothing computed is no use; a neighbour's use is the neighbour's."""
    for pid, container in ((1, ANNA), (2, BEN)):
        bench.script.process(bench.processes.add(pid, container), 40 << 30)
    assert bench.look() == Users()
    line = bench.script.use(1)
    assert bench.look() == Users({ANNA: bench.at(2)})
    bench.script.drop(line)
    bench.script.use(2, 0, mem=1)
    assert bench.look() == Users({ANNA: bench.at(2), BEN: bench.at(3)})
    assert bench.look(frozenset({BEN})) == Users({BEN: bench.at(4)})  # anna's lease has ended


def test_use_by_the_host_and_by_containers_of_others_is_nobody_s(bench: Bench) -> None:
    bench.script.use(bench.processes.add(1))
    bench.script.use(bench.processes.add(2, EVE))
    bench.script.use(bench.processes.add(3, EVE, name=MPS_SERVER))
    assert bench.look() == Users()


def test_one_that_has_ended_since_is_known_if_it_was_seen_and_else_may_be_anybody(bench: Bench) -> None:
    bench.script.process(bench.processes.add(1, ANNA))
    assert bench.look() == Users()
    bench.script.use(1)
    del bench.processes.present[1]
    assert bench.look() == Users({ANNA: bench.at(2)})
    assert bench.look() == Users({ANNA: bench.at(2)}, bench.at(3))


def test_of_the_clients_of_mps_those_that_work_count(bench: Bench) -> None:
    """NVML names the server alone; who waits in a notebook uses no CPU, who computes does."""
    for pid, container in ((1, ANNA), (2, BEN)):
        bench.script.process(bench.processes.add(pid, container), mps=1)
    bench.processes.add(9, name=MPS_SERVER)
    line = bench.script.use(9)
    assert bench.look() == Users({ANNA: bench.at(1), BEN: bench.at(1)})  # both are new
    bench.processes.cpu = {1: 5.06, 2: 5.04}
    assert bench.look() == Users({ANNA: bench.at(2), BEN: bench.at(1)})
    bench.processes.cpu[2] += 4.0
    assert bench.look() == Users({ANNA: bench.at(2), BEN: bench.at(3)})
    bench.script.drop(line)
    bench.processes.cpu[1] += 4.0
    assert bench.look() == Users({ANNA: bench.at(2), BEN: bench.at(3)})  # the GPU did nothing


def test_what_can_not_be_read_may_have_been_used(bench: Bench) -> None:
    bench.script.use(bench.processes.add(1, ANNA))
    assert bench.look() == Users({ANNA: bench.at(1)})
    bench.script.fault("nvmlDeviceGetProcessUtilization", BROKEN)
    assert bench.look() == Users({ANNA: bench.at(1)}, bench.at(2))


def test_an_instance_can_not_be_measured(inventory: tuple[Script, NvmlInventory]) -> None:
    assert Bench(*inventory, SMALL).look() is None
