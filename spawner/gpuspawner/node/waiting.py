"""Detects from outside which programs wait for the GPU: their main thread began to wait in a futex and stays.

A thread that calls CUDA in a process that is paused or asleep waits in a futex from that moment on (measured,
driver 580: 16 ms after a notebook's cell began, no change to the notebook). Only the main thread counts: it
runs a notebook's cells, and in other programs it waits for the thread that calls CUDA. Helper threads wait on
a new lock for each thing that they wait for (IPython's history does), which says nothing. A main thread that
blocks on a lock of its own program looks the same as one that waits for the GPU: its lease gets a short turn
that it did not need.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

_FUTEX_CALLS = {"x86_64": frozenset({202, 449}), "aarch64": frozenset({98, 449})}
"""Numbers of `futex` and `futex_waitv` (Linux, `unistd.h`)."""


@dataclass(frozen=True, slots=True)
class ThreadWait:
    """What a thread does now. `futex` is the address that it waits on, None if it does anything else.

    `timed`: whether the wait ends by itself, as that for Python's GIL does (5 ms).
    """

    futex: int | None = None
    timed: bool = False


@dataclass(slots=True)
class WaitWatch:
    """One process while it may not compute: from samples, says whether it wants to compute. Pure.

    `steady_seconds`: its thread must wait this long at one place. Shorter waits are for threads that
    share work on the CPU.
    """

    steady_seconds: float = 0.1
    _usual: int | None = None
    """The futex that it waited on in the first sample."""
    _futex: int | None = None
    _since: float = 0.0
    _begun: bool = False

    def see(self, wait: ThreadWait, at: float) -> bool:
        """Whether the process waits for the GPU, at `at` (monotonic seconds).

        The first sample says what is usual: take it when the process has just been paused and was idle.
        """
        futex = None if wait.timed else wait.futex
        if not self._begun:
            self._begun, self._usual = True, futex
        if futex is None or futex != self._futex:
            self._futex, self._since = futex, at
        return futex not in (None, self._usual) and at - self._since >= self.steady_seconds


def read_wait(pid: int, proc: str = "/proc") -> ThreadWait | None:
    """What the main thread of the process does; None if it has ended. Takes root, and about 40 µs.

    From proc(5)'s `syscall`: number and six arguments in hexadecimal, or "running".
    """
    try:
        with open(f"{proc}/{pid}/task/{pid}/syscall", encoding="ascii") as file:
            fields = file.read().split()
    except OSError:
        return None
    calls = _FUTEX_CALLS.get(platform.machine(), frozenset())
    if len(fields) < 5 or not fields[0].isdigit() or int(fields[0]) not in calls:
        return ThreadWait()
    return ThreadWait(futex=int(fields[1], 16), timed=int(fields[4], 16) != 0)
