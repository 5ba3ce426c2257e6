"""A machine whose CUDA driver, processes, GPUs and cgroups are scripted: the seams of node/checkpoint.

The driver behaves as the real one was measured to: a checkpoint of managed memory is refused and leaves the
process locked, a lock of a busy process runs out, a call goes on when its helper is lost. Failures are put in
its way by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuspawner.core.errors import DeviceFault
from gpuspawner.node.checkpoint.cgroup import MemoryCgroup
from gpuspawner.node.checkpoint.host import Seat
from gpuspawner.node.checkpoint.order import (
    GONE,
    HELPER_LOST,
    ILLEGAL_STATE,
    INVALID_VALUE,
    NOT_INITIALIZED,
    NOT_READY,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    SILENT,
    SUCCESS,
    Answer,
    GpuMap,
    Operation,
    Order,
    ProcessState,
)
from gpuspawner.node.processes import Process
from gpuspawner.node.waiting import ThreadWait

GIB = 1 << 30
SIZE = 80 * GIB
UUIDS = tuple(f"GPU-{number:08x}-0000-0000-0000-000000000000" for number in range(3))
A, B, C = UUIDS


@dataclass
class Program:
    """A process: `state` None has no CUDA context. `gpus` are bytes by UUID, `saved` what sleeps."""

    process: Process
    state: ProcessState | None = ProcessState.RUNNING
    gpus: dict[str, int] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    managed: bool = False
    busy: bool = False
    silent: bool = False
    """No call about it returns, as of an NCCL peer: with the helper's limits, it is given up."""
    gone: bool = False
    container: str = "c"
    waits_on: int | None = None
    """The futex that its main thread waits on."""
    rests: bool = False
    """Its main thread waits for input."""


@dataclass
class Machine:
    """Driver and host in one. `failures`: codes to answer instead, by operation and pid, each used once."""

    folder: Path
    programs: dict[int, Program] = field(default_factory=dict)
    failures: dict[tuple[Operation, int], list[str]] = field(default_factory=dict)
    calls: list[tuple[Operation, int]] = field(default_factory=list)
    maps: list[GpuMap] = field(default_factory=list)
    arrivals: list[Program] = field(default_factory=list)
    """Programs that appear one by one, each when the processes have been looked at."""
    going_on: dict[int, int] = field(default_factory=dict)
    """Calls of a lost helper that the driver goes on with: states that are asked for until it ends."""

    silence_seconds: float = 0.0
    """How long a call takes that is given up."""
    computing: set[str] = field(default_factory=set)
    """GPUs that NVML calls busy."""

    def add(self, pid: int, gib: int = 8, gpu: str = A, container: str = "c") -> Program:
        """A program that computes."""
        process = Process(pid, pid * 10, f"python{pid}")
        program = Program(process, gpus={gpu: gib * GIB}, container=container)
        self.programs[pid] = program
        return program

    def cgroup(self, limit_bytes: int | None = None, used_bytes: int = GIB) -> MemoryCgroup:
        """The container's, in a folder with the kernel's files."""
        folder = self.folder / "docker" / "c"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text("max" if limit_bytes is None else str(limit_bytes))
        (folder / "memory.current").write_text(str(used_bytes))
        return MemoryCgroup(folder, 2, self.folder)

    # ---- the host

    def processes(self, seat: Seat) -> tuple[Process, ...]:
        mine = (each for each in self.programs.values() if each.container == seat.container_id)
        found = tuple(each.process for each in mine if not each.gone)
        if self.arrivals:
            newcomer = self.arrivals.pop(0)
            self.programs[newcomer.process.pid] = newcomer
        return found

    def on_gpus(self, gpu_uuids: Collection[str]) -> Mapping[int, Mapping[str, int]]:
        return {
            pid: {uuid: size for uuid, size in each.gpus.items() if uuid in gpu_uuids}
            for pid, each in self.programs.items()
            if each.gpus and not each.gone
        }

    def free_bytes(self, gpu_uuid: str) -> int:
        if gpu_uuid not in UUIDS:
            raise DeviceFault("no such GPU")
        return SIZE - sum(each.gpus.get(gpu_uuid, 0) for each in self.programs.values())

    def memory(self, seat: Seat) -> MemoryCgroup | None:
        folder = self.folder / "docker" / "c"
        return MemoryCgroup(folder, 2, self.folder) if folder.exists() else None

    def utilization_percent(self, uuid: str) -> float | None:
        return 50.0 if uuid in self.computing else 0.0

    def wait_of(self, pid: int) -> ThreadWait | None:
        program = self.programs.get(pid)
        if program is None or program.gone:
            return None
        return ThreadWait(program.waits_on, for_input=program.rests and program.waits_on is None)

    # ---- the driver

    async def call(self, order: Order) -> Answer:
        await asyncio.sleep(0)
        program = self.programs.get(order.pid)
        if program is None or program.gone or program.process.start_ticks != order.start_ticks:
            return Answer(GONE)
        if program.silent:
            await asyncio.sleep(self.silence_seconds)
            return Answer(SILENT)
        if order.operation is not Operation.STATE:
            self.calls.append((order.operation, order.pid))
        failures = self.failures.get((order.operation, order.pid))
        failure = failures.pop(0) if failures else None
        if failure == HELPER_LOST + " and goes on":
            self.going_on[order.pid] = 3
            return Answer(HELPER_LOST)
        if failure is not None:
            return Answer(failure)
        if order.operation is Operation.STATE:
            return self._state(order, program)
        if order.pid in self.going_on:
            return Answer(ILLEGAL_STATE)
        return Answer(self._do(order, program))

    def _state(self, order: Order, program: Program) -> Answer:
        if order.pid in self.going_on:
            self.going_on[order.pid] -= 1
            if self.going_on[order.pid] <= 0:
                del self.going_on[order.pid]
                operation = next(each for each, pid in reversed(self.calls) if pid == order.pid)
                self._do(Order(operation, order.pid, order.start_ticks, 1.0), program)
        if program.state is None:
            return Answer(NOT_INITIALIZED)
        return Answer(SUCCESS, program.state)

    def _do(self, order: Order, program: Program) -> str:
        match order.operation, program.state:
            case Operation.LOCK, ProcessState.RUNNING:
                if program.busy:
                    return NOT_READY
                program.state = ProcessState.LOCKED
            case Operation.UNLOCK, ProcessState.LOCKED:
                program.state = ProcessState.RUNNING
            case Operation.CHECKPOINT, ProcessState.LOCKED:
                if program.managed:
                    return NOT_SUPPORTED
                program.saved, program.gpus = program.gpus, {}
                program.state = ProcessState.CHECKPOINTED
            case Operation.RESTORE, ProcessState.CHECKPOINTED:
                return self._restore(order, program)
            case _:
                return ILLEGAL_STATE
        return SUCCESS

    def _restore(self, order: Order, program: Program) -> str:
        pairs = dict(order.gpu_map)
        self.maps.append(order.gpu_map)
        if pairs and (set(pairs) != set(UUIDS) or set(pairs.values()) != set(UUIDS)):
            return INVALID_VALUE
        gpus = {pairs.get(uuid, uuid): size for uuid, size in program.saved.items()}
        if any(self.free_bytes(uuid) < size for uuid, size in gpus.items()):
            return OUT_OF_MEMORY
        program.gpus, program.saved, program.state = gpus, {}, ProcessState.LOCKED
        return SUCCESS
