"""Which part of its GPU a MIG instance is. Pure."""

from __future__ import annotations

import re

_SLICES = re.compile(r"(?:^|\.)(\d)g\.")
_EIGHTHS = {1: 1, 2: 2, 3: 4, 4: 4, 6: 6, 7: 8}
"""Memory slices of the usual profile with so many compute slices (NVIDIA MIG User Guide r580, A100, H100)."""


def gpu_fraction(memory_bytes: int, gpu_memory_bytes: int | None, profile: str | None) -> float:
    """The part (0-1) of the GPU's memory slices, of which there are eight, that an instance has.

    By memory and not by compute slices (of which there are seven): so the instances of a GPU add up to it at
    most. `gpu_memory_bytes` None: by the profile ("3g.40gb"); of one that is not known, an eighth.
    """
    if gpu_memory_bytes:
        eighths = round(8 * memory_bytes / gpu_memory_bytes)
    else:
        match = _SLICES.search(profile or "")
        eighths = _EIGHTHS.get(int(match[1]), 1) if match else 1
    return min(8, max(1, eighths)) / 8
