"""What a request needs: one value for tier, request and lease; the queue compares these values.

Sizes are bytes, percentages 0-100. None means "not requested"; zero never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .hashed import HashedOnce


class Mode(StrEnum):
    """How a pool's devices are shared."""

    WHOLE = "whole"
    MIG = "mig"
    SLICE = "slice"
    TURNS = "turns"


@dataclass(frozen=True, slots=True)
class Want(HashedOnce):
    """What a request needs of the devices: requests with equal wants are served by the same devices.

    `device_count` 0 means no GPU. `model` is compared with the device's model name as a substring, upper or
    lower case ("H100"), and kept casefolded; an empty one becomes None. `pool` None: any of the mode.
    `memory_bytes` and `compute_percent` are for a slice (None: the pool's values), `mig_profile` for a MIG
    instance ("1g.10gb"; None: any). In turns, `memory_bytes` is promised to who is awake (None: all).
    `node` is the only machine that may serve, because the user's files are there (None: any).
    `node_label` is what the machine must have (None: any machine).
    """

    device_count: int
    model: str | None = None
    mode: Mode = Mode.WHOLE
    pool: str | None = None
    mig_profile: str | None = None
    memory_bytes: int | None = None
    compute_percent: float | None = None
    node: str | None = None
    node_label: str | None = None

    __hash__ = HashedOnce.__hash__

    def __post_init__(self) -> None:
        # Equal wants must be equal values: the queue uses them as keys. Frozen: so object.__setattr__.
        object.__setattr__(self, "model", self.model.casefold() if self.model else None)


NO_GPU = Want(0)
"""What a server without a GPU asks for."""
