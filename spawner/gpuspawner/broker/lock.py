"""One broker for each state folder: an exclusive lock on `broker.lock`, which holds its owner's pid."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ..core.errors import ConfigError
from ..node.file_lock import try_lock

TAKE_OVER_SECONDS = 15.0
_LOOK_AGAIN_SECONDS = 0.05


class BrokerLock:
    """The lock file of a state folder; the kernel frees the lock when its owner ends for any reason."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "broker.lock"
        self._file: int | None = None

    def acquire(self, *, take_over: bool) -> None:
        """Takes the lock; with `take_over`, a broker that holds it gets SIGTERM, and this waits for its end.

        Blocks for up to TAKE_OVER_SECONDS. Raises ConfigError, with the owner's pid, if it isn't free.
        """
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{self._path} can't be opened: {error.strerror}. Let the broker's user write there"
            ) from error
        deadline = time.monotonic() + (TAKE_OVER_SECONDS if take_over else 0.0)
        asked: int | None = None
        while not try_lock(file):
            owner = _read_pid(file)
            if take_over and owner is not None and owner != asked:
                _terminate(owner)
                asked = owner
            if time.monotonic() >= deadline:
                os.close(file)
                raise ConfigError(_taken(self._path.parent, owner, take_over))
            time.sleep(_LOOK_AGAIN_SECONDS)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file

    def release(self) -> None:
        """Releases the lock; the file stays, so that nobody locks a deleted file."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def _taken(state_dir: Path, owner: int | None, take_over: bool) -> str:
    who = f"process {owner}" if owner is not None else "another process"
    if take_over:
        return f"The broker on {state_dir} ({who}) does not end: end it with 'kill -9', then start again"
    return (
        f"A broker runs on {state_dir} already ({who}): stop it first, start this one with --take-over, "
        "or give it its own state folder (c.GpuSite.state_dir)"
    )


def _read_pid(file: int) -> int | None:
    text = os.pread(file, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) > 1 else None


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ConfigError(
            f"The broker (process {pid}) belongs to another user: stop it there, or start as that user"
        ) from error
