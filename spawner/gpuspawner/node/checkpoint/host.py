"""The facts about the machine for moving a container's memory: its processes, GPUs and memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...core.errors import DeviceFault
from ..inventory import Inventory
from ..processes import Process
from .census import Census
from .cgroup import MemoryCgroup, cgroup_of


@dataclass(frozen=True, slots=True)
class Seat:
    """A container that has a turn now and then. `main_pid` is its first process, on the host.

    `gpu_uuids` are all GPUs of which it has a device node: a restore must name exactly those.
    """

    container_id: str
    main_pid: int
    gpu_uuids: tuple[str, ...]


class Host(Protocol):
    """The interface to the machine. Every call blocks, and is made from one thread at a time."""

    def processes(self, seat: Seat) -> tuple[Process, ...]:
        """Those of the container that may use CUDA. Raises DeviceFault if that can't be read."""

    def on_gpus(self, gpu_uuids: Collection[str]) -> Mapping[int, Mapping[str, int]]:
        """By pid: its bytes on each of these GPUs, without sleeping processes. Raises DeviceFault."""

    def free_bytes(self, gpu_uuid: str) -> int:
        """Free memory of a GPU. Raises DeviceFault."""

    def memory(self, seat: Seat) -> MemoryCgroup | None:
        """The container's memory cgroup; None if it has none."""


class LinuxHost:
    """The machine that this runs on."""

    def __init__(self, inventory: Inventory, proc: Path = Path("/proc")) -> None:
        self._inventory, self._proc = inventory, proc
        self._census = Census(str(proc))
        self._sizes: dict[str, int] = {}

    def processes(self, seat: Seat) -> tuple[Process, ...]:
        """Those in its cgroup that loaded the CUDA library; nobody, once its first process has ended."""
        cgroup = self.memory(seat)
        if cgroup is None:
            return ()
        return self._census.look(cgroup.pids())

    def on_gpus(self, gpu_uuids: Collection[str]) -> Mapping[int, Mapping[str, int]]:
        """As NVML lists them; a process whose memory NVML doesn't say counts as 0."""
        found: dict[int, dict[str, int]] = {}
        for uuid in gpu_uuids:
            for process in self._inventory.processes(uuid):
                found.setdefault(process.pid, {})[uuid] = process.memory_bytes or 0
        return found

    def free_bytes(self, gpu_uuid: str) -> int:
        """All that NVML doesn't call used."""
        if gpu_uuid not in self._sizes:
            self._sizes = {device.uuid: device.memory_bytes for device in self._inventory.devices()}
        if gpu_uuid not in self._sizes:
            raise DeviceFault(f"GPU {gpu_uuid} was not found")
        return max(0, self._sizes[gpu_uuid] - self._inventory.used_bytes(gpu_uuid))

    def memory(self, seat: Seat) -> MemoryCgroup | None:
        """Of its first process."""
        return cgroup_of(seat.main_pid, self._proc)
