"""Shares never exceed a device: long walks over pools of whole devices, slices and MIG instances.

10⁴ steps by default; `make test-nightly` takes 10⁶.
"""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.seeds import seeds
from tests.unit.share_walk import MemoryLedger, Walk

STEPS = 1_000_000 if settings().max_examples > 1000 else 10_000
WALK = 2000


def walk(seed: int, length: int, ledger: Any, nodes: int = 1) -> None:
    """One walk; it prints what it takes to repeat it."""
    walk = Walk(random.Random(seed), ledger, nodes)
    number = 0
    try:
        while number < length:
            number += 1
            walk.step()
    except BaseException:
        print(f"seed {seed}, step {number}, {nodes} nodes")
        raise
    finally:
        walk.close()


def test_shares_never_exceed_a_device() -> None:
    for seed in islice(seeds(), STEPS // WALK):
        walk(seed, WALK, MemoryLedger())


@pytest.mark.parametrize("nodes", [2, 3])
def test_the_devices_of_a_lease_are_of_one_node(nodes: int) -> None:
    for seed in islice(seeds(), STEPS // WALK // 2):
        walk(seed, WALK, MemoryLedger(), nodes)


def test_a_walk_that_once_failed() -> None:
    """A seat in turns ended whose first GPU was gone: nobody got it before the next change."""
    walk(2192364059, 1200, MemoryLedger())


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_with_a_ledger_on_disk(seed: int, fast_folder: Path, new_times: Any) -> None:
    walk(seed, 300, new_times().make_ledger(fast_folder / f"shares-{seed}.sqlite"))
