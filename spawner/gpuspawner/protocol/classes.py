"""The messages about a class: its roster, and what an instructor does with its servers."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from .messages import Count, LeaseId, Message, Percent, Text, TextOrEmpty, Time
from .paging import Listed
from .rules import Authored


class MemberState(StrEnum):
    """What a member of a class has: in words that a page shows."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    ASLEEP = "asleep"
    ENDING = "ending"
    CPU = "cpu"
    """A server without a GPU."""
    NOTHING = "nothing"
    """No server now."""
    NEVER = "never"
    """No server now, and none with a GPU before."""


class MemberDocument(Message):
    """One server of a member, or a member without one.

    `since` is when the present state began; for somebody who waits, when they asked. None where a state has
    no begin. `last_at` is when a member without a server last had one with a GPU. `stuck` says why somebody
    can't go on, and is "" if nothing is known; `stuck_since` is when that began. Values that can't be read
    are None, never 0.
    """

    user: str
    server: str
    state: MemberState
    tier: str
    lease_id: str | None
    since: Time | None
    memory_used_bytes: int | None
    memory_quota_bytes: int | None
    compute_percent: Percent | None
    idle_since: Time | None
    ends_at: Time | None
    position: int | None
    earliest_at: Time | None
    latest_at: Time | None
    stuck: str
    stuck_since: Time | None
    notice: str
    last_at: Time | None


class AnnouncementDocument(Message):
    """A message to a class that is shown now."""

    text: str
    author: str
    since: Time
    until: Time


class RosterDocument(Listed):
    """A class at this moment: on each page those who are stuck first, then who waits longest.

    `counts` and `stuck_count` are of the whole class.

    `members_fault` says why the hub's lists of members or servers can't be read; then `members` are those of
    an earlier answer (`members_as_of`), or, without one, those who have a server with a GPU. It is "" if all
    is well. `message` is what the class is told now.
    """

    group: str
    members_as_of: Time | None
    members_fault: str
    message: AnnouncementDocument | None
    counts: dict[MemberState, Count]
    stuck_count: Count
    members: tuple[MemberDocument, ...]


class ClassesDocument(Listed):
    """The answer to `GET /classes`: groups that have a lab session, a quota, or a server now."""

    groups: tuple[str, ...]


class ServerName(Message):
    """A server of a user; `server` is "" for the default server."""

    user: Text
    server: TextOrEmpty = ""


class Chosen(Authored):
    """Servers of a class: those with a GPU by their lease, others by user and name; all if `everybody`."""

    lease_ids: tuple[LeaseId, ...] = Field((), max_length=5000, description="a list of leases' ids")
    servers: tuple[ServerName, ...] = Field(
        (), max_length=5000, description="a list of servers without a GPU, each with user and server"
    )
    everybody: bool = Field(False, description="true for all servers of the class")


class StopServers(Chosen):
    """The body of `POST /classes/{group}/stop`."""

    reason: TextOrEmpty = Field("", description="why, for the audit log")


class ExtendServers(Chosen):
    """The body of `POST /classes/{group}/extend`."""

    seconds: float = Field(gt=0, le=86400, allow_inf_nan=False, description="a number of seconds up to a day")


class ClassMessage(Authored):
    """The body of `POST /classes/{group}/message`: a notice for every member, until it ends."""

    text: Text
    minutes: int = Field(60, ge=1, le=10080, description="a whole number of minutes up to a week")


class MessageRemoval(Authored):
    """The body of `DELETE /classes/{group}/message`."""


class DoneDocument(Message):
    """What became of the chosen servers: for how many it worked, and a sentence for each other one."""

    done: Count
    refused: tuple[str, ...]
