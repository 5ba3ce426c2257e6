"""How long cells wait in turns and with whole GPUs, and how much of a class is simulated for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpuspawner.broker.decide.replay.cells import MOST_WORK, TurnTerms, forecast, part_of
from gpuspawner.broker.decide.replay.replay_turns import GIB, BurstyClass, SharedGpus
from gpuspawner.broker.decide.turns import TurnRules

CLASS = BurstyClass(30, 7200.0, arrive_seconds=600.0)


@pytest.mark.parametrize(
    ("students", "gpus", "lasts_seconds", "simulated"),
    [
        (30, 4, 900.0, (30, 4, 900.0, 450.0)),
        (30, 4, 7200.0, (30, 4, 1800.0, 600.0)),
        (200, 8, 7200.0, (50, 2, 1800.0, 600.0)),
        (1000, 1, 7200.0, (1000, 1, 216.0, 108.0)),
    ],
)
def test_a_forecast_is_bounded(
    students: int, gpus: int, lasts_seconds: float, simulated: tuple[int, int, float, float]
) -> None:
    arrive = min(600.0, lasts_seconds / 2)
    course = replace(CLASS, students=students, lasts_seconds=lasts_seconds, arrive_seconds=arrive)
    part, machine = part_of(course, SharedGpus(gpus))
    assert (part.students, machine.count, part.lasts_seconds, part.arrive_seconds) == simulated
    assert part.students * machine.count * part.lasts_seconds <= MOST_WORK


def test_the_smallest_promise_that_is_enough() -> None:
    terms = TurnTerms(TurnRules(), (12 * GIB, 24 * GIB))
    assert [terms.promise(each) for each in (None, 6 * GIB, 13 * GIB, 30 * GIB)] == [
        12 * GIB, 12 * GIB, 24 * GIB, 30 * GIB,
    ]  # fmt: skip
    assert TurnTerms(TurnRules()).promise(None) is None


def test_only_seats_take_turns_and_the_rules_of_the_pool_count() -> None:
    course = replace(CLASS, lasts_seconds=600.0, arrive_seconds=60.0, seed=1).with_busy(0.3)
    short, long = (
        forecast(course, 12, SharedGpus(2), TurnRules(max_turn_seconds=each)) for each in (5.0, 60.0)
    )
    assert (short.turns.students, short.whole.students, short.whole.gpus) == (12, 30, 2)
    assert short.turns.median_wait_seconds < long.turns.median_wait_seconds
    assert short.whole == long.whole
