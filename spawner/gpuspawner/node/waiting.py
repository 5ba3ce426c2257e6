"""Detects from outside which programs wait for the GPU, and which for input, by what their main thread does.

A thread that calls CUDA in a process that is paused or asleep waits in a futex from that moment on (measured,
driver 580: 16 ms after a notebook's cell began, no change to the notebook). Only the main thread counts: it
runs a notebook's cells, and in other programs it waits for the thread that calls CUDA. Helper threads wait on
a new lock for each thing that they wait for (IPython's history does), which says nothing. A main thread that
blocks on a lock of its own program looks the same as one that waits for the GPU: its lease gets a short turn
that it did not need.

A main thread that waits for events (epoll) or reads its standard input waits for its user. A notebook's does
so between two cells and in none of those that were measured; a cell that awaits something does it, too. In
any other wait the program counts as running: it may go on at any moment.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

_FUTEX_CALLS = {"x86_64": frozenset({202, 449}), "aarch64": frozenset({98, 449})}
"""Numbers of `futex` and `futex_waitv` (Linux, `unistd.h`)."""
_EVENT_CALLS = {"x86_64": frozenset({232, 281, 441}), "aarch64": frozenset({22, 441})}
"""Numbers of `epoll_wait`, `epoll_pwait` and `epoll_pwait2`."""
_READ_CALL = {"x86_64": 0, "aarch64": 63}
"""Number of `read`; its first argument is the file descriptor, 0 for the standard input."""


@dataclass(frozen=True, slots=True)
class ThreadWait:
    """What a thread does now. `futex` is the address that it waits on, None if it does anything else.

    `timed`: whether the wait ends by itself, as that for Python's GIL does (5 ms). `for_input`: it waits for
    events or for its standard input.
    """

    futex: int | None = None
    timed: bool = False
    for_input: bool = False


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
    machine = platform.machine()
    if len(fields) < 5 or not fields[0].isdigit():
        return ThreadWait()
    number, first = int(fields[0]), int(fields[1], 16)
    if number in _FUTEX_CALLS.get(machine, frozenset()):
        return ThreadWait(futex=first, timed=int(fields[4], 16) != 0)
    reads = number == _READ_CALL.get(machine) and first == 0
    return ThreadWait(for_input=reads or number in _EVENT_CALLS.get(machine, frozenset()))
