"""What a driver version can do for turns, and why a GPU can't be in a pool of turns. Pure.

Sources: NVIDIA's cuda-checkpoint (README and issues), CRIU's CUDA plugin, and what was measured with 580.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OLDEST = (570,)
"""The first with the checkpoint calls in its API (CUDA 12.8)."""
MENDED = (575, 57, 8)
"""Before it, a container that sees one of several GPUs could not be restored."""
MOVES = (580,)
"""The first that wakes a process on another GPU."""
KILL_HANGS = (595,)
"""Killing a process that was restored hung the host (595.71.05, open kernel module)."""
FIXED_KILL = (610,)
NCCL = (610,)
"""The first that takes CUDA IPC and NCCL peers."""
CUSTOM_STORAGE = (615,)
"""The first that lets the caller keep the copy (CUDA 13.4); not used yet."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What can be done on a machine. `obstacle` is a sentence with its remedy; "" if turns work."""

    obstacle: str = ""
    can_move: bool = False
    """Whether a lease can wake on another GPU than the one that it was on."""
    checkpoint_before_kill: bool = False
    """Whether a process that was woken must be put to sleep again before it is killed."""
    nccl: bool = False
    custom_storage: bool = False


def abilities(
    driver_version: str | None, *, mig: bool = False, mps: bool = False, gpu_count: int = 1
) -> Abilities:
    """What this driver ("580.159.04") can do. `mig`, `mps`: whether the pool's GPUs have them on."""
    version = parse_version(driver_version)
    if version is None:
        return Abilities("The version of the NVIDIA driver is not available: install driver 580 or newer")
    if version < OLDEST:
        return Abilities(f"Driver {driver_version} can't move a program's GPU memory: install 580 or newer")
    if mig:
        return Abilities("Turns don't work with MIG: switch it off on these GPUs, or choose mode 'mig'")
    if mps:
        return Abilities("Turns don't work beside MPS: end its daemon on these GPUs, or choose mode 'slice'")
    if gpu_count > 1 and version < MENDED:
        return Abilities(
            f"Driver {driver_version} can't wake containers beside several GPUs: install 580 or newer"
        )
    return Abilities(
        can_move=version >= MOVES,
        checkpoint_before_kill=KILL_HANGS <= version < FIXED_KILL,
        nccl=version >= NCCL,
        custom_storage=version >= CUSTOM_STORAGE,
    )


def parse_version(text: str | None) -> tuple[int, ...] | None:
    """ "580.159.04" as (580, 159, 4); None for anything else."""
    if text is None or not re.fullmatch(r"\d+(\.\d+)*", text):
        return None
    return tuple(int(part) for part in text.split("."))
