"""Quotas in a replay: refusals, budgets that end sessions, and the order that they give the queue."""

from __future__ import annotations

from datetime import UTC, datetime

from gpuspawner.broker.decide.allow.budget import Entry
from gpuspawner.broker.decide.replay.replay_quota import ReplayQuotas
from gpuspawner.broker.decide.replay.simulate import Outcome, SimulatedSite, Simulation, Visit
from gpuspawner.config.quotas import Known, parse_quotas
from gpuspawner.core.model import Device, Tier
from gpuspawner.core.quota import Subject, SubjectKind
from gpuspawner.core.want import Want

HOUR, DAY = 3600.0, 86400.0
GPU = Tier("gpu", "One GPU", want=Want(1))
MONDAY = datetime(2026, 11, 30, tzinfo=UTC)
KNOWN = Known((GPU,), None, "UTC")


def visit(at: float, user: str, hours: float, server: str = "", group: str = "") -> Visit:
    return Visit(at, user, GPU, hours * HOUR, server=server, groups=(group,) if group else ())


def replayed(
    quotas: list[dict[str, object]], gpus: int, *visits: Visit, entries: tuple[Entry, ...] = ()
) -> list[Outcome]:
    devices = [Device(f"GPU-{n}", "H100", 80 << 30, index=n) for n in range(gpus)]
    held = ReplayQuotas(parse_quotas(quotas, KNOWN), MONDAY, entries)
    return Simulation(held.over(SimulatedSite(devices, {}))).run(visits)


def told(outcomes: list[Outcome]) -> list[tuple[str, float | None, float | None, str]]:
    return [(each.visit.user, each.began_seconds, each.ended_seconds, each.refused) for each in outcomes]


def test_two_servers_of_one_user_are_one_too_many() -> None:
    outcomes = replayed(
        [{"devices": 1}], 2, visit(0, "ada", 1, "a"), visit(60, "ada", 1, "b"), visit(HOUR + 1, "ada", 1, "b")
    )
    assert told(outcomes) == [
        ("ada", 0, HOUR, ""),
        ("ada", None, None, "quota_devices"),
        ("ada", HOUR + 1, 2 * HOUR + 1, ""),
    ]
    assert outcomes[1].message == "You hold 1 of 1 GPU in server 'a': stop it, or choose CPU."


def test_a_budget_ends_the_session_and_refuses_until_the_next_week() -> None:
    outcomes = replayed(
        [{"gpu_hours": 2}], 1, visit(0, "ada", 3), visit(DAY, "ada", 1), visit(7 * DAY, "ada", 1)
    )
    assert told(outcomes) == [
        ("ada", 0, 2 * HOUR, ""),
        ("ada", None, None, "quota_gpu_hours"),
        ("ada", 7 * DAY, 7 * DAY + HOUR, ""),
    ]


def test_a_grant_counts() -> None:
    grant = Entry(Subject(SubjectKind.USER, "ada"), HOUR / 2, MONDAY, "noether", "")
    assert told(replayed([{"gpu_hours": 2}], 1, visit(0, "ada", 3), entries=(grant,))) == [
        ("ada", 0, 2.5 * HOUR, "")
    ]


def test_priority_and_the_longest_session() -> None:
    """Ada has the only GPU for an hour at most; then eve's group goes before bob, who came first."""
    quotas: list[dict[str, object]] = [{"session_hours": 1}, {"group": "phd", "priority": 5}]
    outcomes = replayed(quotas, 1, visit(0, "ada", 9), visit(60, "bob", 1), visit(120, "eve", 1, group="phd"))
    assert told(outcomes) == [
        ("ada", 0, HOUR, ""),
        ("bob", 2 * HOUR, 3 * HOUR, ""),
        ("eve", HOUR, 2 * HOUR, ""),
    ]
