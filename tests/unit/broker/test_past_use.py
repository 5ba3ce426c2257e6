"""What past sessions count as in fair share: in turns only the time awake, also of those that go on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from gpuspawner.broker.leases.past_use import past_use
from gpuspawner.broker.ledger import PastSession
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Mode, Want

from tests.unit.lease_examples import NOON

WHOLE, TURNS = Want(2), Want(1, mode=Mode.TURNS, memory_bytes=24 << 30)


def lease(want: Want, state: LeaseState, since_seconds: float = 0.0) -> Lease:
    parts = (1.0, 1.0) if want.mode is Mode.WHOLE else (0.5, 0.5)
    return Lease(
        id="a" * 32, hub="hub", user="ada", server="", tier="gpu", want=want, state=state,
        created_at=NOON, since=NOON + timedelta(seconds=since_seconds), device_uuids=("GPU-0", "GPU-1"),
        device_fractions=parts,
    )  # fmt: skip


def session(of: Lease, seconds: float, awake_seconds: float) -> PastSession:
    return PastSession(of, NOON, NOON + timedelta(seconds=seconds), awake_seconds)


def test_a_whole_gpu_counts_from_its_begin_to_its_end_and_once() -> None:
    ended = session(lease(WHOLE, LeaseState.CLOSED), 600, 600)
    noon = NOON.timestamp()
    assert list(past_use(ended)) == [(2.0, noon, noon + 600)]
    assert list(past_use(ended, lease(WHOLE, LeaseState.RUNNING))) == []


@pytest.mark.parametrize(
    ("living", "expected"),
    [
        (None, (100.0, 1000.0)),
        (lease(TURNS, LeaseState.ASLEEP, 1200.0), (100.0, 1000.0)),
        (lease(TURNS, LeaseState.RUNNING, 960.0), (60.0, 960.0)),
        (lease(TURNS, LeaseState.RUNNING, 1000.0), (100.0, 1000.0)),
    ],
)
def test_in_turns_the_time_awake_counts(living: Lease | None, expected: tuple[float, float]) -> None:
    """Awake for 100 s in 1000: as a tenth of a GPU. What goes on now is counted from memory."""
    found = list(past_use(session(living or lease(TURNS, LeaseState.CLOSED), 1000, 100), living))
    (part, began, ended) = found[0]
    assert (part * (ended - began), ended - NOON.timestamp()) == pytest.approx(expected)
    assert len(found) == 1
    assert began == NOON.timestamp()


def test_in_turns_nobody_who_was_not_awake_has_used_anything() -> None:
    asleep = lease(TURNS, LeaseState.ASLEEP)
    assert list(past_use(session(asleep, 0, 0), asleep)) == []
    first = replace(asleep, state=LeaseState.RUNNING, since=NOON + timedelta(seconds=10))
    assert list(past_use(session(first, 70, 60), first)) == []
