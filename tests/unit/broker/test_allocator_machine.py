"""The allocator against a naive model, over any sequence of requests, ends, losses, faults and restarts.

Hypothesis looks for short sequences that break it and shrinks them; a walk takes many more steps in one go.
`make test-nightly` takes 10⁶ in each walk, and half of that in search.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core.model import LeaseState
from hypothesis import settings

from tests.seeds import seeds
from tests.unit.allocator_machine import RELEASING, RESERVED, RUNNING, USERS, WAITING, AllocatorMachine

FAULTS = ["", "", "", "", "", "", "before", "after", "before, killed", "after, killed"]
MODELS = [None, None, "a100", "H100"]


@pytest.fixture(scope="module", autouse=True)
def _place(fast_folder: Path, new_times: Any, faulty_ledger: type[Ledger]) -> None:
    AllocatorMachine.folder = fast_folder
    AllocatorMachine.times = new_times
    AllocatorMachine.ledger_kind = faulty_ledger


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=settings().max_examples // 2)


def steps_of(machine: AllocatorMachine, draw: random.Random) -> list[tuple[int, Callable[[], None]]]:
    """What may happen now, each with a weight: mostly leases come and go."""
    which, fault = draw.randrange(21), draw.choice(FAULTS)
    steps: list[tuple[int, Callable[[], None]]] = [
        (2, lambda: machine.time_passes(draw.randrange(1000), draw.choice([0, 0, 3600, -3600]))),
        (1, lambda: machine.adopt(draw.randint(1, 2), draw.randrange(5), fault)),
        (3, lambda: machine.set_health(draw.randrange(6), draw.random() < 0.6, fault)),
        (1, lambda: machine.restart(set(draw.sample(range(5), draw.choice([0, 0, 0, 1, 2]))))),
    ]
    if len(machine.model.leases) < USERS:
        steps.append((10, lambda: machine.acquire(which, draw.randint(1, 3), draw.choice(MODELS), fault)))
    if machine.has(*LeaseState):
        steps.append((1, lambda: machine.acquire_again(which)))
        steps.append((5, lambda: machine.begin_release(which, fault)))
        steps.append((1, lambda: machine.cancelled(which, draw.randint(0, 3))))
    if machine.has(RESERVED, RUNNING):
        steps.append((5, lambda: machine.set_running(which, fault)))
    if machine.has(RELEASING):
        steps.append((6, lambda: machine.close(which, fault)))
    if machine.has(WAITING, RESERVED, RUNNING):
        steps.append((1, lambda: machine.close_too_early(which)))
    if machine.model.closed:
        steps.append((1, lambda: machine.acquire_closed(which)))
    return steps


@pytest.mark.parametrize("faulty", [False, True])
def test_long_walks(faulty: bool) -> None:
    """Half of the steps are without faults: there, what was charged must be exact."""
    steps = settings().max_examples * settings().stateful_step_count
    for seed, done in zip(seeds(), range(0, steps, 4000), strict=False):
        walk(seed, min(steps - done, 4000), faulty)


def walk(seed: int, length: int, faulty: bool) -> None:
    """One walk on a fresh ledger; it prints what it takes to repeat it."""
    draw = random.Random(seed)
    machine = AllocatorMachine()
    machine.begin(faulty)
    number = 0
    try:
        while number < length:
            number += 1
            steps = steps_of(machine, draw)
            ((_, step),) = draw.choices(steps, [weight for weight, _ in steps])
            step()
            machine.looks_the_same()
            machine.one_owner_a_device()
        machine.check_charged()
    except BaseException:
        print(f"seed {seed}, step {number}, faulty {faulty}")
        raise
    finally:
        machine.close_all()
