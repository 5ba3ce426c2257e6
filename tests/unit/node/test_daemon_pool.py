"""Threads for calls that may never return: results, errors, growth, hanging, and the end of the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import gpuspawner
import pytest
from gpuspawner.node.daemon_pool import DaemonPool

from tests.soon import SOON_SECONDS


async def test_results_and_errors_come_back() -> None:
    pool = DaemonPool("answers")
    assert await pool.submit(lambda: threading.current_thread().name) == "answers-1"
    with pytest.raises(ZeroDivisionError):
        await pool.submit(lambda: 1 // 0)
    assert await pool.submit(lambda: threading.current_thread().name) == "answers-1"  # no second one
    pool.close()


async def test_a_hanging_call_gets_a_thread_beside_it_and_no_more_than_that() -> None:
    pool, release = DaemonPool("hanging", most=2), threading.Event()
    hanging = pool.submit(lambda: release.wait() and threading.current_thread().name)
    names = [await pool.submit(lambda: threading.current_thread().name) for _ in range(5)]
    assert len(set(names)) == 1  # always the thread that doesn't hang, whichever of the two that is
    second = pool.submit(release.wait)
    third = pool.submit(lambda: "at last")
    await asyncio.sleep(0.05)
    assert not third.done()  # both threads are taken
    release.set()
    hung, *others = await asyncio.gather(hanging, second, third)
    assert others == [True, "at last"]
    assert {hung, *names} == {"hanging-1", "hanging-2"}
    pool.close()


async def test_a_cancelled_future_leaves_the_thread_usable() -> None:
    pool, release = DaemonPool("cancelled", most=1), threading.Event()
    waiting = pool.submit(release.wait)
    waiting.cancel()
    release.set()
    assert await pool.submit(lambda: 7) == 7
    pool.close()


async def test_closing_ends_the_threads() -> None:
    pool = DaemonPool("closing")
    await pool.submit(lambda: None)
    pool.close()
    deadline = time.monotonic() + SOON_SECONDS
    while any(thread.name.startswith("closing") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


PROGRAM = """
import asyncio, time
from gpuspawner.node.daemon_pool import DaemonPool
async def main():
    hanging = DaemonPool("nvml").submit(lambda: time.sleep(60))
    done, _ = await asyncio.wait({hanging}, timeout=0.1)
    print("given up", len(done))
asyncio.run(main())
"""


def test_a_hanging_call_does_not_keep_the_process_from_ending() -> None:
    environment = {"PYTHONPATH": str(Path(gpuspawner.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=True)
    assert ended.stdout == "given up 0\n"
