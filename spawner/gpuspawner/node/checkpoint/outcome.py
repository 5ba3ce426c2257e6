"""What came of pausing, moving or waking a container, and the sentence that says it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ...core.units import format_bytes


class Condition(StrEnum):
    """Where a container's processes are, all of them; processes without CUDA state count as any."""

    NONE = "none"
    """None of its processes uses CUDA."""
    AWAKE = "awake"
    PAUSED = "paused"
    """Locked: none computes; the memory of at least one is on a GPU."""
    ASLEEP = "asleep"
    MIXED = "mixed"
    """Some compute and others don't: something was interrupted."""
    UNKNOWN = "unknown"
    """The driver doesn't tell."""


class Obstacle(StrEnum):
    """Why it was not done."""

    BUSY = "busy"
    UNSUPPORTED = "unsupported"
    HOST_MEMORY = "host_memory"
    GPU_MEMORY = "gpu_memory"
    SEVERAL_GPUS = "several_gpus"
    RESTLESS = "restless"
    SILENT = "silent"
    HELPER = "helper"
    FAILED = "failed"
    REFUSED = "refused"


_SENTENCES = {
    Obstacle.BUSY: "A computation on the GPU did not end in time",
    Obstacle.UNSUPPORTED: (
        "A program uses managed memory (cudaMallocManaged), which can't leave the GPU: use cudaMalloc, or "
        "end it when you don't compute"
    ),
    Obstacle.HOST_MEMORY: "This machine has too little free memory to take what is on the GPU",
    Obstacle.GPU_MEMORY: "The GPU has too little free memory",
    Obstacle.SEVERAL_GPUS: "A program uses several GPUs at once: in turns it may use one",
    Obstacle.RESTLESS: "New programs kept using the GPU",
    Obstacle.SILENT: "The driver does not answer for one of the programs; programs that use NCCL do that",
    Obstacle.HELPER: "The helper that talks to the CUDA driver does not run",
    Obstacle.FAILED: (
        "The driver can't bring a program's memory back to the GPU: restart the kernel. Programs of which "
        "several work together by NCCL (torchrun) can't be put to sleep with this driver"
    ),
    Obstacle.REFUSED: "The driver refused",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`condition` is where the container is now. `obstacle` None: it was done.

    `moved_bytes` went between GPU and host memory, for those processes of which it is known.
    """

    condition: Condition
    obstacle: Obstacle | None = None
    detail: str = ""
    """The driver's code, or sizes: for the log."""
    seconds: float = 0.0
    process_count: int = 0
    moved_bytes: int = 0

    @property
    def done(self) -> bool:
        """Whether it was done."""
        return self.obstacle is None

    @property
    def sentence(self) -> str:
        """Why it was not done, for people; "" if it was."""
        return "" if self.obstacle is None else f"{_SENTENCES[self.obstacle]}."

    def log_text(self) -> str:
        """For a line of the log."""
        if self.obstacle is None:
            size = f", {format_bytes(self.moved_bytes)}" if self.moved_bytes else ""
            return f"{self.condition.value} after {self.seconds:.3f} s{size}"
        return f"{self.condition.value}: {self.obstacle.value} ({self.detail}) after {self.seconds:.3f} s"
