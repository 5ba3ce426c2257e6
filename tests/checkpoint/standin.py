"""A stand-in for the CUDA driver's checkpoint calls, for real processes on a machine without a GPU.

What the driver knows lies in a folder, so that it outlives helpers: for each process its state, and on which
GPU it has how much. Locked means stopped (SIGSTOP). Moving takes time by size and, as with the real driver,
goes on when the caller is killed. As a program it is a helper with this driver:

    GPUSPAWNER_STANDIN=folder python -m tests.checkpoint.standin
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuspawner.node.checkpoint.helper import run
from gpuspawner.node.checkpoint.order import (
    ILLEGAL_STATE,
    INVALID_VALUE,
    NOT_INITIALIZED,
    NOT_READY,
    NOT_SUPPORTED,
    SUCCESS,
    Answer,
    Operation,
    Order,
    ProcessState,
)

FOLDER = "GPUSPAWNER_STANDIN"
SLEEP_BYTES_A_SECOND = 8 << 30
WAKE_BYTES_A_SECOND = 16 << 30


class Standin:
    """The driver of one machine: what is true of its processes is in `folder/state.json`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.json"
        self._mutex = folder / "mutex"

    @contextmanager
    def processes(self) -> Iterator[dict[str, dict[str, Any]]]:
        """By pid: state, gpus (bytes by UUID), managed, busy_until, and, while it moves, `to` and `at`."""
        with self._mutex.open("w") as mutex:
            fcntl.flock(mutex, fcntl.LOCK_EX)
            found = json.loads(self._path.read_text()) if self._path.exists() else {}
            for each in found.values():
                if "to" in each and time.monotonic() >= each["at"]:
                    each["state"] = each.pop("to")
                    each["gpus"] = each.pop("gpus_then")
            yield found
            new = self._path.with_suffix(".new")  # a helper may be killed while it writes
            new.write_text(json.dumps(found))
            os.replace(new, self._path)

    def add(self, pid: int, gpus: dict[str, int], **more: Any) -> None:
        """A process makes a context."""
        with self.processes() as found:
            found[str(pid)] = {"state": "running", "gpus": gpus, **more}

    def change(self, pid: int, **values: Any) -> None:
        """Something of it is different from now on."""
        with self.processes() as found:
            found[str(pid)].update(values)

    def on_gpus(self) -> dict[int, dict[str, int]]:
        """As NVML would list them: nobody who sleeps or has ended."""
        with self.processes() as found:
            return {
                int(pid): dict(each["gpus"])
                for pid, each in found.items()
                if each["gpus"] and os.path.exists(f"/proc/{pid}")
            }

    def perform(self, order: Order) -> Answer:
        """One call of the driver."""
        until = time.monotonic() + (order.timeout_seconds or 0.0)
        while True:
            with self.processes() as found:
                process = found.get(str(order.pid))
                if process is None:
                    return Answer(NOT_INITIALIZED)
                answer = self._begin(order, process)
            if answer is None:
                return self._wait(order.pid)
            if answer.code != NOT_READY or time.monotonic() >= until:
                return answer
            time.sleep(0.005)

    def _wait(self, pid: int) -> Answer:
        """What takes time has ended."""
        while self._state(pid) is None:
            time.sleep(0.005)
        return Answer(SUCCESS)

    def _state(self, pid: int) -> ProcessState | None:
        """Its state, unless it is being moved."""
        with self.processes() as found:
            process = found[str(pid)]
            return None if "to" in process else ProcessState(process["state"])

    def _begin(self, order: Order, process: dict[str, Any]) -> Answer | None:
        """The answer, or None if it takes time."""
        state = ProcessState(process["state"])
        if order.operation is Operation.STATE:
            return Answer(SUCCESS, state)
        if "to" in process:
            return Answer(ILLEGAL_STATE)
        match order.operation, state:
            case Operation.LOCK, ProcessState.RUNNING:
                if time.monotonic() < process.get("busy_until", 0.0):
                    return Answer(NOT_READY)
                os.kill(order.pid, signal.SIGSTOP)
                process["state"] = ProcessState.LOCKED.value
            case Operation.UNLOCK, ProcessState.LOCKED:
                process["state"] = ProcessState.RUNNING.value
                os.kill(order.pid, signal.SIGCONT)
            case Operation.CHECKPOINT, ProcessState.LOCKED:
                if process.get("managed"):
                    return Answer(NOT_SUPPORTED)
                process["slept"] = process["gpus"]
                self._move(process, ProcessState.CHECKPOINTED, {}, SLEEP_BYTES_A_SECOND)
                return None
            case Operation.RESTORE, ProcessState.CHECKPOINTED:
                pairs = dict(order.gpu_map)
                if pairs and set(pairs) != set(process.get("nodes", pairs)):
                    return Answer(INVALID_VALUE)
                gpus = {pairs.get(uuid, uuid): size for uuid, size in process["slept"].items()}
                self._move(process, ProcessState.LOCKED, gpus, WAKE_BYTES_A_SECOND)
                return None
            case _:
                return Answer(ILLEGAL_STATE)
        return Answer(SUCCESS)

    def _move(self, process: dict[str, Any], to: ProcessState, gpus: dict[str, int], speed: float) -> None:
        size = sum((process["gpus"] or gpus).values())
        process.update(to=to.value, at=time.monotonic() + 0.05 + size / speed, gpus_then=gpus)


if __name__ == "__main__":
    sys.exit(run(lambda: Standin(Path(os.environ[FOLDER]))))
