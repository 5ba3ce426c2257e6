"""The helper process and the way to it, with real processes and a stand-in for the driver."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.node.checkpoint.canary import CanaryResult, run_canary
from gpuspawner.node.checkpoint.client import HelperDriver
from gpuspawner.node.checkpoint.order import (
    GONE,
    HELPER_LOST,
    ILLEGAL_STATE,
    NOT_INITIALIZED,
    NOT_READY,
    SILENT,
    SUCCESS,
    Operation,
    Order,
    ProcessState,
)
from gpuspawner.node.processes import Process, ProcessTable

from tests.checkpoint.standin import FOLDER, Standin
from tests.soon import SOON_SECONDS

ROOT = Path(__file__).resolve().parents[3]
GPU = "GPU-00000001-0000-0000-0000-000000000000"
GIB = 1 << 30
LOG = logging.getLogger("helper")


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Standin(tmp_path)


@pytest.fixture
def process(standin: Standin) -> Iterator[Process]:
    """A process with 2 GiB on the GPU, as far as the stand-in knows."""
    with subprocess.Popen(["sleep", "60"]) as child:
        standin.add(child.pid, {GPU: 2 * GIB})
        found = ProcessTable().look(child.pid)
        assert found is not None
        yield found
        child.kill()


@pytest.fixture
async def driver(standin: Standin) -> AsyncIterator[HelperDriver]:
    driver = HelperDriver(LOG, [sys.executable, "-m", "tests.checkpoint.standin"])
    yield driver
    await driver.stop(10.0)


def order(operation: Operation, process: Process, seconds: float | None = None) -> Order:
    return Order(operation, process.pid, process.start_ticks, seconds)


def stopped(process: Process) -> bool:
    """Whether it is stopped, as the stand-in does it."""
    return Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].startswith("T")


async def test_a_process_goes_through_all_states(driver: HelperDriver, process: Process) -> None:
    seen = []
    for operation in (Operation.LOCK, Operation.CHECKPOINT, Operation.RESTORE, Operation.UNLOCK):
        answer = await driver.call(order(operation, process, 1.0))
        assert answer.ok
        seen.append((await driver.call(order(Operation.STATE, process))).state)
    assert seen == [
        ProcessState.LOCKED,
        ProcessState.CHECKPOINTED,
        ProcessState.LOCKED,
        ProcessState.RUNNING,
    ]
    assert driver.starts == 1


async def test_orders_go_side_by_side(driver: HelperDriver, process: Process, standin: Standin) -> None:
    standin.change(process.pid, busy_until=time.monotonic() + 600)
    waiting = asyncio.create_task(driver.call(order(Operation.LOCK, process, 60.0)))
    await asyncio.sleep(0.3)
    assert (await driver.call(order(Operation.STATE, process))).state is ProcessState.RUNNING
    assert not waiting.done()
    standin.change(process.pid, busy_until=0.0)
    assert (await waiting).code == SUCCESS


async def test_a_lock_of_a_busy_process_ends_in_time(
    driver: HelperDriver, process: Process, standin: Standin
) -> None:
    standin.change(process.pid, busy_until=time.monotonic() + 600)
    assert (await driver.call(order(Operation.LOCK, process, 0.3))).code == NOT_READY


async def test_a_killed_helper_is_replaced_and_the_driver_goes_on(
    driver: HelperDriver, process: Process
) -> None:
    await driver.call(order(Operation.LOCK, process, 1.0))
    moving = asyncio.create_task(driver.call(order(Operation.CHECKPOINT, process)))
    await asyncio.sleep(0.15)
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)
    assert (await moving).code == HELPER_LOST
    for _ in range(100):
        state = (await driver.call(order(Operation.STATE, process))).state
        if state is ProcessState.CHECKPOINTED:
            break
        await asyncio.sleep(0.02)
    assert state is ProcessState.CHECKPOINTED
    assert driver.starts == 2


async def test_it_finishes_what_it_began_when_the_broker_is_gone(
    driver: HelperDriver, process: Process
) -> None:
    await driver.call(order(Operation.LOCK, process, 1.0))
    moving = asyncio.create_task(driver.call(order(Operation.CHECKPOINT, process)))
    await asyncio.sleep(0.1)
    pid = driver.pid
    assert pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # nobody ends it inside a call
        os.kill(pid, number)
    await driver.stop(0.0)
    assert (await moving).code == HELPER_LOST
    assert Path(f"/proc/{pid}").exists()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        await asyncio.sleep(0.02)
    after = HelperDriver(LOG, [sys.executable, "-m", "tests.checkpoint.standin"])
    assert (await after.call(order(Operation.STATE, process))).state is ProcessState.CHECKPOINTED
    await after.stop()


async def test_an_answer_that_does_not_come_is_given_up_and_the_helper_left_alone(
    standin: Standin, process: Process
) -> None:
    driver = HelperDriver(
        LOG, [sys.executable, "-m", "tests.checkpoint.standin"], dict.fromkeys(Operation, 0.1)
    )
    await driver.call(order(Operation.LOCK, process, 1.0))
    standin.change(process.pid, gpus={GPU: 16 * GIB})
    assert (await driver.call(order(Operation.CHECKPOINT, process))).code == SILENT
    assert (await driver.call(order(Operation.STATE, process))).state is ProcessState.LOCKED
    assert driver.starts == 1
    # The same call isn't made again before the first has ended: each would keep a thread of the helper.
    again = await driver.call(order(Operation.CHECKPOINT, process))
    assert (again.code, again.seconds) == (SILENT, 0.0)
    end = time.monotonic() + SOON_SECONDS
    while (await driver.call(order(Operation.STATE, process))).state is not ProcessState.CHECKPOINTED:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    assert (await driver.call(order(Operation.CHECKPOINT, process))).code == ILLEGAL_STATE
    await driver.stop(5.0)


async def test_a_process_without_cuda_and_one_that_is_gone(driver: HelperDriver) -> None:
    own = ProcessTable().look(os.getpid())
    assert own is not None
    answer = await driver.call(order(Operation.STATE, own))
    assert (answer.code, answer.has_no_cuda, answer.state) == (NOT_INITIALIZED, True, None)
    assert GONE != SUCCESS


async def test_without_a_driver_it_says_why() -> None:
    driver = HelperDriver(LOG)
    with pytest.raises(DeviceFault, match=r"CUDA|cuda-bindings"):
        await driver.start()
    assert driver.pid is None


def test_a_lock_without_a_timeout_is_refused() -> None:
    with pytest.raises(ValueError, match="for ever"):
        Order(Operation.LOCK, 1, 1, 0.0)


def test_orders_come_back_as_they_were() -> None:
    import json

    order = Order(Operation.RESTORE, 5, 50, None, ((GPU, "GPU-2"), ("GPU-2", GPU)))
    assert Order.from_json(json.loads(order.to_json(3))) == order


CANARY = """
import sys
print("ready", flush=True)
sums = iter(sys.argv[1].split(","))
for line in sys.stdin:
    print(next(sums), flush=True)
"""


@pytest.mark.parametrize(
    ("sums", "reason"),
    [("7,7", ""), ("7,8", "The GPU memory of a program that slept was not the same afterwards")],
)
async def test_the_canary_compares_memory(
    standin: Standin, driver: HelperDriver, tmp_path: Path, sums: str, reason: str
) -> None:
    """Its process is a stand-in, too: the driver learns of it when it says that it is ready."""
    program = tmp_path / "canary.py"
    register = (
        f"from tests.checkpoint.standin import *; Standin(Path({str(tmp_path)!r})).add(os.getpid(), {{}})\n"
    )
    program.write_text(register + CANARY)
    result = await run_canary(driver, GPU, [sys.executable, str(program), sums])
    assert result == CanaryResult(reason, result.sleep_seconds, result.wake_seconds)


async def test_the_canary_says_what_the_driver_refused(standin: Standin, driver: HelperDriver) -> None:
    program = "print('ready', flush=True); print(1, flush=True); input(); input()"
    result = await run_canary(driver, GPU, [sys.executable, "-c", program])
    assert result.reason == "The CUDA driver refused to lock a program: CUDA_ERROR_NOT_INITIALIZED"
