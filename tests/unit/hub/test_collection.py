"""Garbage collection in the hub: what stays is looked at once, and circles go in a quiet minute."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from gpuspawner.hub import collection
from gpuspawner.hub.collection import LONG_SECONDS, QUIET_SECONDS, Collector


class Circle:
    """Only a collection ends it: it refers to itself."""

    ended = 0

    def __init__(self) -> None:
        self.own = self

    def __del__(self) -> None:
        Circle.ended += 1


class Work:
    """The processor time of a process, as a test has it: each look at it takes `step_seconds`."""

    seconds = 0.0
    step_seconds = 0.0

    def __call__(self) -> float:
        self.seconds += self.step_seconds
        return self.seconds

    def collect(self, seconds: float = 2 * LONG_SECONDS) -> None:
        """A full collection that takes so long."""
        self.step_seconds = seconds
        gc.collect()
        self.step_seconds = 0.0


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def collector(work: Work, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Begun, and it takes ten objects for many, 1,000 for too many."""
    monkeypatch.setattr(collection, "MANY_OBJECTS", 10)
    monkeypatch.setattr(collection, "TOO_MANY_OBJECTS", 1000)
    Circle.ended = 0
    made = Collector(work)
    made.begin()
    yield made
    made.end()


def test_what_a_long_collection_leaves_is_out_of_the_next(collector: Collector, work: Work) -> None:
    kept = [[number] for number in range(1000)]
    work.collect(LONG_SECONDS / 2)
    assert any(each is kept for each in gc.get_objects())
    work.collect()
    assert not any(each is kept for each in gc.get_objects())  # it has none of those that are out
    Circle()
    gc.collect()
    assert (Circle.ended, len(kept)) == (1, 1000)  # new ones go as ever


def test_a_circle_that_was_left_goes_in_a_quiet_minute(collector: Collector, work: Work) -> None:
    circles = [Circle() for _ in range(20)]
    work.collect()
    circles.clear()
    gc.collect()
    assert Circle.ended == 0
    work.seconds += QUIET_SECONDS + 1
    assert collector.look() is False
    work.seconds += QUIET_SECONDS
    assert collector.look() is True
    assert Circle.ended == 20
    assert collector.look() is False  # nothing was left since


def test_a_hub_that_never_rests_looks_when_too_much_was_left(collector: Collector, work: Work) -> None:
    circles = [Circle() for _ in range(1000)]
    work.collect()
    circles.clear()
    work.seconds += QUIET_SECONDS + 1
    assert collector.look() is True
    assert Circle.ended == 1000


@pytest.mark.usefixtures("collector")
def test_what_goes_by_itself_needs_no_collection(work: Work) -> None:
    circle = Circle()
    work.collect()
    circle.own = None  # type: ignore[assignment]
    del circle
    assert Circle.ended == 1


def test_after_its_end_all_is_as_before(work: Work) -> None:
    before = list(gc.callbacks)
    made = Collector(work)
    made.begin()
    made.end()
    assert (gc.callbacks, gc.get_freeze_count()) == (before, 0)
