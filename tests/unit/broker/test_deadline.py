"""Ends of sessions: two warnings, what moves them, and that nobody ends without."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from gpuspawner.broker.decide.when.deadline import (
    Cause,
    Deadline,
    Notice,
    Told,
    due,
    earliest,
    ends_at,
    extension_seconds,
    for_a_page,
    session_deadline,
    warns_of_end,
)
from gpuspawner.core.quota import UNLIMITED
from gpuspawner.core.session import EndAction
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 26, 11, 0, tzinfo=UTC)
ZONE = "Europe/Berlin"


def ends_in(minutes: float, cause: Cause = Cause.SESSION_LIMIT) -> Deadline:
    return Deadline(NOW + timedelta(minutes=minutes), cause)


def test_the_earliest_deadline_counts() -> None:
    assert earliest([None, ends_in(9), ends_in(5, Cause.GPU_HOURS), None]) == ends_in(5, Cause.GPU_HOURS)
    assert earliest([None]) is None
    assert session_deadline(NOW, UNLIMITED, 0.0) is None
    assert session_deadline(NOW, 3600.0, 600.0) == ends_in(70)


@pytest.mark.parametrize("action", [EndAction.STOP, EndAction.SLEEP])
@pytest.mark.parametrize("cause", list(Cause))
def test_a_warning_is_known_by_its_text(cause: Cause, action: EndAction) -> None:
    """After a restart of the broker nothing else tells whose notice it is."""
    deadline = Deadline(NOW + timedelta(minutes=5), cause, action)
    warning = due(deadline, Told(), NOW, ZONE)
    ended = due(deadline, warning.told, NOW + timedelta(minutes=5), ZONE)
    sentences = [warning.sentence, ended.sentence, "Your GPU is hot. Save your work.", ""]
    assert [warns_of_end(each) for each in sentences] == [True, False, False, False]


@pytest.mark.parametrize(
    ("minutes", "told", "warnings"), [(16, 0, 0), (15, 0, 1), (6, 1, 1), (5, 1, 2), (14, 1, 1), (4, 0, 2)]
)
def test_a_warning_at_fifteen_and_one_at_five_minutes(minutes: float, told: int, warnings: int) -> None:
    deadline = ends_in(minutes)
    before = Told(deadline, told, NOW - timedelta(minutes=9) if told else None)
    notice = due(deadline, before, NOW, ZONE)
    assert (notice.told.warnings, bool(notice.sentence), notice.ends) == (warnings, warnings > told, False)


@pytest.mark.parametrize(
    ("deadline", "sentence"),
    [
        (ends_in(15), "This server ends in 15 minutes, on Thursday 12:15 (Europe/Berlin): the longest "
                      "time that "
                      "your quota allows is over then. Save your work."),
        (ends_in(5, Cause.GPU_HOURS), "This server ends in 5 minutes, on Thursday 12:05 (Europe/Berlin): "
                                      "your "
                      "GPU-hours are used up then. Save your work."),
        (ends_in(-60, Cause.QUOTA_CHANGED), "This server ends in 5 minutes, on Thursday 12:05 "
                                            "(Europe/Berlin): "
                      "your quota was changed. Save your work."),
        (Deadline(NOW + timedelta(minutes=15), Cause.LAB_SESSION, EndAction.SLEEP),
         "This server is put to sleep in 15 minutes, on Thursday 12:15 (Europe/Berlin): a lab session "
         "needs its "
         "GPU then. Save your work."),
    ],
)  # fmt: skip
def test_what_is_said(deadline: Deadline, sentence: str) -> None:
    assert due(deadline, Told(), NOW, ZONE).sentence == sentence


def test_it_ends_when_it_is_time() -> None:
    deadline = ends_in(0)
    told = Told(deadline, 2, NOW - timedelta(minutes=5))
    assert due(deadline, told, NOW, ZONE) == Notice(
        told, "This server was ended: the longest time that your quota allows was over.", ends=True
    )


def test_a_late_warning_moves_the_end() -> None:
    deadline = ends_in(-10)
    first = due(deadline, Told(), NOW, ZONE)
    assert first.told == Told(deadline, 2, NOW)
    assert ends_at(deadline, first.told) == NOW + timedelta(minutes=5)
    assert not due(deadline, first.told, NOW + timedelta(minutes=4), ZONE).ends
    assert due(deadline, first.told, NOW + timedelta(minutes=5), ZONE).ends


def test_an_end_that_moved_away_is_taken_back() -> None:
    told = Told(ends_in(4), 2, NOW - timedelta(minutes=1))
    assert due(ends_in(60), told, NOW, ZONE) == Notice(Told(ends_in(60)), withdrawn=True)
    assert due(None, told, NOW, ZONE) == Notice(Told(), withdrawn=True)
    assert due(None, Told(), NOW, ZONE) == Notice(Told())
    to_ten = due(ends_in(10), told, NOW, ZONE)
    assert (to_ten.told, to_ten.withdrawn, bool(to_ten.sentence)) == (Told(ends_in(10), 1, NOW), False, True)


def test_a_session_is_extended_as_far_as_the_quota_allows() -> None:
    assert [extension_seconds(3600.0, done, 3000.0) for done in (0.0, 1000.0, 3600.0, 9999.0)] == [
        3000.0, 2600.0, 0.0, 0.0,
    ]  # fmt: skip
    assert extension_seconds(UNLIMITED, 1e9, 3600.0) == 3600.0


@given(st.lists(st.tuples(st.integers(0, 900), st.one_of(st.none(), st.integers(-30, 90))), max_size=80))
def test_nobody_ends_without_a_warning_five_minutes_before(steps: list[tuple[int, int | None]]) -> None:
    """Seconds pass, and now and then the deadline is moved, however wildly."""
    now, deadline, told = NOW, ends_in(60), Told()
    warned_at: datetime | None = None
    for seconds, moved in steps:
        now += timedelta(seconds=seconds)
        if moved is not None:
            deadline = Deadline(now + timedelta(minutes=moved), Cause.SESSION_LIMIT)
        notice = due(deadline, told, now)
        told = notice.told
        if notice.ends:
            assert warned_at is not None
            assert now - warned_at >= timedelta(minutes=5)
            assert now >= deadline.at
            return
        if notice.withdrawn:
            warned_at = None
        if notice.sentence:
            warned_at = now


def test_a_page_leaves_the_minutes_to_its_own_countdown() -> None:
    for minutes, action, becomes in (
        (15, EndAction.STOP, "ends"),
        (5, EndAction.STOP, "ends"),
        (15, EndAction.SLEEP, "is put to sleep"),
    ):
        at = NOW + timedelta(minutes=minutes)
        sentence = due(Deadline(at, Cause.GPU_HOURS, action), Told(), NOW).sentence
        assert f"{becomes} in {minutes} minutes, on Thursday" in sentence
        said = for_a_page(sentence)
        assert said.startswith(f"This server {becomes} on Thursday 11:")
        assert said.endswith(": your GPU-hours are used up then. Save your work.")
    for other in ("", "GPU 0 is lost.", "This server ends in 5 minutes, on a whim."):
        assert for_a_page(other) == other
