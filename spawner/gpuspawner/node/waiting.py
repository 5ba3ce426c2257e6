"""Who waits for the GPU, seen from outside: the threads that came to wait in a futex and stay there.

A thread that calls CUDA in a process that is paused or asleep waits in a futex from that moment on (measured,
driver 580: 16 ms after a notebook's cell began, no change to the notebook). Most threads of idle pools wait
in a futex, too, so what counts is a change: a thread waits where it did not wait before. A thread that
blocks on a lock of its own program looks the same; it costs its lease a short turn that it did not need.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

_FUTEX_CALLS = {"x86_64": frozenset({202, 449}), "aarch64": frozenset({98, 449})}
"""Numbers of `futex` and `futex_waitv` (Linux, `unistd.h`)."""


@dataclass(frozen=True, slots=True)
class ThreadWait:
    """What a thread does now: `futex` is the address that it waits on, None if it does anything else.

    `timed`: whether the wait ends by itself, as that for Python's GIL does (5 ms).
    """

    futex: int | None = None
    timed: bool = False


Waits = Mapping[int, ThreadWait]
"""By thread id."""


@dataclass(frozen=True, slots=True)
class _Thread:
    """`usual`: the futexes that it waited on while its process was idle; `since`: on `futex` from then on."""

    usual: frozenset[int]
    futex: int | None = None
    since: float = 0.0


@dataclass(slots=True)
class WaitWatch:
    """One process while it may not compute: fed with samples, says whether it wants to. Pure.

    `steady_seconds`: so long a thread must wait at one place. Shorter waits are those of thread pools
    that share work on the CPU.
    """

    steady_seconds: float = 0.1
    _threads: dict[int, _Thread] = field(default_factory=dict)
    _begun: bool = False

    def see(self, waits: Waits, at: float) -> bool:
        """Whether the process waits for the GPU, at `at` (monotonic seconds).

        The first sample says what is usual: take it when the process has just been paused and was idle. A
        thread that appears later has nothing that is usual.
        """
        threads = {}
        for tid, wait in waits.items():
            known = self._threads.get(tid, _Thread(frozenset()))
            if wait.futex is None or wait.timed:
                threads[tid] = _Thread(known.usual)
            elif not self._begun:
                threads[tid] = _Thread(frozenset({wait.futex}))
            elif wait.futex == known.futex:
                threads[tid] = known
            else:
                threads[tid] = _Thread(known.usual, wait.futex, at)
        self._threads, self._begun = threads, True
        return any(
            each.futex is not None and each.futex not in each.usual and at - each.since >= self.steady_seconds
            for each in threads.values()
        )


def read_waits(pid: int, proc: str = "/proc") -> dict[int, ThreadWait]:
    """What each thread of the process does; empty if it has ended. Takes root, and about 40 µs a thread."""
    try:
        threads = os.listdir(f"{proc}/{pid}/task")
    except OSError:
        return {}
    return {int(tid): _read_wait(f"{proc}/{pid}/task/{tid}") for tid in threads}


def _read_wait(folder: str) -> ThreadWait:
    """From proc(5)'s `syscall`: number and six arguments in hexadecimal, or "running"."""
    try:
        with open(f"{folder}/syscall", encoding="ascii") as file:
            fields = file.read().split()
    except OSError:
        return ThreadWait()
    calls = _FUTEX_CALLS.get(platform.machine(), frozenset())
    if len(fields) < 5 or not fields[0].isdigit() or int(fields[0]) not in calls:
        return ThreadWait()
    return ThreadWait(futex=int(fields[1], 16), timed=int(fields[4], 16) != 0)
