"""Replays on a virtual clock: by example, and the qualities of the queue that `bench/policy.py` prints."""

from __future__ import annotations

import pytest
from gpuspawner.broker.decide.book import Book, QueueRules
from gpuspawner.broker.decide.line.queue import Claim
from gpuspawner.broker.decide.replay.simulate import (
    Outcome,
    SimulatedSite,
    Simulation,
    Summary,
    Visit,
    jain,
    summarize,
)
from gpuspawner.core.errors import QuotaLeases, Refusal
from gpuspawner.core.model import Device, Lease, Tier
from gpuspawner.core.want import Want

from bench.policy import fair_share, fairness, first_come, weighted

HOUR = 3600.0
GPU, PAIR, FIVE = (Tier(str(count), "", want=Want(count)) for count in (1, 2, 5))
GPUS = [Device(f"GPU-{n}", "H100", 80 << 30, index=n) for n in range(2)]


def times(outcomes: list[Outcome]) -> list[tuple[str, float | None, float | None, str]]:
    """In hours."""
    return [
        (
            each.visit.user,
            None if each.began_seconds is None else each.began_seconds / HOUR,
            None if each.ended_seconds is None else each.ended_seconds / HOUR,
            each.refused,
        )
        for each in outcomes
    ]


def test_what_becomes_of_visits() -> None:
    """Limits end sessions, the quota refuses, somebody gives up, and two GPUs are never given twice."""

    def admit(lease: Lease, book: Book, now: float) -> Refusal | None:
        return QuotaLeases("You have one.") if book.of_server("simulated", lease.user, "") else None

    rules = QueueRules(lambda lease: Claim(session_seconds=4 * HOUR))
    visits = [
        Visit(0, "ada", GPU, 9 * HOUR),
        Visit(0, "ben", GPU, 2 * HOUR),
        Visit(HOUR, "ada", GPU, HOUR),
        Visit(HOUR, "cleo", PAIR, HOUR),
        Visit(HOUR, "dan", GPU, HOUR, gives_up_seconds=HOUR / 2),
        Visit(1.5 * HOUR, "eve", FIVE, HOUR),
        Visit(2.5 * HOUR, "fay", GPU, 9 * HOUR, until_seconds=3 * HOUR),
    ]
    outcomes = Simulation(SimulatedSite(GPUS, {}, rules, admit)).run(visits)
    assert times(outcomes) == [
        ("ada", 0, 4, ""),
        ("ben", 0, 2, ""),
        ("ada", None, None, "quota_leases"),
        ("cleo", 4, 5, ""),
        ("dan", None, None, "queue_timeout"),
        ("eve", None, None, "no_capacity"),
        ("fay", 5, 5, ""),
    ]
    assert summarize(outcomes, 2 * 5 * HOUR) == Summary(
        visits=7,
        served=4,
        waited=2,
        median_wait_seconds=1.25 * HOUR,
        p95_wait_seconds=3 * HOUR,
        held_fraction=pytest.approx((4 + 2 + 2) / 10),
        busy_fraction=pytest.approx((4 + 2 + 2) / 10),
        refused={"quota_leases": 1, "queue_timeout": 1, "no_capacity": 1},
    )


def test_a_replay_that_stops_counts_up_to_there() -> None:
    outcomes = Simulation(SimulatedSite(GPUS[:1], {})).run(
        [Visit(0, "ada", GPU, 9 * HOUR), Visit(HOUR, "ben", GPU, HOUR)], until_seconds=3 * HOUR
    )
    assert times(outcomes) == [("ada", 0, 3, ""), ("ben", None, None, "")]


def test_who_comes_back_is_asked_for_again() -> None:
    def again(outcome: Outcome) -> Visit | None:
        ended = outcome.ended_seconds or 0.0
        return Visit(ended + HOUR, outcome.visit.user, GPU, HOUR) if ended < 4 * HOUR else None

    outcomes = Simulation(SimulatedSite(GPUS, {}, again=again)).run([Visit(0, "ada", GPU, HOUR)])
    assert times(outcomes) == [("ada", 0, 1, ""), ("ada", 2, 3, ""), ("ada", 4, 5, "")]


def test_jains_index() -> None:
    assert (jain([3, 3, 3]), jain([6, 0, 0]), jain([0, 0])) == (1, pytest.approx(1 / 3), 1)


def test_a_week_is_fair() -> None:
    """200 students on 8 GPUs, equal demand, sessions of unequal length; first come, first served is not."""
    index, slowdown = fairness(fair_share)
    assert index >= 0.99
    assert slowdown <= 1.2
    assert fairness(first_come)[0] < 0.95


def test_groups_get_their_weight() -> None:
    """Within 2 % of the entitlement; a term of 15 weeks is in `make bench`."""
    error_percent, _ = weighted(fair_share, weeks=4)
    assert error_percent <= 2.0
