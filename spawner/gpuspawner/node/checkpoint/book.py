"""What must be known to wake a sleeping process, kept on disk: on which GPU it was, how much it had, which
limit its container had. The driver knows none of it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import LedgerFault
from .cgroup import Limit

Key = tuple[int, int]
"""Pid and start time: identifies one process, even if its pid is used again."""


@dataclass(frozen=True, slots=True)
class Slept:
    """A process's memory on the GPU when it was moved away."""

    gpu_uuid: str
    memory_bytes: int


class SleepBook:
    """One JSON file, replaced as a whole and synced to the disk. Blocks; raises LedgerFault."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._processes: dict[Key, Slept] = {}
        self._limits: dict[str, Limit] = {}
        self._read()

    def slept(self, key: Key) -> Slept | None:
        """The record of a process that sleeps or slept."""
        return self._processes.get(key)

    def limit(self, container_id: str) -> Limit | None:
        """The container's own limit, if it was raised."""
        return self._limits.get(container_id)

    def note(self, container_id: str, limit: Limit | None, processes: Mapping[Key, Slept]) -> None:
        """Record processes about to sleep; on disk when it returns. A container's first limit is kept."""
        self._processes.update(processes)
        if limit is not None:
            self._limits.setdefault(container_id, limit)
        self._write()

    def clear_limit(self, container_id: str) -> None:
        """The container has its own limit again."""
        if self._limits.pop(container_id, None) is not None:
            self._write()

    def keep(self, keys: Collection[Key], container_ids: Collection[str]) -> None:
        """Removes all records but these: the other processes have ended."""
        processes = {key: each for key, each in self._processes.items() if key in keys}
        limits = {key: each for key, each in self._limits.items() if key in container_ids}
        if (processes, limits) != (self._processes, self._limits):
            self._processes, self._limits = processes, limits
            self._write()

    def _read(self) -> None:
        try:
            document = json.loads(self._path.read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise LedgerFault(
                f"{self._path} can't be read: {error}. Move it away if it is damaged"
            ) from error
        for pid, start_ticks, uuid, memory_bytes in document["processes"]:
            self._processes[pid, start_ticks] = Slept(uuid, memory_bytes)
        for container_id, memory_bytes, with_swap_bytes in document["limits"]:
            self._limits[container_id] = Limit(memory_bytes, with_swap_bytes)

    def _write(self) -> None:
        document = {
            "processes": [[*key, each.gpu_uuid, each.memory_bytes] for key, each in self._processes.items()],
            "limits": [[key, each.memory_bytes, each.with_swap_bytes] for key, each in self._limits.items()],
        }
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            raise LedgerFault(f"{self._path} can't be written: {error.strerror}") from error
