"""The states of a lease as one table: state × event → state, who may cause it, and what it frees. Pure.

    ask ──► waiting ──place──► reserved ──start──► running ⇄ asleep
               │ end              │ end              │ end     │ end
               ▼                  ▼                  ▼         ▼
            closed ◄────gone───────────── releasing

An event that is not in the table raises LeaseConflict, with a sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from .errors import LeaseConflict, NotAllowed
from .model import LeaseState


class Event(StrEnum):
    """What happens to a lease."""

    ASK = "ask"
    """The hub asks for it, for the first time or again after its connection broke."""
    PLACE = "place"
    """It is next in the queue, and matching devices are free."""
    CONFIRM = "confirm"
    """The hub asks, right before `docker start`, whether it is still valid."""
    START = "start"
    """Its container has started."""
    SLEEP = "sleep"
    """Its processes were taken off the GPU."""
    WAKE = "wake"
    """Its processes are on a GPU again."""
    END = "end"
    """It is no longer needed: stopped, cancelled, timed out, or its container has ended."""
    GONE = "gone"
    """Docker says that no container carries its label."""
    ADOPT = "adopt"
    """The labels of a running container describe it."""


class Actor(StrEnum):
    """Who causes an event."""

    HUB = "hub"
    """The spawner: it asks, confirms, stops, or closes its connection."""
    BROKER = "broker"
    """The broker itself: its queue, its timers, its turns."""
    DOCKER = "docker"
    """What Docker reports about the containers."""
    ADMIN = "admin"
    """A person with the right to cause it."""


class Frees(StrEnum):
    """What is free for others after the event."""

    NOTHING = "nothing"
    PLACE = "place"
    """Its place in the queue."""
    DEVICES = "devices"
    """Its shares of its devices."""


class Transition(NamedTuple):
    """Where an event leads, who may cause it, and what it frees."""

    to: LeaseState
    by: frozenset[Actor]
    frees: Frees = Frees.NOTHING


_WAITING, _RESERVED, _RUNNING = LeaseState.WAITING, LeaseState.RESERVED, LeaseState.RUNNING
_ASLEEP, _RELEASING, _CLOSED = LeaseState.ASLEEP, LeaseState.RELEASING, LeaseState.CLOSED
_HUB, _BROKER, _DOCKER = frozenset({Actor.HUB}), frozenset({Actor.BROKER}), frozenset({Actor.DOCKER})
_TURNS = frozenset({Actor.BROKER, Actor.ADMIN})
_ANYBODY = frozenset(Actor)

TRANSITIONS: Mapping[tuple[LeaseState | None, Event], Transition] = MappingProxyType(
    {
        (None, Event.ASK): Transition(_WAITING, _HUB),
        (None, Event.ADOPT): Transition(_RUNNING, _DOCKER),
        (_WAITING, Event.ASK): Transition(_WAITING, _HUB),
        (_WAITING, Event.PLACE): Transition(_RESERVED, _BROKER, Frees.PLACE),
        (_WAITING, Event.END): Transition(_CLOSED, _ANYBODY, Frees.PLACE),
        (_RESERVED, Event.ASK): Transition(_RESERVED, _HUB),
        (_RESERVED, Event.CONFIRM): Transition(_RESERVED, _HUB),
        (_RESERVED, Event.START): Transition(_RUNNING, _DOCKER),
        (_RESERVED, Event.END): Transition(_RELEASING, _ANYBODY),
        (_RUNNING, Event.ASK): Transition(_RUNNING, _HUB),
        (_RUNNING, Event.CONFIRM): Transition(_RUNNING, _HUB),
        (_RUNNING, Event.SLEEP): Transition(_ASLEEP, _TURNS),
        (_RUNNING, Event.END): Transition(_RELEASING, _ANYBODY),
        (_ASLEEP, Event.ASK): Transition(_ASLEEP, _HUB),
        (_ASLEEP, Event.WAKE): Transition(_RUNNING, _TURNS),
        (_ASLEEP, Event.END): Transition(_RELEASING, _ANYBODY),
        (_RELEASING, Event.END): Transition(_RELEASING, _ANYBODY),
        (_RELEASING, Event.GONE): Transition(_CLOSED, _DOCKER, Frees.DEVICES),
    }
)
"""Every event that may happen in a state. The state None stands for a lease that doesn't exist yet."""

LIVING = frozenset(LeaseState) - {_CLOSED}
"""The states of leases that have not ended."""
UNSETTLED = frozenset({_WAITING, _RESERVED})
"""A lease in these states lives only as long as a hub keeps its connection open."""
AWAKE = frozenset({_RUNNING})
"""GPU-seconds are charged in these states."""
WITH_CONTAINER = frozenset({_RUNNING, _ASLEEP})
"""Its container runs; in turns it may have no GPU at the moment."""

ENDED = "This lease has ended: start the server again."
"""The message for a lease that is closed or unknown."""


def after(state: LeaseState | None, event: Event, by: Actor) -> Transition:
    """What `event`, caused by `by`, does to a lease in `state`; None is a lease that doesn't exist yet.

    Raises LeaseConflict if the event can't happen in that state, NotAllowed if `by` may not cause it.
    """
    found = TRANSITIONS.get((state, event))
    if found is None:
        raise LeaseConflict(_refusal(state, event))
    if by not in found.by:
        allowed = " or ".join(sorted(found.by))
        raise NotAllowed(f"The event {event.value!r} of a lease comes from {allowed}, not from {by.value}.")
    return found


def can(state: LeaseState, event: Event) -> bool:
    """Whether the event can happen to a lease in that state."""
    return (state, event) in TRANSITIONS


def _refusal(state: LeaseState | None, event: Event) -> str:
    """Why the event can't happen, and what to do."""
    ended = state in (None, LeaseState.CLOSED)
    match event:
        case Event.CONFIRM:
            return "The lease of this server has ended: start the server again"
        case Event.ADOPT:
            return "The ledger knows this lease already."
        case Event.ASK if state is LeaseState.RELEASING:
            return "This lease is being ended: start the server again."
        case _ if ended:
            return ENDED
        case Event.START if state in (LeaseState.RUNNING, LeaseState.ASLEEP):
            return "This lease has a container already: start the server again."
        case Event.START:
            return f"A {state} lease can't get a container: start the server again."
        case Event.GONE:
            return f"A {state} lease can't be closed before its release has begun."
        case Event.PLACE:
            return f"A {state} lease can't get devices: only a waiting one can."
        case Event.SLEEP:
            return f"A {state} lease can't be put to sleep: only a running one can."
        case _:
            return f"A {state} lease can't be woken: only one that is asleep can."
