"""The life of a lease: every state with every event, compared as a whole table."""

from __future__ import annotations

from itertools import product

import pytest
from gpuspawner.core import states
from gpuspawner.core.errors import LeaseConflict, NotAllowed
from gpuspawner.core.model import LeaseState
from gpuspawner.core.states import TRANSITIONS, Actor, Event, Frees, after

STATES: tuple[LeaseState | None, ...] = (None, *LeaseState)

TABLE = """
state     | ask       | place    | confirm  | start   | sleep  | wake    | end       | gone   | adopt
none      | waiting   | -        | -        | -       | -      | -       | -         | -      | running
waiting   | waiting   | reserved | -        | -       | -      | -       | closed    | -      | -
reserved  | reserved  | -        | reserved | running | -      | -       | releasing | -      | -
running   | running   | -        | running  | -       | asleep | -       | releasing | -      | -
asleep    | asleep    | -        | -        | -       | -      | running | releasing | -      | -
releasing | -         | -        | -        | -       | -      | -       | releasing | closed | -
closed    | -         | -        | -        | -       | -      | -       | -         | -      | -
"""


def test_where_each_event_leads() -> None:
    def cell(state: LeaseState | None, event: Event) -> str:
        found = TRANSITIONS.get((state, event))
        return "-" if found is None else found.to.value

    rows = [["state", *(event.value for event in Event)]]
    rows += [[state or "none", *(cell(state, event) for event in Event)] for state in STATES]
    assert rows == [[each.strip() for each in line.split("|")] for line in TABLE.strip().splitlines()]


def test_who_may_cause_each_event() -> None:
    """The same in whatever state it happens."""
    found = {event: {step.by for (_, each), step in TRANSITIONS.items() if each is event} for event in Event}
    hub, broker, docker = {frozenset({Actor.HUB})}, {frozenset({Actor.BROKER})}, {frozenset({Actor.DOCKER})}
    turns = {frozenset({Actor.BROKER, Actor.ADMIN})}
    assert found == {
        Event.ASK: hub, Event.PLACE: broker, Event.CONFIRM: hub, Event.START: docker, Event.SLEEP: turns,
        Event.WAKE: turns, Event.END: {frozenset(Actor)}, Event.GONE: docker, Event.ADOPT: docker,
    }  # fmt: skip


def test_what_each_event_frees() -> None:
    """Devices are free by one event only: Docker says that no container has the label."""
    assert {pair: step.frees for pair, step in TRANSITIONS.items() if step.frees is not Frees.NOTHING} == {
        (LeaseState.WAITING, Event.PLACE): Frees.PLACE,
        (LeaseState.WAITING, Event.END): Frees.PLACE,
        (LeaseState.RELEASING, Event.GONE): Frees.DEVICES,
    }


@pytest.mark.parametrize(("state", "event"), list(product(STATES, Event)))
def test_every_pair_is_a_transition_or_a_conflict(state: LeaseState | None, event: Event) -> None:
    step = TRANSITIONS.get((state, event))
    for by in Actor:
        if step is None:
            with pytest.raises(LeaseConflict):
                after(state, event, by)
        elif by in step.by:
            assert after(state, event, by) == step
        else:
            with pytest.raises(NotAllowed, match=f"not from {by.value}"):
                after(state, event, by)


AGAIN = "start the server again."
CONTAINER = "can't get a container: start the server again."
CLOSE = "can't be closed before its release has begun."


@pytest.mark.parametrize(
    ("state", "event", "sentence"),
    [
        (LeaseState.RELEASING, Event.ASK, f"This lease is being ended: {AGAIN}"),
        (LeaseState.CLOSED, Event.ASK, f"This lease has ended: {AGAIN}"),
        (LeaseState.WAITING, Event.START, f"A waiting lease {CONTAINER}"),
        (LeaseState.RUNNING, Event.START, f"This lease has a container already: {AGAIN}"),
        (LeaseState.ASLEEP, Event.START, f"This lease has a container already: {AGAIN}"),
        (LeaseState.RELEASING, Event.START, f"A releasing lease {CONTAINER}"),
        (LeaseState.CLOSED, Event.START, f"This lease has ended: {AGAIN}"),
        (None, Event.START, f"This lease has ended: {AGAIN}"),
        (LeaseState.WAITING, Event.GONE, f"A waiting lease {CLOSE}"),
        (LeaseState.RESERVED, Event.GONE, f"A reserved lease {CLOSE}"),
        (LeaseState.RUNNING, Event.GONE, f"A running lease {CLOSE}"),
        (LeaseState.RELEASING, Event.CONFIRM, "The lease of this server has ended: start the server again"),
        (LeaseState.CLOSED, Event.CONFIRM, "The lease of this server has ended: start the server again"),
        (LeaseState.RUNNING, Event.ADOPT, "The ledger knows this lease already."),
        (LeaseState.CLOSED, Event.ADOPT, "The ledger knows this lease already."),
        (LeaseState.RUNNING, Event.PLACE, "A running lease can't get devices: only a waiting one can."),
        (LeaseState.WAITING, Event.SLEEP, "A waiting lease can't be put to sleep: only a running one can."),
        (LeaseState.RUNNING, Event.WAKE, "A running lease can't be woken: only one that is asleep can."),
    ],
)
def test_what_is_said(state: LeaseState | None, event: Event, sentence: str) -> None:
    with pytest.raises(LeaseConflict) as conflict:
        after(state, event, Actor.BROKER)
    assert conflict.value.message == sentence


def test_groups_of_states() -> None:
    assert {state for state in LeaseState if any(pair[0] is state for pair in TRANSITIONS)} == states.LIVING
    assert {LeaseState.WAITING, LeaseState.RESERVED} == states.UNSETTLED
    assert {LeaseState.RUNNING} == states.AWAKE


def test_a_lease_ends_from_wherever_it_is() -> None:
    """From every living state, ending and then Docker's word lead to `closed`."""
    for state in states.LIVING:
        ended = after(state, Event.END, Actor.ADMIN).to
        if ended is not LeaseState.CLOSED:
            ended = after(ended, Event.GONE, Actor.DOCKER).to
        assert ended is LeaseState.CLOSED
