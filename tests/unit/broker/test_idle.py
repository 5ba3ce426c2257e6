"""When a GPU counts as idle, and that nobody loses it without two warnings."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from gpuspawner.broker.decide.when.idle import (
    Activity,
    Look,
    Step,
    Verdict,
    Warned,
    idle_since,
    judge,
    warns_of_idleness,
)
from gpuspawner.config.idle import IdleRules
from gpuspawner.core.session import EndAction
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
POLICY = IdleRules()


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("activity", "since"),
    [
        (Activity(ago(40), False, ago(50)), ago(40)),
        (Activity(ago(50), False, ago(40)), ago(40)),
        (Activity(ago(50), False), ago(50)),  # a forgotten notebook that holds memory and computes nothing
        (Activity(ago(50), True, ago(50)), None),  # a silent computation with the browser closed
        (Activity(NOW, False, ago(50)), NOW),
        (Activity(None, False, ago(50)), ago(50)),  # MIG: only the kernels are known
        (Activity(None, False), None),
        (Activity(None, False, seen_from=ago(70)), ago(70)),  # MIG, and nobody ever opened a notebook
        (Activity(None, False, ago(50), seen_from=ago(20)), ago(50)),
        (Activity(None, None, seen_from=ago(70)), None),
        (Activity(ago(50), None, ago(50)), None),  # the hub says nothing: not taken for idle
    ],
)
def test_since_when_it_is_idle(activity: Activity, since: datetime | None) -> None:
    assert idle_since(activity) == since


def test_the_first_warning_says_when_it_ends() -> None:
    assert judge(POLICY, Activity(ago(16), False), Warned(), Look(NOW, True)) == Verdict(
        Step.FIRST_WARNING,
        ago(16),
        "For 16 minutes this server has not used its GPU, and no notebook of it computes. It will be "
        "stopped if somebody waits for it on Thursday 12:44 (UTC) or later: run a cell to keep "
        "it, or save your work and stop it.",
    )


def test_what_cannot_be_measured_is_said() -> None:
    policy = replace(POLICY, action=EndAction.SLEEP, only_when_waiting=False)
    look = Look(NOW, False, "Europe/Berlin")
    assert judge(policy, Activity(None, False, ago(16)), Warned(), look).sentence == (
        "For 16 minutes no notebook of this server has computed anything (whether its GPU was used can't be "
        "measured here). It will be put to sleep on Thursday 13:44 (Europe/Berlin): run a cell to keep it, "
        "or save your work and stop it."
    )


def test_without_an_action_it_is_only_said() -> None:
    policy = replace(POLICY, action=EndAction.NOTHING)
    assert judge(policy, Activity(ago(16), False), Warned(), Look(NOW, True)).sentence == (
        "For 16 minutes this server has not used its GPU, and no notebook of it computes. Others may need "
        "it: "
        "stop the server if you are done."
    )
    assert (
        judge(policy, Activity(ago(600), False), Warned(ago(500), ago(400)), Look(NOW, True)).step
        is Step.NONE
    )


@pytest.mark.parametrize("action", [EndAction.STOP, EndAction.SLEEP, EndAction.NOTHING])
def test_a_warning_is_known_by_its_text(action: EndAction) -> None:
    """After a restart of the broker nothing else tells whose notice it is."""
    policy = replace(POLICY, action=action)
    for activity in (Activity(ago(60), False), Activity(None, False, ago(60))):
        for warned in (Warned(), Warned(ago(45))):
            assert warns_of_idleness(judge(policy, activity, warned, Look(NOW, True)).sentence)
    acted = judge(POLICY, Activity(ago(60), False), Warned(ago(45), ago(5)), Look(NOW, True)).sentence
    assert [warns_of_idleness(each) for each in (acted, "Your GPU is hot.", "")] == [False] * 3


def test_within_its_minimum_a_server_is_warned_and_kept() -> None:
    """Idle for 61 minutes, and its quota lets it keep the GPU for half an hour more."""
    kept = Activity(ago(61), False, kept_until=NOW + timedelta(minutes=30))
    for warned in (Warned(), Warned(ago(46))):
        sentence = judge(POLICY, kept, warned, Look(NOW, True)).sentence
        assert "It will be stopped if somebody waits for it on Thursday 12:30 (UTC) or later" in sentence
    warned = Warned(ago(46), ago(6))
    assert judge(POLICY, kept, warned, Look(NOW, True)).step is Step.NONE
    assert judge(POLICY, kept, warned, Look(NOW + timedelta(minutes=29), True)).step is Step.NONE
    assert judge(POLICY, kept, warned, Look(NOW + timedelta(minutes=30), True)).step is Step.ACT


def test_no_step_is_skipped_however_long_it_was_idle() -> None:
    long = Activity(ago(600), False)
    assert judge(POLICY, long, Warned(), Look(NOW, True)).step is Step.FIRST_WARNING
    second = judge(POLICY, long, Warned(NOW), Look(NOW, True))
    assert second.step is Step.SECOND_WARNING
    assert "It will be stopped if somebody waits for it on Thursday 12:05 (UTC) or later" in second.sentence
    assert judge(POLICY, long, Warned(NOW, ago(4)), Look(NOW, True)).step is Step.NONE
    assert judge(POLICY, long, Warned(NOW, ago(5)), Look(NOW, True)) == Verdict(
        Step.ACT, ago(600), "This server was stopped because its GPU was not used for 600 minutes."
    )


def test_the_action_waits_for_somebody_who_waits() -> None:
    idle, warned = Activity(ago(90), False), Warned(ago(75), ago(35))
    assert judge(POLICY, idle, warned, Look(NOW, False)).step is Step.NONE
    assert judge(POLICY, idle, warned, Look(NOW, True)).step is Step.ACT
    assert judge(replace(POLICY, only_when_waiting=False), idle, warned, Look(NOW, False)).step is Step.ACT


def test_what_is_used_again_starts_anew() -> None:
    assert judge(POLICY, Activity(ago(1), False), Warned(ago(10)), Look(NOW, True)).step is Step.BACK
    assert judge(POLICY, Activity(ago(90), True), Warned(ago(75), ago(35)), Look(NOW, True)).step is Step.BACK
    unseen = judge(POLICY, Activity(ago(70), False), Warned(ago(75), ago(72)), Look(NOW, True))
    assert unseen.step is Step.FIRST_WARNING


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.booleans()), max_size=60))
def test_nobody_loses_a_gpu_that_was_used_or_without_two_warnings(
    steps: list[tuple[int, bool, bool]],
) -> None:
    """Minutes pass; each time the GPU is used or not, and somebody waits or not."""
    now = used_at = NOW
    warned, warnings_since_use, last_warning = Warned(), 0, NOW
    for minutes, used, waits in steps:
        now += timedelta(minutes=minutes)
        if used:
            used_at, warnings_since_use = now, 0
        verdict = judge(POLICY, Activity(used_at, False), warned, Look(now, waits))
        if verdict.step is Step.BACK:
            warned = Warned()
        elif verdict.step is Step.FIRST_WARNING:
            warned, warnings_since_use = Warned(now), warnings_since_use + 1
        elif verdict.step is Step.SECOND_WARNING:
            warned, warnings_since_use, last_warning = (
                replace(warned, second_at=now),
                warnings_since_use + 1,
                now,
            )
        elif verdict.step is Step.ACT:
            assert waits
            assert warnings_since_use == 2
            assert now - used_at >= timedelta(minutes=60)
            assert now - last_warning >= timedelta(minutes=5)
            return
