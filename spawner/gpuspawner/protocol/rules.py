"""The messages about quotas, GPU-hours, reports and lab sessions on the broker's unix socket."""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from ..core.model import LeaseState
from .messages import Count, Groups, Message, RefusalMessage, SubjectText, Text, TextOrEmpty, Time
from .paging import Listed

_AUTHOR = "who decided it, for the ledger"
_REASON = "why, for the ledger"


class Authored(Message):
    """A change that somebody asks for: the audit log has its author."""

    author: Text = Field(description=_AUTHOR)


class QuotaChange(Authored):
    """The body of `POST /quotas`: keys of `c.GpuSite.quotas` that change; null takes a change back."""

    subject: SubjectText
    values: dict[str, JsonValue] = Field(description="the keys of c.GpuSite.quotas that change")
    end_servers: bool = Field(
        False, description="running servers that are beyond the quota then are warned and end in 15 minutes"
    )
    reason: TextOrEmpty = Field("", description=_REASON)


class QuotaRemoval(Authored):
    """The body of `DELETE /quotas`: all run-time changes of one subject are taken back."""

    subject: SubjectText
    reason: TextOrEmpty = Field("", description=_REASON)


class DrainChange(Authored):
    """The body of `POST /drains` (nothing new is placed there) and `DELETE /drains` (it is again): of one
    device, or of a machine, with the devices that it has later."""

    uuid: TextOrEmpty = Field(default="", description="the UUID of a GPU or MIG instance")
    machine: TextOrEmpty = Field(default="", description="the name of a machine, in place of a UUID")
    reason: TextOrEmpty = Field("", description=_REASON)

    @model_validator(mode="after")
    def _one_of_both(self) -> DrainChange:
        if bool(self.uuid) == bool(self.machine):
            raise PydanticCustomError("refused", "Give either the UUID of a GPU or the name of a machine.")
        return self


class DrainDocument(Message):
    """A device or a machine on which nothing new is placed, since when, by whom and why."""

    uuid: str = Field(description='"" for a machine')
    machine: str = Field("", description='"" for a device')
    since: Time
    author: str
    reason: str


class DrainsDocument(Listed):
    """The answer to `GET /drains`."""

    drains: tuple[DrainDocument, ...]
    warning: str = Field("", description='which lab sessions lack places because of that; "": none')


class Grant(Authored):
    """The body of `POST /grants`: more GPU-hours in the present period, or fewer if negative."""

    subject: SubjectText
    gpu_hours: float = Field(ge=-1e6, le=1e6, allow_inf_nan=False, description="a number of GPU-hours")
    reason: Text = Field(description=_REASON)


class WhoAsks(Message):
    """The body of `POST /allowance` and `POST /offer`: the user, by the hub's groups and their properties."""

    hub: Text = Field(description="the hub's id")
    user: Text = Field(description="the user's name")
    server: TextOrEmpty | None = Field(
        None, description="the server that is to start: what it has now doesn't count"
    )
    node: TextOrEmpty = ""
    """The only machine that may serve, as it has the user's files; "" if any will do."""
    groups: Groups = ()
    properties: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict, description="the properties of the user's groups, by group"
    )


class SessionChange(Authored):
    """The body of `POST /sessions`: a lab session, new or in place of the one of that name."""

    session: dict[str, JsonValue] = Field(description="the session; see docs/instructors.md for its keys")
    reason: TextOrEmpty = Field("", description=_REASON)


class SessionCancel(Authored):
    """The body of `DELETE /sessions/{name}`."""

    reason: TextOrEmpty = Field("", description=_REASON)


class CalendarAddress(Message):
    """The answer to `GET /sessions/calendar/address`: whoever has the address reads the calendar."""

    address: str


class CalendarImport(Authored):
    """The body of `POST /sessions/calendar`: an iCalendar, and what its events don't say."""

    calendar: str = Field(min_length=1, max_length=400_000, description="the text of an .ics file")
    group: Text = Field(description="the hub group of events that name none")
    tier: Text = Field(description="the tier of events that name none")
    seats: int = Field(ge=1, le=10_000, description="a whole number from 1 to 10000")
    reason: TextOrEmpty = Field("", description=_REASON)


class Extend(Authored):
    """The body of `POST /leases/{id}/extend`."""

    seconds: float = Field(gt=0, le=86400, allow_inf_nan=False, description="a number of seconds up to a day")


class EndUnknown(Authored):
    """The body of `POST /leases/{id}/end`."""

    reason: TextOrEmpty = Field(default="", description="text of up to 255 printable characters")


class KernelsMessage(Message):
    """The body of `POST /leases/{id}/kernels`: what the hub knows of a server's kernels."""

    busy: bool = Field(description="whether one of them computes")
    active_at: Time | None = Field(None, description="when one last did something")


# ---- answers


