"""MPS daemons and compute modes follow the broker's document, through failures and changes of mind."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.core.model import Device
from gpuspawner.node.api import DaemonPlan, DesiredState, MpsEvent, MpsLimits, MpsState
from gpuspawner.node.daemons import ENDED, DaemonTools, GpuDaemons
from gpuspawner.node.inventory import ComputeMode
from gpuspawner.node.inventory.simulated import SimulatedInventory
from gpuspawner.node.mps.control import MpsPlace, find_all, find_daemon, place_of
from gpuspawner.node.mps.daemon import BACK, DIED, MpsPace
from gpuspawner.node.processes import ProcessTable

from tests.mps import standin
from tests.prompt import going_first
from tests.soon import SOON_SECONDS

A, B, C = (f"GPU-{letter * 8}-0000-0000-0000-000000000001" for letter in "abc")
DEVICES = tuple(Device(uuid, "H100", 80 << 30, index=number) for number, uuid in enumerate((A, B, C)))
PLAN = DaemonPlan(MpsLimits(25, 8 << 30), exclusive=True)
PACE = MpsPace(
    command_seconds=2, start_seconds=1.5, quit_seconds=1, probe_seconds=0.2, silent_seconds=0.5,
    backoff_seconds=0.05, longest_backoff_seconds=0.4,
)  # fmt: skip
EXCLUSIVE, DEFAULT = ComputeMode.EXCLUSIVE_PROCESS, ComputeMode.DEFAULT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="MPS serves containers only as root")


class Bench:
    """A machine on which brokers come and go."""

    def __init__(self, folder: Path, program: Path | None) -> None:
        self.folder, self.program = folder, program
        self.inventory = SimulatedInventory(DEVICES)
        self.events: list[MpsEvent] = []
        self.daemons: GpuDaemons | None = None

    async def broker(self, settle_seconds: float = 30.0) -> GpuDaemons:
        await self.end()
        tools = DaemonTools(
            self.inventory, self.program, self.folder, self.events.append, logging.getLogger("daemons"), PACE,
            retry_seconds=0.05, settle_seconds=settle_seconds,
        )  # fmt: skip
        self.daemons = GpuDaemons(tools)
        return self.daemons

    async def end(self) -> None:
        if self.daemons is not None:
            await self.daemons.close()
            self.daemons = None

    def place(self, uuid: str = A) -> MpsPlace:
        return place_of(uuid, self.folder)

    def order(self, text: str, uuid: str = A) -> None:
        self.place(uuid).make()
        (self.place(uuid).log / "orders").write_text(text)

    def pid(self, uuid: str = A) -> int | None:
        daemon = find_daemon(self.place(uuid), ProcessTable())
        return None if daemon is None else daemon.pid

    def modes(self) -> tuple[ComputeMode, ...]:
        return tuple(self.inventory.compute_mode(device.uuid) for device in DEVICES)

    def taken(self) -> list[MpsEvent]:
        events, self.events[:] = list(self.events), []
        return events

    async def until(self, what: object) -> None:
        async with asyncio.timeout(SOON_SECONDS):
            while not what():  # type: ignore[operator]
                await asyncio.sleep(0.02)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    folder = Path("/tmp") / f"gsd-{os.getpid()}-{tmp_path.name[-12:]}"
    folder.mkdir()
    monkeypatch.setattr("gpuspawner.node.mps.control.RUN_DIR", folder / "run")
    bench = Bench(folder, standin.install(tmp_path))
    with going_first():
        yield bench
        await bench.end()
    for device in DEVICES:
        for process in find_all(bench.place(device.uuid), ProcessTable()):
            os.kill(process.pid, signal.SIGKILL)
    shutil.rmtree(folder)


def wanting(**plans: DaemonPlan) -> DesiredState:
    uuids = {"a": A, "b": B, "c": C}
    return DesiredState(daemons={uuids[name]: plan for name, plan in plans.items()})


async def test_what_is_wanted_runs_and_what_is_not_ends(bench: Bench) -> None:
    daemons = await bench.broker()
    await daemons.apply(wanting(a=PLAN, b=replace(PLAN, exclusive=False)))
    await asyncio.gather(daemons.settle(A), daemons.settle(B), daemons.settle(C))
    assert None not in (bench.pid(A), bench.pid(B))
    assert (bench.pid(C), bench.modes()) == (None, (EXCLUSIVE, DEFAULT, DEFAULT))
    await daemons.apply(wanting(b=PLAN))
    await asyncio.gather(daemons.settle(A), daemons.settle(B))
    assert (bench.pid(A), bench.modes()) == (None, (DEFAULT, EXCLUSIVE, DEFAULT))
    found = [(event.uuid, event.state) for event in bench.taken()]
    running, stopped = MpsState.RUNNING, MpsState.STOPPED
    assert sorted(found) == [(A, running), (A, stopped), (B, running)]


async def test_what_a_former_broker_left_ends_unless_it_is_undecided(bench: Bench) -> None:
    daemons = await bench.broker()
    await daemons.apply(wanting(a=PLAN, b=PLAN, c=PLAN))
    await asyncio.gather(*(daemons.settle(device.uuid) for device in DEVICES))
    before = bench.pid(A), bench.pid(B)
    daemons = await bench.broker()
    undecided = replace(wanting(a=PLAN), undecided=frozenset({B}))
    await daemons.apply(undecided)
    await bench.until(lambda: bench.modes() == (EXCLUSIVE, EXCLUSIVE, DEFAULT))
    assert (bench.pid(A), bench.pid(B), bench.pid(C)) == (*before, None)
    await daemons.apply(undecided)
    await asyncio.sleep(0.2)
    assert bench.pid(B) == before[1]
    await daemons.apply(wanting(a=PLAN))
    await bench.until(lambda: bench.modes() == (EXCLUSIVE, DEFAULT, DEFAULT))
    assert (bench.pid(A), bench.pid(B)) == (before[0], None)


async def test_an_attempt_that_fails_is_told_once_and_repeated_until_it_succeeds(bench: Bench) -> None:
    bench.order("fail")
    daemons = await bench.broker()
    await daemons.apply(wanting(a=PLAN))
    with pytest.raises(DeviceFault, match="MPS did not start") as caught:
        await daemons.settle(A)
    await asyncio.sleep(0.5)
    assert bench.taken() == [MpsEvent(A, MpsState.FAILED, str(caught.value))]
    bench.order("")
    await bench.until(lambda: bench.events)
    assert bench.taken() == [MpsEvent(A, MpsState.RUNNING)]
    assert bench.pid(A) is not None


async def test_one_that_failed_and_is_not_wanted_any_more_is_stopped(bench: Bench) -> None:
    bench.order("fail")
    daemons = await bench.broker()
    await daemons.apply(wanting(a=PLAN))
    await bench.until(lambda: bench.events)
    await daemons.apply(wanting())
    await bench.until(lambda: len(bench.events) == 2)
    assert bench.events[1] == MpsEvent(A, MpsState.STOPPED)
    bench.order("")
    await asyncio.sleep(0.3)
    assert (bench.pid(A), bench.modes()[0], len(bench.events)) == (None, DEFAULT, 2)


async def test_those_who_computed_through_one_that_is_started_again_are_told(bench: Bench) -> None:
    daemons = await bench.broker()
    await daemons.apply(wanting(a=PLAN))
    await daemons.settle(A)
    assert bench.taken() == [MpsEvent(A, MpsState.RUNNING)]  # nobody computed through it before
    in_use = wanting(a=replace(PLAN, in_use=True))
    await daemons.apply(in_use)
    await daemons.settle(A)
    assert bench.taken() == []
    os.kill(bench.pid(A) or 0, signal.SIGKILL)
    died = MpsEvent(A, MpsState.FAILED, ENDED, died=True, notice=DIED)
    back = MpsEvent(A, MpsState.RUNNING, restarted=True, notice=BACK)
    await bench.until(lambda: len(bench.events) == 2)
    assert bench.taken() == [died, back]
    os.kill(bench.pid(A) or 0, signal.SIGKILL)
    await bench.until(lambda: bench.events)
    await daemons.settle(A)  # a lease that comes just then is quicker than the restart
    await asyncio.sleep(0.5)
    assert bench.taken() == [died, back]
    await bench.end()
    os.kill(bench.pid(A) or 0, signal.SIGKILL)
    await bench.until(lambda: bench.pid(A) is None)
    daemons = await bench.broker()  # it died while there was no broker
    await daemons.apply(in_use)
    await daemons.settle(A)
    assert bench.taken() == [back]


async def test_a_gpu_that_hangs_is_given_up_on_and_holds_up_no_other(bench: Bench) -> None:
    goes_on, ask = threading.Event(), bench.inventory.compute_mode

    def hanging(uuid: str) -> ComputeMode:
        if uuid == A:
            goes_on.wait(2 * SOON_SECONDS)
        return ask(uuid)

    bench.inventory.compute_mode = hanging  # type: ignore[method-assign]
    daemons = await bench.broker(settle_seconds=1.0)
    await daemons.apply(wanting(a=PLAN, b=PLAN))
    await daemons.settle(B)
    with pytest.raises(DeviceFault, match="The GPU has not been ready for 1 s"):
        await daemons.settle(A)
    goes_on.set()
    await daemons.settle(A)
    assert None not in (bench.pid(A), bench.pid(B))


async def test_without_the_program_it_is_said(bench: Bench) -> None:
    bench.program = None
    daemons = await bench.broker()
    await daemons.apply(wanting(a=PLAN))
    with pytest.raises(DeviceFault, match="MPS is not installed"):
        await daemons.settle(A)
