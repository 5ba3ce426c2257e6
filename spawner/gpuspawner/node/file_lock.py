"""An exclusive lock on an open file; the kernel frees it when its owner ends for any reason."""

from __future__ import annotations

import fcntl


def try_lock(file: int) -> bool:
    """Locks the file with this descriptor; False if another process has it. Does not wait."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
