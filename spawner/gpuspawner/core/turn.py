"""The settings of a pool whose GPUs are used in turns, and what a seat's turn is called."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unsleepable(StrEnum):
    """What becomes of a program whose memory can't leave the GPU (managed memory, NCCL peers)."""

    PAUSE = "pause"
    """It is only paused between its turns; its memory stays on the GPU."""
    END = "end"
    """It ends after a warning, if others can't compute because of it."""


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """As `c.GpuSite.pools` gives them; times in seconds.

    `seats` is how many leases the pool admits, and `sleep_memory_bytes` how much host memory is kept for each
    of them; None: the broker works it out for its machine.
    """

    seats: int | None = None
    sleep_memory_bytes: int | None = None
    pause_after_seconds: float = 10.0
    sleep_after_seconds: float = 900.0
    min_turn_seconds: float = 1.0
    max_turn_seconds: float = 60.0
    unsleepable: Unsleepable = Unsleepable.PAUSE
