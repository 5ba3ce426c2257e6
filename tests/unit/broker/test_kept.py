"""What is kept for lab sessions is known ahead of time: nothing is expanded when somebody asks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.decide.when.sessions import reservations
from gpuspawner.broker.leases import kept as module
from gpuspawner.broker.leases.kept import KeptPlaces
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.config.quotas import Known
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.decision import DecisionKind


def lab(number: int) -> dict[str, Any]:
    """A session that meets every day, each at another time."""
    return {
        "name": f"lab-{number}", "group": "g", "tier": "gpu", "seats": 1, "first": "2026-11-26",
        "begins": f"{number % 24:02}:{number * 7 % 60:02}", "length_seconds": 5400, "rule": "FREQ=DAILY",
        "timezone": "Europe/Berlin", "lead_seconds": 60.0 * (number % 180),
    }  # fmt: skip


@pytest.fixture
def expanded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the sessions that were expanded."""
    names: list[str] = []

    def count(sessions: Any, now: Any, until: Any) -> Any:
        names.extend(each.name for each in sessions)
        return reservations(sessions, now, until)

    monkeypatch.setattr(module, "reservations", count)
    return names


async def test_only_what_is_new_is_expanded_when_somebody_asks(
    path: Path, times: Any, expanded: list[str]
) -> None:
    """Two days with 40 sessions, rounds every 20 minutes: the answers are those of the whole calendar."""
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=9)
    ledger = times.make_ledger(path)
    await ledger.open()
    rulebook = Rulebook(ledger, [], Known(parse_tiers([{"name": "gpu", "devices": 1}])), clock=times.now)

    async def save(number: int, **changes: Any) -> None:
        document = {**lab(number), **changes}
        decision = rulebook.decision(DecisionKind.SESSION, f"lab-{number}", document, "noether", "")
        await rulebook.decide(decision)

    for number in range(40):
        await save(number)
    places = KeptPlaces(rulebook)
    assert places.near(times.now()) != []
    assert len(expanded) == 40
    for step in range(150):
        now = times.now()
        expanded.clear()
        places.renew(now)
        assert len(expanded) <= 10
        expanded.clear()
        for ahead in (timedelta(), timedelta(hours=2)):
            whole = reservations(rulebook.rules.sessions.values(), now, now + timedelta(hours=3))
            wanted = [each for each in whole if each.keep_from <= now + ahead and now < each.meeting.end]
            assert places.near(now, ahead) == wanted
        assert expanded == []
        if step == 70:
            await save(3, seats=2)
            places.near(now)
            assert expanded == ["lab-3"]
        times.pass_seconds(1200)
    await ledger.close()


async def test_a_cancelled_session_keeps_nothing_and_without_rounds_the_answer_is_right_too(
    path: Path, times: Any, expanded: list[str]
) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=9)
    ledger = times.make_ledger(path)
    await ledger.open()
    rulebook = Rulebook(ledger, [], Known(parse_tiers([{"name": "gpu", "devices": 1}])), clock=times.now)
    places = KeptPlaces(rulebook)
    assert places.near(times.now()) == []
    document = {**lab(10), "lead_seconds": 3600.0}
    await rulebook.decide(rulebook.decision(DecisionKind.SESSION, "lab-10", document, "noether", ""))
    assert [each.meeting.session for each in places.near(times.now())] == ["lab-10"]
    times.pass_seconds(3 * 86400)
    assert [each.meeting.session for each in places.near(times.now())] == ["lab-10"]
    times.pass_seconds(-86400)  # the clock was set back
    assert [each.meeting.session for each in places.near(times.now())] == ["lab-10"]
    await rulebook.decide(rulebook.decision(DecisionKind.SESSION, "lab-10", None, "noether", ""))
    assert places.near(times.now()) == []
    await ledger.close()
