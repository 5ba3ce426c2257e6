"""What holds follows from the settings and from what was decided, in its order."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from gpuspawner.broker.decide.allow.budget import Entry
from gpuspawner.broker.decide.allow.rules import Rules, fold, make_base
from gpuspawner.config.quotas import Known
from gpuspawner.config.sessions import session_to_json
from gpuspawner.core.decision import Announcement, Decision, DecisionKind, Drain
from gpuspawner.core.model import Tier
from gpuspawner.core.quota import EVERYBODY, Limits, Quota, Subject, SubjectKind
from gpuspawner.core.session import LabSession
from gpuspawner.core.want import Want

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
KNOWN = Known((Tier("cpu", "CPU"), Tier("gpu", "One GPU", want=Want(1))))
STUDENTS, ADA = Subject(SubjectKind.GROUP, "students"), Subject(SubjectKind.USER, "ada")
BASE = [{"devices": 1}, {"group": "students", "devices": 1, "leases": 2}]
CLASS = LabSession("cs231n", "students", "gpu", 2, date(2026, 12, 1), time(10), 3600.0)


def decided(kind: DecisionKind, subject: object, document: Any) -> Decision:
    return Decision(NOW, kind, str(subject), document, "noether", "because")


def quota(subject: Subject, **values: Any) -> Decision:
    return decided(DecisionKind.QUOTA, subject, values)


def test_without_decisions_the_settings_hold() -> None:
    assert fold(make_base(BASE, KNOWN), [], KNOWN) == Rules(
        (Quota(EVERYBODY, Limits(devices=1)), Quota(STUDENTS, Limits(devices=1, leases=2)))
    )


def test_later_decisions_count_before_earlier_ones_and_can_be_taken_back() -> None:
    decisions = [
        quota(STUDENTS, devices=2, leases=9),
        quota(ADA, devices=4),
        quota(STUDENTS, devices=3),
        quota(STUDENTS, leases=None),
        quota(ADA, devices=None),
    ]
    found = fold(make_base(BASE, KNOWN), decisions, KNOWN)
    assert found.quotas == (Quota(EVERYBODY, Limits(devices=1)), Quota(STUDENTS, Limits(devices=3, leases=2)))
    assert found.changed == {STUDENTS: {"devices": 3}}


def test_grants_sessions_and_extensions_add_up() -> None:
    document = session_to_json(CLASS)
    decisions = [
        decided(DecisionKind.GRANT, ADA, {"gpu_seconds": 3600}),
        decided(DecisionKind.GRANT, STUDENTS, {"gpu_seconds": -60.5}),
        decided(DecisionKind.SESSION, "cs231n", {**document, "seats": 9}),
        decided(DecisionKind.SESSION, "cs231n", document),
        decided(DecisionKind.SESSION, "ml", {**document, "name": "ml"}),
        decided(DecisionKind.SESSION, "ml", None),
        decided(DecisionKind.EXTENSION, "a" * 32, {"seconds": 600}),
        decided(DecisionKind.EXTENSION, "a" * 32, {"seconds": 300}),
    ]
    assert fold(make_base([], KNOWN), decisions, KNOWN) == Rules(
        entries=(
            Entry(ADA, 3600.0, NOW, "noether", "because"),
            Entry(STUDENTS, -60.5, NOW, "noether", "because"),
        ),
        sessions={"cs231n": CLASS},
        extended_seconds={"a" * 32: 900.0},
    )


def test_what_can_t_be_used_any_more_is_said_and_the_settings_count() -> None:
    """The tier "big" was taken out of the settings after somebody had used it in a change."""
    gone = session_to_json(CLASS) | {"tier": "big"}
    decisions = [
        quota(STUDENTS, tiers=["big"], devices=5),
        quota(ADA, tiers=["big"]),
        decided(DecisionKind.SESSION, "cs231n", gone),
    ]
    found = fold(make_base(BASE, KNOWN), decisions, KNOWN)
    assert (found.quotas, found.sessions) == (fold(make_base(BASE, KNOWN), [], KNOWN).quotas, {})
    assert [each.split(":")[0] for each in found.problems] == [
        "The quota of group",
        "The quota of user",
        "The lab session 'cs231n' can't take place",
    ]


async def test_what_was_decided_outlives_a_restart(times: Any, database: str) -> None:
    decisions = (
        quota(STUDENTS, tiers=["cpu"], gpu_hours=0.5, leases=None),
        decided(DecisionKind.SESSION, "ml", None),
        Decision(NOW + timedelta(hours=1), DecisionKind.GRANT, "user:ada", {"gpu_seconds": 1}, "a", ""),
    )
    ledger = times.make_ledger(database)
    await ledger.open()
    await ledger.decide(*decisions[:2])
    await ledger.decide(decisions[2])
    await ledger.close()
    again = times.make_ledger(database)
    await again.open()
    try:
        assert await again.decisions() == decisions
    finally:
        await again.close()


def test_drains_and_messages_can_be_taken_back() -> None:
    until = {"text": "Save your work.", "until": "2026-11-26T13:00:00+00:00"}
    decisions = [
        decided(DecisionKind.DRAIN, "GPU-0", {}),
        decided(DecisionKind.DRAIN, "GPU-1", {}),
        decided(DecisionKind.DRAIN, "GPU-0", None),
        decided(DecisionKind.MESSAGE, EVERYBODY, {**until, "text": "Welcome."}),
        decided(DecisionKind.MESSAGE, STUDENTS, {**until, "text": "Hello."}),
        decided(DecisionKind.MESSAGE, STUDENTS, until),
        decided(DecisionKind.MESSAGE, EVERYBODY, None),
    ]
    found = fold(make_base(BASE, KNOWN), decisions, KNOWN)
    assert found.drained == {"GPU-1": Drain(NOW, "noether", "because")}
    message = Announcement("Save your work.", "noether", NOW, NOW + timedelta(hours=1))
    assert found.messages == {STUDENTS: message}
