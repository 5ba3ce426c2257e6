"""What is asked of the devices: one value for tier, request and lease, and for the queue that compares them.

Sizes are bytes, percentages 0-100. "Not asked for" is None, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """How a pool's devices are shared."""

    WHOLE = "whole"
    MIG = "mig"
    SLICE = "slice"
    TURNS = "turns"


@dataclass(frozen=True, slots=True)
class Want:
    """What a request needs of the devices: requests with equal wants are served by the same devices.

    `device_count` 0 needs no GPU. `model` is compared with the device's model name as a substring, upper or
    lower case ("H100"), and kept casefolded; an empty one becomes None. `pool` None: any of the mode.
    `memory_bytes` and `compute_percent` are of a slice (None: what the pool gives), `mig_profile` is of a MIG
    instance ("1g.10gb"; None: any).
    """

    device_count: int
    model: str | None = None
    mode: Mode = Mode.WHOLE
    pool: str | None = None
    mig_profile: str | None = None
    memory_bytes: int | None = None
    compute_percent: float | None = None

    def __post_init__(self) -> None:
        # Equal wants must be equal values: they are keys of the queue. Frozen, so past its own __setattr__.
        object.__setattr__(self, "model", self.model.casefold() if self.model else None)


NO_GPU = Want(0)
"""What a server without a GPU asks for."""
