"""What somebody decided at run time, with author and reason: a quota, a session, a drained device …"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class DecisionKind(StrEnum):
    """What was decided. Its subject: whom a quota, grant or message is for, a session's name, a lease's id, a
    device's UUID or a machine (of a drain: `drain_of`).

    END is about a lease that its user's quota, as it was changed, does not allow any more.
    PROPERTIES are the limits in a hub group's own properties, as the hub last told them; its subject is the
    group.
    """

    QUOTA = "quota"
    GRANT = "grant"
    SESSION = "session"
    EXTENSION = "extension"
    END = "end"
    PROPERTIES = "properties"
    DRAIN = "drain"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of the ledger; later ones of the same kind and subject count before earlier ones.

    `document` holds JSON values: of a quota the keys that change (None takes a change back), of a grant
    `gpu_seconds`, of a session all its fields (None in place of the document cancels it), of an extension
    `seconds`, of an end `quota` (whose was changed), of a message `text` and `until` (an ISO time), of a
    drain nothing. None in place of the document of a message or a drain takes it back.
    """

    at: datetime
    kind: DecisionKind
    subject: str
    document: Mapping[str, Any] | None
    author: str
    reason: str


_MACHINE = "machine:"


def drain_of(machine: str) -> str:
    """The subject of a machine's drain, which holds for all its devices, also for those that come later."""
    return f"{_MACHINE}{machine}"


def drained_machine(subject: str) -> str:
    """The machine of such a subject; "" for that of a device."""
    return subject.removeprefix(_MACHINE) if subject.startswith(_MACHINE) else ""


@dataclass(frozen=True, slots=True)
class Drain:
    """A device on which nothing new is placed, or a machine, since when, by whom and why. What runs there
    goes on."""

    since: datetime
    author: str
    reason: str


@dataclass(frozen=True, slots=True)
class Announcement:
    """A message to a class or to everybody, shown in notebooks and on the pages until it ends."""

    text: str
    author: str
    since: datetime
    until: datetime