class BudgetDocument(Message):
    """GPU-hours of one period. `renewed_at` None: a term, or none runs now."""

    limit_gpu_seconds: float
    used_gpu_seconds: float
    left_gpu_seconds: float
    period: str
    timezone: str
    renewed_at: Time | None


class AllowanceDocument(Message):
    """What a user may have and has. `refused` gives the refusal of each tier that can't be started now.

    None stands for no limit.
    """

    leases: int | None
    devices: int | None
    slices: int | None
    session_seconds: float | None
    extend_seconds: float | None
    priority: int
    held_leases: int
    held_devices: int
    held_slices: int
    budgets: tuple[BudgetDocument, ...]
    refused: dict[str, RefusalMessage]


class KeptDocument(Message):
    """Places of a tier that are kept for the group of a lab session."""

    session: str = Field(description="the lab session's name")
    group: str
    places: Count = Field(description="how many places are still kept for the group")
    begins_at: Time
    ends_at: Time
    unused_free_at: Time = Field(description="when the places that the group has not taken are free for all")
    message: str = Field(description="the same in words, for the spawn page")


class LikelyWait(Message):
    """When a request that came now would likely be served."""

    earliest_at: Time
    latest_at: Time
    message: str = Field(description='in words: "likely between 11:35 and 12:10 UTC"')


class TierOffer(Message):
    """What one tier offers one user now. None: it has no GPU, or that isn't known."""

    tier: str = Field(description="the tier's name")
    refused: RefusalMessage | None = Field(
        description="why a start would be refused now and what would change that; null: it is allowed"
    )
    allowed_at: Time | None = Field(
        description="when it is allowed again by itself: new GPU-hours, a lab session that is over; null: "
        "never by itself, not known, or it is allowed now"
    )
    free: int | None = Field(description="places that are free now and not kept for somebody else")
    total: int | None = Field(description="places on the healthy devices, free or not")
    waiting: Count = Field(description="how many requests wait for such a place")
    starts_now: bool = Field(description="whether a start now would get its place at once")
    wait: LikelyWait | None = Field(description="for a start that would wait; null: not known, or no wait")
    kept: tuple[KeptDocument, ...] = Field(description="places kept for lab sessions of other groups")
    own_session: KeptDocument | None = Field(description="the user's own lab session that keeps places now")
    session_seconds: float | None = Field(description="the longest session by the quota; null: no limit")
    ends_at: Time | None = Field(description="when a server that starts now ends; null: nothing ends it")
    ends_message: str = Field(description='why it ends then, as a sentence; "" where nothing ends it')
    gpu_hours_an_hour: float | None = Field(description="GPU-hours that one hour of this tier costs")


class OfferDocument(Message):
    """The answer to `POST /offer`: what each tier offers this user now, and what they have and used.

    `allowance.budgets` has the GPU-hours that are left.
    """

    timezone: str = Field(description="the site's time zone, in which the sentences give times")
    tiers: tuple[TierOffer, ...]
    allowance: AllowanceDocument


class QuotaDocument(Message):
    """One subject's limits: as they hold, as the settings have them, and what was changed at run time."""

    subject: str
    limits: dict[str, Any]
    settings: dict[str, Any]
    changed: dict[str, Any]


class DecisionDocument(Message):
    """A decision of the ledger."""

    at: Time
    kind: str
    subject: str
    document: dict[str, Any] | None
    author: str
    reason: str


class QuotasDocument(Listed):
    """The answer to `GET /quotas`."""

    quotas: tuple[QuotaDocument, ...]
    problems: tuple[str, ...]
    history: tuple[DecisionDocument, ...]


class ReportLine(Message):
    """One line of a report."""

    name: str
    gpu_seconds: float
    lease_count: int
    user_count: int


class ReportDocument(Listed):
    """The answer to `GET /report`; `total` is of all pages."""

    by: str
    start: Time
    end: Time
    timezone: str
    lines: tuple[ReportLine, ...]
    total: ReportLine


class MeetingDocument(Message):
    """One time that a session meets."""

    start: Time
    end: Time


class SessionDocument(Message):
    """A lab session, in words, and the next times that it meets."""

    session: dict[str, Any]
    words: str
    next: tuple[MeetingDocument, ...]


class SessionsDocument(Listed):
    """The answer to `GET /sessions`."""

    sessions: tuple[SessionDocument, ...]
    problems: tuple[str, ...]
    timezone: str = Field(description="the time zone of a new session that names none, as the broker has it")


class ExtendedDocument(Message):
    """The answer to `POST /leases/{id}/extend`."""

    seconds: float = Field(description="by how much the session was made longer")


class ServerDocument(Message):
    """A server with a lease.

    `idle_since` None: it is used, waits, or that isn't known. `ends_at` None: nothing ends it; `ends_because`
    is then "".
    """

    hub: str
    user: str
    server: str
    state: LeaseState
    idle_since: Time | None
    ends_at: Time | None = None
    ends_because: str = ""


class ServersDocument(Message):
    """The answer to `GET /servers`."""

    servers: tuple[ServerDocument, ...]
