"""The status document that is made again in parts is the one that is made as a whole, whatever changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gpuspawner.broker.api import remembered
from gpuspawner.broker.api.documents import News, lease_document, status_document
from gpuspawner.broker.api.remembered import StatusMemory
from gpuspawner.broker.decide.snapshot import DeviceView, QueueEntry, Snapshot, TurnView
from gpuspawner.broker.decide.turns import Turn
from gpuspawner.broker.decide.when.deadline import Cause, Deadline
from gpuspawner.broker.observe.use import Use
from gpuspawner.core.model import DeviceHealth, Lease
from gpuspawner.node.usage import Usage
from gpuspawner.protocol.messages import document
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.lease_examples import GPU0, GPU1, NOON, RUNNING, WAITING, A, B, C, lease

ADA, BOB, EVE = lease(A, RUNNING, "GPU-0"), lease(B, RUNNING, "GPU-1"), lease(C, WAITING)
HELD = {"GPU-0": (ADA,), "GPU-1": (BOB,)}
CHANGES = st.fixed_dictionaries(
    {
        "notice": st.sampled_from(["", "Save your work."]),
        "leases": st.sampled_from([(ADA,), (ADA, BOB), (BOB, ADA), (ADA, BOB, EVE)]),
        "devices": st.sampled_from([(GPU0,), (GPU0, GPU1), (GPU1, GPU0)]),
        "healthy": st.booleans(),
        "used": st.sampled_from([None, 0, 7]),
        "blind": st.sampled_from(["", "no guard"]),
        "unknown": st.booleans(),
        "minutes": st.sampled_from([None, 1, 2]),
        "turn": st.sampled_from([None, Turn.AWAKE, Turn.ASLEEP]),
        "fault": st.sampled_from(["", "NVML hangs"]),
    }
)


def moment(change: dict[str, Any]) -> tuple[Snapshot, News]:
    """What the broker has at that moment."""

    def now(each: Lease) -> Lease:
        return replace(each, notice=change["notice"]) if each.id == A else each

    living = {each.id for each in change["leases"]}
    views = tuple(
        DeviceView(
            device,
            DeviceHealth(device.uuid, change["healthy"], "" if change["healthy"] else "it is lost", NOON),
            tuple(now(each) for each in HELD[device.uuid] if each.id in living),
        )
        for device in change["devices"]
    )
    leases = tuple(map(now, change["leases"]))
    queue = tuple(QueueEntry(each, 1, 1) for each in leases if each.id == C)
    minutes, turn = change["minutes"], change["turn"]
    end = None if minutes is None else Deadline(NOON + timedelta(minutes=minutes), Cause.SESSION_LIMIT)
    news = News(
        usage={} if change["used"] is None else {"GPU-0": Usage(change["used"], 50.0)},
        blind={"GPU-0": change["blind"]} if change["blind"] else {},
        fault=change["fault"],
        uses={A: Use(change["used"], 10.0)},
        deadline_of=lambda lease_id: end if lease_id == A else None,
        unknown=frozenset({B}) if change["unknown"] else frozenset(),
        turns={} if turn is None else {A: TurnView(turn, NOON, "GPU-0")},
    )
    return Snapshot(views, leases, queue), news


@given(st.lists(CHANGES, min_size=1, max_size=6))
def test_it_is_the_whole_document(changes: list[dict[str, Any]]) -> None:
    memory = StatusMemory()
    for change in changes:
        snapshot, news = moment(change)
        whole = document(status_document(snapshot, False, news))
        assert memory.status(snapshot, False, news) == whole
        assert list(memory.status(snapshot, False, news)) == list(whole)


def test_only_what_changed_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def count(each: Lease, news: News) -> Any:
        made.append(each.id)
        return lease_document(each, news)

    monkeypatch.setattr(remembered, "lease_document", count)
    memory, devices = StatusMemory(), ()
    for leases in ((ADA, BOB), (ADA, BOB), (ADA, replace(BOB, notice="new")), (ADA,), (ADA, BOB)):
        memory.status(Snapshot(devices, leases, ()), False, News())
    assert made == [A, B, B, B]
