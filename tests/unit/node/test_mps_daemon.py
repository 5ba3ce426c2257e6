"""The MPS daemons against a stand-in program: started, limited, watched, taken over, stopped; and hanging."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.node.mps.control import MpsLimits, MpsPlace, find_all, find_daemon, place_of
from gpuspawner.node.mps.daemon import BACK, DIED, MpsChange, MpsPace, MpsService
from gpuspawner.node.processes import Process, ProcessTable

from tests.mps import standin
from tests.prompt import going_first
from tests.soon import SOON_SECONDS

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"
GIB = 1 << 30
LIMITS = MpsLimits(25, 8 * GIB)
PACE = MpsPace(
    command_seconds=2, start_seconds=1.5, quit_seconds=1, probe_seconds=0.2, silent_seconds=0.5,
    backoff_seconds=0.05, longest_backoff_seconds=0.4,
)  # fmt: skip
SET = ["set_default_active_thread_percentage 25", "set_default_device_pinned_mem_limit 0 8192M"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="MPS serves containers only as root")


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """The stand-in's commands have a time limit, and other programs may keep the machine busy."""
    with going_first():
        yield


@dataclass
class Machine:
    """A state folder, the stand-in, and what was told."""

    folder: Path
    program: Path
    told: list[MpsChange] = field(default_factory=list)
    services: list[MpsService] = field(default_factory=list)

    def service(self, pace: MpsPace = PACE) -> MpsService:
        async def on_change(change: MpsChange) -> None:
            self.told.append(change)

        service = MpsService(self.program, self.folder, on_change, pace=pace)
        self.services.append(service)
        return service

    def place(self, uuid: str = A) -> MpsPlace:
        return place_of(uuid, self.folder)

    def pid(self, uuid: str = A) -> int | None:
        daemon = find_daemon(self.place(uuid), ProcessTable())
        return None if daemon is None else daemon.pid

    def order(self, *orders: str, uuid: str = A) -> None:
        place = self.place(uuid)
        place.make()
        (place.log / "orders").write_text("\n".join(orders))

    def commands(self, uuid: str = A) -> list[str]:
        """What the daemon was told, without the questions of `_watch` and the wait for the start."""
        lines = (self.place(uuid).log / "commands").read_text().splitlines()
        return [line for line in lines if line.startswith(("set_", "start_", "quit"))]

    async def until_told(self, count: int) -> list[MpsChange]:
        async with asyncio.timeout(SOON_SECONDS):
            while len(self.told) < count:
                await asyncio.sleep(0.02)
        return self.told


@pytest.fixture
async def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    folder = Path("/tmp") / f"gsm-{os.getpid()}-{tmp_path.name[-12:]}"
    folder.mkdir()
    monkeypatch.setattr("gpuspawner.node.mps.control.RUN_DIR", folder / "run")
    machine = Machine(folder, standin.install(tmp_path))
    yield machine
    for service in machine.services:
        await service.leave()
    for uuid in (A, B):
        for process in find_all(machine.place(uuid), ProcessTable()):
            os.kill(process.pid, signal.SIGKILL)
    await asyncio.to_thread(standin_remove, folder)


def standin_remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


async def until_logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while words not in caplog.text:
            await asyncio.sleep(0.05)


