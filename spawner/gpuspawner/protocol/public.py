"""The messages that only the service's own address has: what users change of a server, and the answers."""

from __future__ import annotations

from pydantic import Field

from .messages import Message, TextOrEmpty


class LeaseReason(Message):
    """The body of a change of one server."""

    reason: TextOrEmpty = Field("", description="why, for the audit log")


class ExtendLease(LeaseReason):
    """The body of `POST api/leases/{id}/extend`."""

    seconds: float = Field(gt=0, le=86400, allow_inf_nan=False, description="a number of seconds up to a day")


class DoneDocument(Message):
    """What was done, in words; `seconds` by how much a session was made longer."""

    message: str
    seconds: float | None = None
