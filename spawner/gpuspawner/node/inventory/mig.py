"""Computes which part of its GPU a MIG instance is. Pure."""

from __future__ import annotations

import re

_SLICES = re.compile(r"(?:^|\.)(\d)g\.")
_EIGHTHS = {1: 1, 2: 2, 3: 4, 4: 4, 6: 6, 7: 8}
"""Number of memory slices of the usual profile, by number of compute slices (NVIDIA MIG User Guide r580,
A100, H100)."""


def gpu_fraction(memory_bytes: int, gpu_memory_bytes: int | None, profile: str | None) -> float:
    """The part (0-1) of the GPU's eight memory slices that an instance has.

    It uses memory slices and not the seven compute slices, so that the instances of a GPU never add up to
    more than 1. `gpu_memory_bytes` None: computed from the profile ("3g.40gb"); an eighth for an unknown
    profile.
    """
    if gpu_memory_bytes:
        eighths = round(8 * memory_bytes / gpu_memory_bytes)
    else:
        match = _SLICES.search(profile or "")
        eighths = _EIGHTHS.get(int(match[1]), 1) if match else 1
    return min(8, max(1, eighths)) / 8
