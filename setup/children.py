"""Ends all processes that the hub started, even those whose parent has ended before."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make descendants whose parent ends children of this process instead of init."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """For a new child: it gets SIGTERM if this process is killed."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def children() -> list[int]:
    """The living children of this process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(stat.parent.name))
    return found


def end_children(seconds: float) -> list[int]:
    """Ends all children and then their descendants; kills those that take too long.

    Returns the pids that had to be killed.
    """
    deadline = time.monotonic() + seconds
    asked: set[int] = set()
    killed: set[int] = set()
    while living := children():
        late = time.monotonic() > deadline
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                if late:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
                elif pid not in asked:
                    asked.add(pid)
                    os.kill(pid, signal.SIGTERM)
        _reap()
        time.sleep(0.05)
    _reap()
    return sorted(killed)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
