"""One broker or agent for the real GPUs of a machine: a lock on the driver's own device file.

Two brokers with different state folders don't know of each other and would each lease all GPUs. The kernel
frees the lock when its owner ends for any reason. The file of a container is another one, so no lab can hold
the lock, and a broker that runs in a container isn't noticed by one outside.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..core.errors import ConfigError
from .file_lock import try_lock

DRIVER_FILE = Path("/dev/nvidiactl")
WAIT_SECONDS = 5.0
"""A broker that was told to end may hold the lock for a moment longer than its state folder."""
_LOOK_AGAIN_SECONDS = 0.1
_LOCKS = Path("/proc/locks")


class DeviceClaim:
    """The lock, from `take` to `release`."""

    def __init__(self, driver_file: Path = DRIVER_FILE, wait_seconds: float = WAIT_SECONDS) -> None:
        self._path, self._wait_seconds = driver_file, wait_seconds
        self._file: int | None = None

    def take(self) -> None:
        """Takes the lock; blocks for up to `wait_seconds`. Raises ConfigError while another process has it.

        Without the driver's file, or without the permission to open it, there is nothing to lock.
        """
        if self._file is not None:
            return
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        deadline = time.monotonic() + self._wait_seconds
        while not try_lock(file):
            if time.monotonic() >= deadline:
                owner = _owner(file)
                os.close(file)
                raise ConfigError(_taken(owner))
            time.sleep(_LOOK_AGAIN_SECONDS)
        self._file = file

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _owner(file: int) -> str:
    """The process that holds the lock, as the kernel lists it; "another process" if it doesn't.

    A line of /proc/locks is "1: FLOCK  ADVISORY  WRITE 4711 00:06:415 0 EOF" (proc_locks(5)).
    """
    found = os.fstat(file)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return "another process"
    for fields in map(str.split, lines):
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place:
            return f"process {fields[4]}"
    return "another process"


def _taken(owner: str) -> str:
    return (
        f"Another broker or agent leases the GPUs of this machine ({owner}): stop it, or use its hub for all "
        "courses, with groups, quotas and tiers. A second hub beside it can only have simulated GPUs "
        '(c.GpuSite.inventory = "simulated")'
    )
