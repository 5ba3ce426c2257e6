"""The messages that only the service's own address has: what users change of a server, and the answers."""

from __future__ import annotations

from pydantic import Field

from .messages import DeviceDocument, Message, StatusDocument, TextOrEmpty, TurnDocument
from .paging import Listed


class VisibleDevice(DeviceDocument):
    """A device as far as the sender may see it: of others only whether it is free."""

    free: bool = Field(description="whether it, or a slice of it, could be leased now")


class VisibleStatus(StatusDocument, Listed):
    """The answer to `GET api/status`: one page of devices, leases and queue; the rest is on the first."""

    devices: tuple[VisibleDevice, ...]


class LeaseReason(Message):
    """The body of a change of one server."""

    reason: TextOrEmpty = Field("", description="why, for the audit log")


class ExtendLease(LeaseReason):
    """The body of `POST api/leases/{id}/extend`."""

    seconds: float = Field(gt=0, le=86400, allow_inf_nan=False, description="a number of seconds up to a day")


class LeaseDone(Message):
    """The answer to a change of one server, in words.

    `seconds`: by how much its session was made longer; `turn`: where it is in its turns.
    """

    message: str
    seconds: float | None = None
    turn: TurnDocument | None = None
