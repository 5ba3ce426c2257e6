"""Checks that the driver supports it: puts an own process to sleep, wakes it, and compares its memory.

To be done once for each version of the driver, before a pool of turns opens.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..processes import Process, ProcessTable
from .order import Driver, Operation, Order, ProcessState

PROCESS = (sys.executable, "-m", "gpuspawner.node.checkpoint.canary_process")
SIZE_BYTES = 1 << 30
READY_SECONDS = 60.0
LOCK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """`reason` is a sentence; "" if the memory came back as it was. Times in seconds."""

    reason: str = ""
    sleep_seconds: float = 0.0
    wake_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether turns may be used."""
        return not self.reason


class _Failed(Exception):
    """A step of the canary failed; its sentence."""


async def run_canary(
    driver: Driver, gpu_uuid: str, command: Sequence[str] = PROCESS, size_bytes: int = SIZE_BYTES
) -> CanaryResult:
    """Takes about 5 s, and `size_bytes` of the GPU. Leaves nothing behind."""
    process = await asyncio.create_subprocess_exec(
        *command,
        gpu_uuid,
        str(size_bytes),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(READY_SECONDS):
            return await _compare(driver, process)
    except TimeoutError:
        return CanaryResult(
            "A CUDA program of gpuspawner's own, put to sleep and woken, did not answer in time"
        )
    except _Failed as failure:
        return CanaryResult(str(failure))
    finally:
        await _end(process)


async def _compare(driver: Driver, process: asyncio.subprocess.Process) -> CanaryResult:
    first = await _line(process)
    if first != "ready":
        raise _Failed(f"A CUDA program of gpuspawner's own did not start: {first or 'see the log'}")
    before = await _sum(process)
    canary = ProcessTable().look(process.pid)
    if canary is None:
        raise _Failed("A CUDA program of gpuspawner's own ended before it was put to sleep")
    began = time.monotonic()
    await _order(driver, Operation.LOCK, canary)
    await _order(driver, Operation.CHECKPOINT, canary)
    slept = time.monotonic()
    asked = await driver.call(Order(Operation.STATE, canary.pid, canary.start_ticks))
    if asked.state is not ProcessState.CHECKPOINTED:
        raise _Failed(f"A CUDA program that was put to sleep is {asked.state or asked.code}")
    await _order(driver, Operation.RESTORE, canary)
    await _order(driver, Operation.UNLOCK, canary)
    woke = time.monotonic()
    if await _sum(process) != before:
        raise _Failed("The GPU memory of a program that slept was not the same afterwards")
    return CanaryResult(sleep_seconds=slept - began, wake_seconds=woke - slept)


async def _order(driver: Driver, operation: Operation, canary: Process) -> None:
    timeout = LOCK_SECONDS if operation is Operation.LOCK else None
    answer = await driver.call(Order(operation, canary.pid, canary.start_ticks, timeout))
    if not answer.ok:
        raise _Failed(f"The CUDA driver refused to {operation.value} a program: {answer.code}")


async def _sum(process: asyncio.subprocess.Process) -> str:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(b"sum\n")
    return await _line(process)


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode("utf-8", "replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    """It ends by itself when its input ends; one that doesn't, as it sleeps, is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(5.0):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
