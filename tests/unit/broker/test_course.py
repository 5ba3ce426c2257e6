"""A class in words, the splits in words, and what a class gets of them."""

from __future__ import annotations

import pytest
from gpuspawner.broker.decide.place.sharing_rules import DRIVER_BYTES, WHOLE, SharingRules
from gpuspawner.broker.decide.replay.course import (
    DAYS,
    Course,
    parse_course,
    parse_split,
    replay,
    span_of,
    visits_of,
    with_tier,
)
from gpuspawner.broker.decide.replay.simulate import Summary, Visit
from gpuspawner.core.errors import BadOption
from gpuspawner.core.model import Device, Tier
from gpuspawner.core.want import Mode, Want

HOUR, GIB = 3600.0, 1 << 30
GPUS = [Device(f"GPU-{n}", "H100", 80 * GIB, index=n) for n in range(4)]


@pytest.mark.parametrize(
    ("text", "course"),
    [
        ("30 students, Mon 10-12", Course(30, (0,), 10 * HOUR, 12 * HOUR)),
        ("30 students, Mon 10–12, each busy 30 % of the time, 6 GB",
         Course(30, (0,), 10 * HOUR, 12 * HOUR, 0.3, 6 * GIB)),
        ("1 student, thursday + Tue 8:30-9:15, busy 5%, 0.5 GiB",
         Course(1, (1, 3), 8.5 * HOUR, 9.25 * HOUR, 0.05, GIB // 2)),
    ],
)  # fmt: skip
def test_a_class_in_words(text: str, course: Course) -> None:
    assert parse_course(text) == course


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a part ''"),
        ("30 bananas, Mon 10-12", "a part '30 bananas'"),
        ("Mon 10-12", "lacks how many students come, or when"),
        ("0 students, Mon 10-12", "has 0 students or 0 GB"),
        ("3 students, 4 students, Mon 10-12", "says twice what '4 students' says"),
        ("3 students", "lacks how many students come, or when"),
        ("3 students, Mon 10-12, busy 0%", "is busy 0% of the time"),
        ("3 students, Mon 10-12, busy 101%", "is busy 101% of the time"),
        ("3 students, Mon 12-10", "must end after it begins"),
        ("3 students, Mon 10-25", "must end after it begins"),
        ("3 students, Mor 10-12", "'mor' is no day: take Mon, Tue"),
    ],
)
def test_what_is_odd_in_a_class_is_named(text: str, sentence: str) -> None:
    with pytest.raises(BadOption, match=sentence):
        parse_course(text)


def test_splits_in_words() -> None:
    eight = SharingRules("plan", Mode.SLICE, slices=8, mps=True, reserve_bytes=DRIVER_BYTES)
    ten = SharingRules("plan", Mode.SLICE, sizes_bytes=(10 * GIB,), mps=True, reserve_bytes=DRIVER_BYTES)
    found = [parse_split(text, GPUS) for text in ("whole", "8 slices", "Slices of 10 GB")]
    assert [(each.name, each.rules) for each in found] == [
        ("whole GPUs", WHOLE),
        ("8 slices of 9.9 GiB", eight),
        ("slices of 10 GiB", ten),
    ]
    for text, sentence in [
        ("8", "is unknown: take 'whole'"),
        ("0 slices", "0 slices"),
        ("slices of 81 GB", "doesn't fit these GPUs"),
    ]:
        with pytest.raises(BadOption, match=sentence):
            parse_split(text, GPUS)


def test_a_class_in_slices_and_on_whole_gpus() -> None:
    """30 on four GPUs: in eighths nobody waits; of whole ones four get one, and the others none."""
    course = parse_course("30 students, Mon 10-12, busy 50%, 6 GB")
    plans = []
    for text in ("8 slices", "whole", "slices of 5 GB"):
        split = parse_split(text, GPUS)
        visits = visits_of(course, split.tier(course.memory_bytes), 2)
        plans.append(replay(GPUS, split, visits, span_of(course, 2)).summary)
    held = 60 * (115.166666 / 120) / 8 / 8
    assert plans[0] == Summary(
        60, 60, 0, 0.0, 0.0, pytest.approx(held, rel=1e-3), pytest.approx(held / 2, rel=1e-3), {}
    )
    assert plans[1].refused == {"queue_timeout": 52}
    assert (plans[1].visits, plans[1].served, plans[1].waited) == (60, 8, 0)
    assert plans[1].held_fraction == pytest.approx(0.99, abs=0.01)
    assert plans[2].refused == {"no_capacity": 60}
    assert (plans[2].median_wait_seconds, plans[2].p95_wait_seconds) == (None, None)


def test_who_waits_gets_the_rest_of_the_class() -> None:
    """Two sessions of one GPU: the second student begins when the first, who leaves early, is gone."""
    split, tier = parse_split("whole", GPUS[:1]), Tier("gpu", "One GPU", want=Want(1))
    visits = [
        Visit(0, "ada", tier, HOUR, until_seconds=2 * HOUR),
        Visit(60, "ben", tier, 2 * HOUR, gives_up_seconds=2 * HOUR, until_seconds=2 * HOUR),
    ]
    ada, ben = replay(GPUS[:1], split, visits, 2 * HOUR).outcomes
    assert (ada.began_seconds, ada.ended_seconds) == (0, HOUR)
    assert (ben.began_seconds, ben.ended_seconds, ben.wait_seconds) == (HOUR, 2 * HOUR, HOUR - 60)


def test_recorded_visits_ask_for_what_a_split_has() -> None:
    slice_ = Want(1, mode=Mode.SLICE, memory_bytes=8 * GIB)
    visits = [Visit(0, "ada", Tier("t", "", want=want), 60) for want in (Want(1), Want(2), slice_)]
    whole, tens = parse_split("whole", GPUS), parse_split("slices of 10 GB", GPUS)
    assert [each.tier.want for each in with_tier(visits, whole)] == [Want(1), Want(2), Want(1)]
    ten = Want(1, mode=Mode.SLICE, memory_bytes=10 * GIB)
    assert [each.tier.want for each in with_tier(visits, tens)] == [ten, ten, ten]


def test_the_week_begins_on_monday() -> None:
    (visit,) = visits_of(parse_course("1 student, Sun 0-1"), Tier("gpu", "", want=Want(1)), 1)
    assert (DAYS[6], visit.at_seconds) == ("Sun", 6 * 24 * HOUR)
