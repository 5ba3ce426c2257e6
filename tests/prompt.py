"""For tests that hold a time against a limit: they run before whatever else this machine is busy with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def go_first() -> None:
    """From now on this thread, and the threads and processes that it starts, wait for no others (sched(7)).

    Who may not have that (it takes root, or CAP_SYS_NICE in a container) goes on as before.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


@contextmanager
def going_first() -> Iterator[None]:
    """`go_first` within the block."""
    before, at = os.sched_getscheduler(0), os.sched_getparam(0)
    go_first()
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, at)
