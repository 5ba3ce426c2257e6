"""A clock that nobody can set: seconds since boot, with the id of the boot."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Steady(NamedTuple):
    """A reading of a clock that only goes forward, and the boot since which it counts.

    Two readings can be compared only if their `boot_id` is the same, also between processes.
    """

    boot_id: str
    seconds: float


def read_steady() -> Steady:
    """Now, by Linux' CLOCK_BOOTTIME: it counts suspended time and is not moved by NTP or an admin."""
    return Steady(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
