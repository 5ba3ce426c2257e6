"""Who computes gives way to answers that somebody waits for, but not for ever."""

from __future__ import annotations

import pytest
from gpuspawner.broker.decide.line.estimate import Estimator
from gpuspawner.broker.leases.hurry import YOUNG_SECONDS, Hurry

from tests.unit.broker.test_estimate import HOUR, line


class Time:
    """A clock that goes only while somebody sleeps. `at` says what happens then."""

    def __init__(self) -> None:
        self.now = 100.0
        self.naps = 0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.naps += 1


def test_it_sleeps_while_somebody_waits() -> None:
    time = Time()
    hurry = Hurry(time)
    give_way = hurry.way(1.0, time.sleep)
    give_way()
    assert time.naps == 0
    hurry.begin()
    hurry.begin()
    hurry.end()
    give_way()
    assert time.now - 100.0 == pytest.approx(YOUNG_SECONDS, abs=0.002)  # an old answer is no hurry
    naps = time.naps
    give_way()
    assert time.naps == naps
    hurry.end()
    hurry.begin()
    give_way()
    assert time.naps > naps


def test_it_pauses_though_nobody_waits() -> None:
    """So that the process isn't busy when somebody asks."""
    time = Time()
    give_way = Hurry(time).way(1.0, time.sleep)
    worked = 0.0
    for _ in range(1000):
        time.now += 0.0001
        worked += 0.0001
        give_way()
    assert worked / 0.0006 <= time.naps <= worked / 0.0004
    assert time.now - 100.0 < 2 * worked


def test_it_gives_way_no_longer_than_it_may() -> None:
    time = Time()
    hurry = Hurry(time)
    give_way = hurry.way(3 * YOUNG_SECONDS, time.sleep)
    for _ in range(10):
        hurry.begin()
        give_way()
    assert time.now - 100.0 == pytest.approx(3 * YOUNG_SECONDS, abs=0.002)
    hurry.begin()
    hurry.way(1.0, time.sleep)()  # the next one may again
    assert time.now - 100.0 > 3.5 * YOUNG_SECONDS


def test_an_estimate_asks_again_and_again_and_is_the_same() -> None:
    asked = 0

    def give_way() -> None:
        nonlocal asked
        asked += 1

    waiting = line([HOUR, HOUR], 3)
    found = Estimator().estimate(waiting, 0.0, give_way=give_way)
    assert found == Estimator().estimate(waiting, 0.0)
    assert asked > 5 * 20  # steps of futures, of which there are at least twenty
