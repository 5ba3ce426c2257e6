"""The messages about the past: audit log, who held which GPU, what the guard did; and doctor's findings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .messages import Count, EndedDocument, LeaseId, Message, TextOrEmpty, Time
from .paging import Listed
from .rules import Authored

MOST_DOCUMENT = 4000
"""Characters of an audit entry's details; a whole calendar is left out."""


class AuditEntry(Message):
    """A change that somebody asked for. `ended_at` is None while it is carried out.

    `result` "begun" without an end means that the broker ended meanwhile, and nobody knows.
    """

    number: Count
    id: LeaseId
    at: Time
    author: str
    via: str = Field(description='"page", "api" or "socket" (hub and command line)')
    action: str
    subject: str = Field(description='"group:NAME", "user:NAME", "session:NAME", …')
    groups: tuple[str, ...]
    details: dict[str, Any] | None = Field(
        description=f"what was asked; null if that is longer than {MOST_DOCUMENT} characters"
    )
    reason: str
    result: Literal["begun", "done", "refused", "failed"]
    message: str
    ended_at: Time | None


class AuditDocument(Listed):
    """The answer to `GET api/audit`: the newest first."""

    entries: tuple[AuditEntry, ...]


class TimelineEntry(Message):
    """A lease was awake: its devices counted against its user's quota. `ended_at` None: it still is.

    In turns the devices are those of the pool. `gpu_fraction` is the part of a GPU that is charged, of all
    devices together.
    """

    number: Count
    lease_id: LeaseId
    hub: str
    user: str
    server: str
    tier: str = Field(description="the tier's name")
    groups: tuple[str, ...] = Field(description="the user's groups when the lease was asked for")
    device_uuids: tuple[str, ...]
    gpu_fraction: float
    started_at: Time
    ended_at: Time | None
    node: str = Field("", description="the machine of the devices")


class TimelineDocument(Listed):
    """The answer to `GET api/timeline`: what reaches into `start` to `end`, the newest first."""

    start: Time
    end: Time
    entries: tuple[TimelineEntry, ...]


class GuardEntry(EndedDocument):
    """A process that the guard ended, with its number in the ledger."""

    number: Count


class GuardDocument(Listed):
    """The answer to `GET api/guard`: the newest first."""

    entries: tuple[GuardEntry, ...]


class FindingDocument(Message):
    """What `gpuspawner doctor` found; `remedy` says what to do, "" if nothing."""

    level: Literal["ok", "note", "problem"]
    subject: str
    text: str
    remedy: str


class DoctorDocument(Message):
    """The answer to `GET api/doctor`: the last check, the worst first.

    `at` is None before the first one has ended; the first question begins it. `fault` says why the last check
    failed, "" if it didn't. `running`: another one is under way.
    """

    at: Time | None
    running: bool
    fault: str
    findings: tuple[FindingDocument, ...]


class MachineFindings(Message):
    """What `gpuspawner doctor` found on another machine, or why it could not look there."""

    name: str
    findings: tuple[FindingDocument, ...] = ()
    fault: str = ""


class MachinesChecked(Message):
    """The answer to `GET /machines/findings`."""

    machines: tuple[MachineFindings, ...]


class CheckNow(Authored):
    """The body of `POST api/doctor`."""

    reason: TextOrEmpty = Field("", description="why, for the audit log")
