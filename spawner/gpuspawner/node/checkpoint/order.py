"""An order to the CUDA driver about one process, and its answer: the interface to the driver.

The driver's checkpoint calls (CUDA driver API, "CUDA Checkpointing", 12.8 and newer) take a pid and work from
any process of the same user or of root. The names of codes and states are the driver's own.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class Operation(StrEnum):
    """One call of the driver."""

    STATE = "state"
    LOCK = "lock"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    UNLOCK = "unlock"


class ProcessState(StrEnum):
    """What the driver says of a process (`CUprocessState`)."""

    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"
    CHECKPOINTING = "checkpointing"
    RESTORING = "restoring"


SUCCESS = "CUDA_SUCCESS"
NOT_READY = "CUDA_ERROR_NOT_READY"
"""A lock's time limit was reached: the process keeps running."""
ILLEGAL_STATE = "CUDA_ERROR_ILLEGAL_STATE"
NOT_SUPPORTED = "CUDA_ERROR_NOT_SUPPORTED"
INVALID_VALUE = "CUDA_ERROR_INVALID_VALUE"
NOT_INITIALIZED = "CUDA_ERROR_NOT_INITIALIZED"
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
OPERATING_SYSTEM = "CUDA_ERROR_OPERATING_SYSTEM"
"""Of a restore: a member of a group of NCCL never comes back after its checkpoint (measured, driver 580)."""
GONE = "GPUSPAWNER_GONE"
"""Ours: the process has ended, or another process has its pid by now."""
HELPER_LOST = "GPUSPAWNER_HELPER_LOST"
"""Ours: the helper ended before it answered. The result of the call is unknown: query the state."""
SILENT = "GPUSPAWNER_SILENT"
"""Ours: no answer in time. The call may still be under way."""

NO_CUDA_STATE = frozenset({NOT_INITIALIZED, INVALID_VALUE})
"""What asking for the state answers of a process that has no CUDA context, such as a forked worker."""

GpuMap = tuple[tuple[str, str], ...]
"""Pairs of UUIDs (where memory was, where it goes), one for each GPU whose device node the process has."""


@dataclass(frozen=True, slots=True)
class Order:
    """One call about one process, known by pid and start time (clock ticks since boot).

    `timeout_seconds` is a lock's: more than 0, which to the driver means "wait for ever". `gpu_map` is a
    restore's: empty for the GPUs that it was on.
    """

    operation: Operation
    pid: int
    start_ticks: int
    timeout_seconds: float | None = None
    gpu_map: GpuMap = ()

    def __post_init__(self) -> None:
        """Raises ValueError for a lock that would wait for ever."""
        if self.operation is Operation.LOCK and self.timeout_milliseconds < 1:
            raise ValueError(
                "a lock needs a timeout of at least a millisecond: 0 means for ever to the driver"
            )

    @property
    def timeout_milliseconds(self) -> int:
        """As the driver takes it; 0 where there is none."""
        return round((self.timeout_seconds or 0.0) * 1000)

    def to_json(self, number: int) -> str:
        """One line for the helper, without its end."""
        document = {
            "number": number,
            "operation": self.operation.value,
            "pid": self.pid,
            "start_ticks": self.start_ticks,
            "timeout_seconds": self.timeout_seconds,
            "gpu_map": [list(pair) for pair in self.gpu_map],
        }
        return json.dumps(document)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Order:
        """What `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            Operation(document["operation"]),
            int(document["pid"]),
            int(document["start_ticks"]),
            document["timeout_seconds"],
            tuple((str(old), str(new)) for old, new in document["gpu_map"]),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the driver answered: a code of its own or one of ours, and of `STATE` the state."""

    code: str
    state: ProcessState | None = None
    seconds: float = 0.0
    """How long the call took."""

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.code == SUCCESS

    @property
    def has_no_cuda(self) -> bool:
        """Whether this answer to `STATE` means that the process has no CUDA context."""
        return self.code in NO_CUDA_STATE

    def to_json(self, number: int) -> str:
        """One line for the client, without its end."""
        state = None if self.state is None else self.state.value
        return json.dumps({"number": number, "code": self.code, "state": state, "seconds": self.seconds})

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Answer:
        """What `to_json` wrote."""
        state = document["state"]
        return cls(
            str(document["code"]), None if state is None else ProcessState(state), float(document["seconds"])
        )


class Driver(Protocol):
    """The interface for carrying out orders. Never raises for an error of the driver: that is the answer."""

    def call(self, order: Order) -> Awaitable[Answer]:
        """Carries it out and answers; several may be under way at once."""
