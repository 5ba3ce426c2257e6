"""A class on a virtual clock: what is known without a computer comes out, and turns beat whole GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpuspawner.broker.decide.replay.replay_turns import (
    GIB,
    BurstyClass,
    ClassOutcome,
    SharedGpus,
    in_turns,
    time_sliced,
    whole_gpus,
)
from gpuspawner.broker.decide.turns import TurnRules
from hypothesis import given, settings
from hypothesis import strategies as st

EVEN = BurstyClass(
    1, 100.0, train_seconds=(10.0, 10.0), think_seconds=(30.0, 30.0), arrive_seconds=0.0, load_seconds=5.0
)
RULES = TurnRules(max_turn_seconds=10.0)


@pytest.mark.parametrize("way", [whole_gpus, time_sliced, in_turns])
def test_one_student_with_a_gpu(way: object) -> None:
    """Presses at 0, 45 and 85 s; the first cell loads for 5 s. Trains from 5, 45 and 85 s, for 10 s each."""
    outcome = way(EVEN, SharedGpus(1, notice_seconds=0.0, switch_seconds=0.0))  # type: ignore[operator]
    assert outcome.waits[0] == pytest.approx((5.0, 0.0, 0.0), abs=0.31 + 0.02)  # an empty wake takes 0.3 s
    assert outcome.worked_gpu_seconds == pytest.approx(30.0, abs=0.4)
    assert outcome.used_fraction == pytest.approx(0.3, abs=0.005)
    assert outcome.stretches == pytest.approx((1.0, 1.0, 1.0), abs=0.03)


def test_whole_gpus_are_held_and_the_others_wait() -> None:
    outcome = whole_gpus(replace(EVEN, students=3), SharedGpus(2))
    assert outcome.waits == ((5.0, 0.0, 0.0), (5.0, 0.0, 0.0), (100.0,))
    assert outcome.worked_gpu_seconds == pytest.approx(60.0)
    shorter = whole_gpus(replace(EVEN, students=3, hold_seconds=40.0), SharedGpus(2))
    assert shorter.waits[2] == (45.0,)


def test_two_who_compute_at_once_get_half_of_a_gpu_each() -> None:
    outcome = time_sliced(replace(EVEN, students=2, load_seconds=0.0), SharedGpus(1))
    assert outcome.stretches == pytest.approx((2.0, 2.0, 2.0, 2.0))  # 0 to 20, 50 to 70, and 100 is the end
    assert outcome.worked_gpu_seconds == pytest.approx(40.0)
    full = time_sliced(replace(EVEN, students=2, memory_bytes=70 * GIB), SharedGpus(1))
    assert full.waits == ((5.0, 0.0, 0.0), (100.0,))


def test_two_in_turns_wait_for_each_other() -> None:
    course = replace(EVEN, students=2, load_seconds=0.0)
    machine = SharedGpus(1, notice_seconds=0.0, lag_seconds=0.0, switch_seconds=0.0)
    outcome = in_turns(course, machine, replace(RULES, prompt_after_seconds=0.0))
    first, second = outcome.waits
    assert first == pytest.approx((0.0, 0.0, 0.0), abs=0.05)
    assert second == pytest.approx((10.0, 0.0, 0.0), abs=0.05)
    assert outcome.moves == 0


def test_the_same_seed_gives_the_same_class() -> None:
    course, machine = BurstyClass(6, 300.0), SharedGpus(2)
    assert in_turns(course, machine) == in_turns(course, machine)
    assert in_turns(course, machine) != in_turns(replace(course, seed=1), machine)


def test_a_class_in_turns_does_twice_the_work_of_whole_gpus() -> None:
    """Thirty students who compute 10 % of the time, four GPUs, half an hour."""
    course, machine = BurstyClass(30, 1800.0).with_busy(0.1), SharedGpus(4)
    turns, whole = in_turns(course, machine), whole_gpus(course, machine)
    assert turns.worked_gpu_seconds > 5 * whole.worked_gpu_seconds
    assert turns.wait_seconds(0.5) < 30 < whole.wait_seconds(0.5)


def test_ends_of_turns_at_the_prompt_shorten_waits() -> None:
    """What the rule is for: without it a turn lasts `pause_after` longer than its cell."""
    course, machine = BurstyClass(8, 900.0), SharedGpus(2)
    before = in_turns(course, replace(machine, sees_prompts=False), RULES)
    after = in_turns(course, machine, RULES)
    assert after.worked_gpu_seconds > before.worked_gpu_seconds
    assert after.wait_seconds(0.5) < before.wait_seconds(0.5)


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=15)
def test_no_way_does_more_work_than_there_is(students: int, gpus: int, gib: int, seed: int) -> None:
    course = BurstyClass(students, 240.0, memory_bytes=gib * GIB, seed=seed)
    for outcome in (whole(course, gpus) for whole in (_whole, _sliced, _turns)):
        assert 0.0 <= outcome.used_fraction <= 1.0
        assert all(0.0 <= wait <= 240.0 for waits in outcome.waits for wait in waits)
        assert all(stretch > 0.99 for stretch in outcome.stretches)


def _whole(course: BurstyClass, gpus: int) -> ClassOutcome:
    return whole_gpus(course, SharedGpus(gpus))


def _sliced(course: BurstyClass, gpus: int) -> ClassOutcome:
    return time_sliced(course, SharedGpus(gpus))


def _turns(course: BurstyClass, gpus: int) -> ClassOutcome:
    return in_turns(course, SharedGpus(gpus), RULES)


def test_quantiles_count_students_not_cells() -> None:
    outcome = ClassOutcome(((1.0,) * 9, (100.0,)), (), 0.0, 1.0)
    assert (outcome.wait_seconds(0.5), outcome.wait_seconds(0.51)) == (1.0, 100.0)
    assert ClassOutcome((), (), 0.0, 1.0).wait_seconds(0.5) == 0.0
