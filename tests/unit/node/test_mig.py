"""Which part of its GPU a MIG instance is charged as."""

from __future__ import annotations

import pytest
from gpuspawner.node.inventory.mig import gpu_fraction

GIB = 1 << 30


@pytest.mark.parametrize(
    ("profile", "size_gib", "gpu_gib", "part"),
    [
        ("1g.5gb", 4.75, 39.4, 1 / 8), ("3g.20gb", 19.6, 39.4, 4 / 8),  # A100 40GB
        ("1g.10gb", 9.75, 79.6, 1 / 8), ("1g.20gb", 19.6, 79.6, 2 / 8), ("2g.20gb", 19.6, 79.6, 2 / 8),
        ("3g.40gb", 39.25, 79.6, 4 / 8), ("4g.40gb", 39.25, 79.6, 4 / 8), ("7g.80gb", 79.1, 79.6, 1.0),
        ("1g.18gb", 16.0, 139.8, 1 / 8), ("3g.71gb", 69.5, 139.8, 4 / 8),  # H200
        ("1g.6gb", 5.8, 23.6, 2 / 8), ("2g.12gb", 11.7, 23.6, 4 / 8),  # A30 has four slices
    ],
)  # fmt: skip
def test_the_memory_slices_of_eight(profile: str, size_gib: float, gpu_gib: float, part: float) -> None:
    assert gpu_fraction(int(size_gib * GIB), int(gpu_gib * GIB), profile) == part


@pytest.mark.parametrize(
    ("profile", "part"),
    [("1g.10gb", 1 / 8), ("2g.20gb", 2 / 8), ("3g.40gb", 4 / 8), ("4g.40gb", 4 / 8), ("7g.80gb", 1.0),
     ("1c.3g.40gb", 4 / 8), (None, 1 / 8), ("9g.1gb", 1 / 8)],
)  # fmt: skip
def test_by_the_profile_where_the_size_of_the_gpu_is_not_told(profile: str | None, part: float) -> None:
    assert gpu_fraction(10 * GIB, None, profile) == part


def test_never_more_than_the_gpu_nor_nothing() -> None:
    assert gpu_fraction(100 * GIB, 80 * GIB, None) == 1.0
    assert gpu_fraction(1, 80 * GIB, None) == 1 / 8