async def test_a_daemon_of_its_own_for_each_gpu(machine: Machine) -> None:
    service = machine.service()
    await asyncio.gather(
        service.ensure(A, LIMITS), service.ensure(B, MpsLimits(100)), service.ensure(A, LIMITS)
    )
    assert machine.pid(A) not in (None, machine.pid(B))
    assert (machine.commands(A), machine.commands(B)) == (SET, ["set_default_active_thread_percentage 100"])
    assert (service.reason(A), service.reason(B)) == ("", "")
    place = machine.place()
    names = ["CUDA_MPS_LOG_DIRECTORY", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_VISIBLE_DEVICES"]
    assert (place.log / "environment").read_text() == f"{A} {place.pipe} {place.log} {names}\n"


async def test_who_may_pass_to_the_pipe_folder(machine: Machine) -> None:
    """MPS's server runs as the container's user and reaches its sockets by their path."""
    os.umask(0o077)
    try:
        await machine.service().ensure(A, LIMITS)
    finally:
        os.umask(0o022)
    place = machine.place()
    paths = (machine.folder / "run", place.pipe.parent, place.pipe, place.log, place.log / "daemon.out")
    modes = [oct(stat.S_IMODE(path.stat().st_mode)) for path in paths]
    assert modes == ["0o711", "0o711", "0o755", "0o700", "0o600"]
    look = f"import os; os.setgid(100); os.setuid(1000); print(os.listdir({str(place.pipe)!r}))"
    seen = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", look], text=True)
    assert "control" in seen


async def test_other_limits_reach_the_servers_that_run(machine: Machine) -> None:
    service = machine.service()
    await service.ensure(A, LIMITS)
    await service._daemon(A)._control.ask("start_server -uid 1000")
    (server,) = await service._daemon(A)._control.servers()
    before = machine.pid()
    await service.ensure(A, MpsLimits(50, 20 * GIB))
    assert machine.pid() == before
    assert machine.commands()[3:] == [
        "set_default_active_thread_percentage 50",
        "set_default_device_pinned_mem_limit 0 20480M",
        f"set_active_thread_percentage {server} 50",
        f"set_device_pinned_mem_limit {server} 0 20480M",
    ]


async def test_the_next_broker_takes_it_over(machine: Machine) -> None:
    first = machine.service()
    await first.ensure(A, LIMITS)
    before = machine.pid()
    await first.leave()
    await machine.service().ensure(A, LIMITS)
    assert machine.pid() == before
    assert machine.commands() == [*SET, *SET]
    assert machine.told == []


async def test_a_daemon_of_a_former_broker_that_hangs_is_replaced_and_told(machine: Machine) -> None:
    first = machine.service()
    await first.ensure(A, LIMITS)
    before = machine.pid()
    await first.leave()
    machine.order("hang")
    starting = asyncio.create_task(machine.service().ensure(A, LIMITS))
    await machine.until_told(1)
    machine.order()
    await starting
    assert machine.pid() not in (None, before)
    assert machine.told == [MpsChange(A, False, DIED)]


async def test_a_daemon_of_a_former_broker_may_be_silent_for_as_long_as_a_watched_one(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    first = machine.service()
    await first.ensure(A, LIMITS)
    before = machine.pid()
    await first.leave()
    machine.order("hang")
    pace = replace(PACE, silent_seconds=60)
    starting = asyncio.create_task(machine.service(pace).ensure(A, LIMITS))
    await until_logged(caplog, "MPS daemon of an earlier broker: MPS has not answered")
    machine.order()
    assert not await starting
    assert (machine.pid(), machine.told) == (before, [])


async def test_one_that_dies_is_told_and_started_again(machine: Machine) -> None:
    service = machine.service()
    await service.ensure(A, LIMITS)
    await service.ensure(B, LIMITS)
    await service._daemon(A)._control.ask("start_server -uid 1000")
    before, other = machine.pid(A), machine.pid(B)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    assert await machine.until_told(2) == [MpsChange(A, False, DIED), MpsChange(A, True, BACK)]
    assert machine.pid(A) not in (None, before)
    assert machine.pid(B) == other
    # Its server is not left without a daemon.
    assert [process.pid for process in find_all(machine.place(A), ProcessTable())] == [machine.pid(A)]
    assert machine.commands(A) == [*SET, "start_server -uid 1000", *SET]


async def test_one_that_a_start_replaced_before_its_death_was_noticed_stays(machine: Machine) -> None:
    service = machine.service()
    daemon, replaced = service._daemon(A), list[int | None]()
    until_dead = daemon._until_dead

    async def until_replaced() -> float:
        lived = await until_dead()
        if not replaced:
            assert await service.ensure(A, LIMITS)
            replaced.append(machine.pid())
        return lived

    daemon._until_dead = until_replaced  # type: ignore[method-assign]
    await service.ensure(A, LIMITS)
    pid = machine.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await machine.until_told(2) == [MpsChange(A, False, DIED), MpsChange(A, True, BACK)]
    assert replaced == [machine.pid()]
    assert service.reason(A) == ""


async def test_one_that_dies_again_and_again_is_tried_with_pauses(machine: Machine) -> None:
    service = machine.service()
    await service.ensure(A, LIMITS)
    machine.order("no-start")
    pid = machine.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await machine.until_told(1)
    await asyncio.sleep(0.3)
    assert service.reason(A) == "MPS ended and is being restarted"
    with pytest.raises(DeviceFault, match=r"^MPS started and ended again: see "):
        await service.ensure(A, LIMITS)
    assert service.reason(A).startswith("MPS started and ended again")
    machine.order()
    assert (await machine.until_told(2))[1] == MpsChange(A, True, BACK)
    assert service.reason(A) == ""


async def test_one_that_hangs_is_told_and_replaced(machine: Machine) -> None:
    service = machine.service()
    await service.ensure(A, LIMITS)
    before = machine.pid()
    machine.order("hang")
    await machine.until_told(1)
    machine.order()
    assert await machine.until_told(2) == [MpsChange(A, False, DIED), MpsChange(A, True, BACK)]
    assert machine.pid() not in (None, before)


async def test_a_short_silence_is_nothing(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    service = machine.service(replace(PACE, silent_seconds=60))
    await service.ensure(A, LIMITS)
    before = machine.pid()
    machine.order("hang")
    await until_logged(caplog, "; silent for ")
    machine.order()
    await asyncio.sleep(0.5)
    assert (machine.pid(), machine.told) == (before, [])
    assert await service._daemon(A)._control.percent() == 25.0


async def test_a_hanging_program_blocks_nothing(machine: Machine) -> None:
    service = machine.service()
    machine.order("slow-start 60")
    with pytest.raises(DeviceFault, match=r"^MPS has not answered 'starting' for 1.5 s$"):
        await service.ensure(A, LIMITS)
    assert find_all(machine.place(), ProcessTable()) == ()
    machine.order()
    await service.ensure(A, LIMITS)
    machine.order("hang")
    async with asyncio.timeout(SOON_SECONDS):
        await service.stop(A)
    assert find_all(machine.place(), ProcessTable()) == ()


async def test_stop_ends_daemon_and_servers_and_keeps_the_logs(machine: Machine) -> None:
    service = machine.service()
    await service.ensure(A, LIMITS)
    await service._daemon(A)._control.ask("start_server -uid 1000")
    await service.stop(A)
    assert find_all(machine.place(), ProcessTable()) == ()
    assert machine.commands()[-1] == "quit"
    assert not machine.place().pipe.exists()
    assert machine.told == []
    await service.stop(A)


@pytest.mark.parametrize("orders", [(), ("stay",)])
async def test_looks_at_all_processes_are_few_and_off_the_event_loop(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, orders: tuple[str, ...]
) -> None:
    """A look goes through all of /proc: 0.2 s with 3000 processes."""
    looked: list[str] = []

    def slow(place: MpsPlace, table: ProcessTable) -> tuple[Process, ...]:
        looked.append(threading.current_thread().name)
        time.sleep(0.2)
        return find_all(place, table)

    monkeypatch.setattr("gpuspawner.node.mps.daemon.find_all", slow)
    service = machine.service()
    await service.ensure(A, LIMITS)
    await service._daemon(A)._control.ask("start_server -uid 1000")
    machine.order(*orders)
    await service.stop(A)
    assert find_all(machine.place(), ProcessTable()) == ()
    assert {name.partition("-")[0] for name in looked} == {"mps"}
    assert len(looked) <= 4


async def test_logs_that_grow_while_the_daemon_runs_are_cut(machine: Machine) -> None:
    """The daemon keeps its log open: what it writes later is in the file, which takes little disk."""
    service = machine.service()
    await service.ensure(A, LIMITS)
    logs = machine.place().log
    small = logs / "server.log"
    small.write_text("a line")
    with (logs / "control.log").open("wb") as control:
        for number in range(17):
            control.write(bytes([number]) * (1 << 20))
        control.flush()
        async with asyncio.timeout(SOON_SECONDS):
            while (logs / "control.log").stat().st_blocks * 512 > 1 << 20:
                await asyncio.sleep(0.05)
        assert (logs / "control.log.1").read_bytes() == bytes([16]) * (1 << 20)
        control.write(b"after")
        control.flush()
    cut = (logs / "control.log").stat()
    assert (cut.st_size, cut.st_blocks * 512 < 1 << 20) == ((17 << 20) + 5, True)
    assert (small.read_text(), machine.told) == ("a line", [])


async def test_one_that_does_not_quit_is_killed(machine: Machine) -> None:
    service = machine.service()
    await service.ensure(A, LIMITS)
    machine.order("stay")
    await service.stop(A)
    assert find_all(machine.place(), ProcessTable()) == ()


async def test_what_a_former_broker_left_is_found(machine: Machine) -> None:
    first = machine.service()
    assert first.left_behind() == frozenset()
    await first.ensure(A, LIMITS)
    await first.ensure(B, LIMITS)
    await first.leave()
    again = machine.service()
    assert again.left_behind() == {A, B}
    await again.stop(A)
    assert again.left_behind() == {B}


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        (
            "fail",
            r"^MPS did not start \(exit status 1\): see .*/GPU-.*/daemon.out and control.log beside it$",
        ),
        ("no-start", "MPS started and ended again: see "),
        ("refuse set_default_device", "MPS refused 'set_default_device_pinned_mem_limit 0 8192M': Error: op"),
        ("die set_default_active", "MPS "),
        ("percent 100.0", "MPS gives 100 % of the GPU instead of 25 %"),
        ("percent what", "MPS answered 'what' instead of a percentage"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    machine: Machine, order: str, sentence: str
) -> None:
    machine.order(order)
    service = machine.service()
    with pytest.raises(DeviceFault, match=sentence) as caught:
        await service.ensure(A, LIMITS)
    assert service.reason(A) == str(caught.value)
    assert find_all(machine.place(), ProcessTable()) == ()
    machine.order()
    await service.ensure(A, LIMITS)
    assert service.reason(A) == ""


async def test_a_cancelled_start_leaves_no_command_behind(machine: Machine) -> None:
    machine.order("hang")
    service = machine.service()
    starting = asyncio.create_task(service.ensure(A, LIMITS))
    await asyncio.sleep(0.3)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    machine.order()
    await service.ensure(A, LIMITS)
    assert len(find_all(machine.place(), ProcessTable())) == 1


async def test_a_folder_that_cannot_be_made(machine: Machine) -> None:
    (machine.folder / "run").write_text("")
    with pytest.raises(DeviceFault, match=r"^MPS's folder /tmp/gsm-.* can't be created: Not a directory$"):
        await machine.service().ensure(A, LIMITS)
