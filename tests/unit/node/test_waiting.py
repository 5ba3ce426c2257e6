"""Whether a program's main thread waits for the GPU, and what is read of it from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from gpuspawner.node.waiting import ThreadWait, WaitWatch, read_wait

from tests.soon import wait_until

POOL, DRIVER, GIL = ThreadWait(0x1000), ThreadWait(0x2000), ThreadWait(0x3000, timed=True)
BUSY = ThreadWait()


def watched(*samples: ThreadWait, every: float = 0.05) -> list[bool]:
    """What a watch says of each sample."""
    watch = WaitWatch(steady_seconds=0.1)
    return [watch.see(sample, number * every) for number, sample in enumerate(samples)]


def test_one_that_comes_to_wait_and_stays_wants_the_gpu() -> None:
    assert watched(BUSY, BUSY, DRIVER, DRIVER, DRIVER, DRIVER) == [False, False, False, False, True, True]
    assert watched(BUSY, DRIVER, DRIVER, DRIVER, BUSY) == [False, False, False, True, False]


def test_one_that_waited_at_that_place_when_it_was_idle_does_not() -> None:
    assert not any(watched(POOL, POOL, POOL, BUSY, POOL, POOL, POOL, POOL))
    assert watched(POOL, POOL, DRIVER, DRIVER, DRIVER)[-1]


def test_short_waits_at_changing_places_do_not() -> None:
    assert not any(watched(BUSY, *(ThreadWait(0x2000 + number) for number in range(20))))


def test_timed_waits_as_that_for_python_s_gil_do_not() -> None:
    assert not any(watched(BUSY, *[GIL] * 10))


PROGRAM = """
import ctypes, sys, threading, time
libc = ctypes.CDLL(None)
word = ctypes.c_int(0)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
libc.syscall({call}, ctypes.byref(word), 0, 0, None, None, 0)  # FUTEX_WAIT, as long as word is 0
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="reading another program's system calls takes root")
def test_a_real_process_in_a_futex() -> None:
    call = {"x86_64": 202, "aarch64": 98}[os.uname().machine]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(call=call)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        watch = WaitWatch()
        assert [look(watch, process.pid) for _ in range(5)] == [False] * 5
        process.stdin.write(b"\n")
        process.stdin.flush()
        wait_until(lambda: look(watch, process.pid))
        process.kill()
    assert read_wait(process.pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="reading another program's system calls takes root")
@pytest.mark.parametrize(
    ("program", "waits"),
    [
        ("import sys; sys.stdin.readline()", True),
        ("import os, select; e = select.epoll(); e.register(os.pipe()[0], select.EPOLLIN); e.poll()", True),
        ("import asyncio; asyncio.run(asyncio.sleep(60))", True),
        ("import time; time.sleep(60)", False),
        ("import subprocess; subprocess.run(['sleep', '60'])", False),
        ("import os; r, w = os.pipe(); os.read(r, 1)", False),
        ("import threading; threading.Event().wait()", False),
        ("while True: pass", False),
    ],
    ids=["input", "epoll", "asyncio", "sleep", "subprocess", "pipe", "lock", "computing"],
)
def test_who_waits_for_input(program: str, waits: bool) -> None:
    """A loop of events or its standard input: whatever else a program does, it may go on at any moment."""
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE) as process:
        time.sleep(0.5)
        wait_until(lambda: waits_for_input(process.pid) == waits)
        seen = set()
        for _ in range(5):
            seen.add(waits_for_input(process.pid))
            time.sleep(0.02)
        process.kill()
    assert seen == {waits}


def waits_for_input(pid: int) -> bool:
    """Now."""
    wait = read_wait(pid)
    assert wait is not None
    return wait.for_input


def look(watch: WaitWatch, pid: int) -> bool:
    """One sample of the process."""
    wait = read_wait(pid)
    assert wait is not None
    return watch.see(wait, time.monotonic())
