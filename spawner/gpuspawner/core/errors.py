"""All errors of gpuspawner, as one tree.

    GpuSpawnerError
    ├── Refusal           a valid request that we refuse; a sentence for the user, no traceback
    │   ├── BadOption         400  bad_option
    │   ├── NotAllowed        403  not_allowed
    │   ├── QuotaTier         403  quota_tier
    │   ├── QuotaLeases       403  quota_leases
    │   ├── QuotaDevices      403  quota_devices
    │   ├── QuotaSlices       403  quota_slices
    │   ├── QuotaGpuHours     403  quota_gpu_hours
    │   ├── QuotaUnreadable   403  quota_unreadable
    │   ├── SessionReserved   409  session_reserved
    │   ├── SessionUnfit      409  session_unfit
    │   ├── ImageUnfit        409  image_unfit
    │   ├── LeaseConflict     409  lease_conflict
    │   ├── RequestConflict   409  request_conflict
    │   ├── StartConflict     409  start_conflict
    │   ├── TooManyRequests   429  too_many_requests
    │   ├── HubFull           429  too_many_users
    │   ├── NoCapacity        503  no_capacity
    │   ├── QueueTimeout      503  queue_timeout
    │   └── BrokerUnavailable 503  broker_unavailable
    ├── ConfigError       a setting can't work; the message names the remedy
    └── Fault             something broke; keeps its cause
        ├── DeviceFault       NVML or the GPU
        ├── EngineFault       Docker
        ├── LedgerFault       the database
        ├── HubFault          JupyterHub's API
        └── StartFault        the server itself did not start

A refusal's message says what to do next. After an error from Docker, NVML or the database, no device is
freed.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar


class GpuSpawnerError(Exception):
    """The base class of everything that gpuspawner raises on purpose."""


class Refusal(GpuSpawnerError):
    """A request that was understood and refused: `reason` labels the metric, `status` is HTTP's.

    `again_at` is when the same request is allowed without anybody's doing; None: never, or not known.
    """

    reason: ClassVar[str] = "refused"
    status: ClassVar[int] = 400

    def __init__(self, message: str = "", *, again_at: datetime | None = None) -> None:
        super().__init__(message)
        self.again_at = again_at

    @property
    def message(self) -> str:
        """The sentence for the user."""
        return str(self)


class BadOption(Refusal):
    """The form, REST body or query string has a value that can't be used."""

    reason = "bad_option"
    status = 400


class NotAllowed(Refusal):
    """The user may not have this."""

    reason = "not_allowed"
    status = 403


class QuotaTier(Refusal):
    """The user's quota does not include the tier."""

    reason = "quota_tier"
    status = 403


class QuotaLeases(Refusal):
    """The user has as many servers with a GPU as the quota allows."""

    reason = "quota_leases"
    status = 403


class QuotaDevices(Refusal):
    """The user holds, or waits for, as many GPUs as the quota allows."""

    reason = "quota_devices"
    status = 403


class QuotaSlices(Refusal):
    """The user holds, or waits for, as many slices as the quota allows."""

    reason = "quota_slices"
    status = 403


class QuotaGpuHours(Refusal):
    """The user's GPU-hours of this period are used up."""

    reason = "quota_gpu_hours"
    status = 403


class QuotaUnreadable(Refusal):
    """A hub group's properties hold a limit that can't be read, so it can't be held."""

    reason = "quota_unreadable"
    status = 403


class SessionReserved(Refusal):
    """A lab session needs the GPUs before this server would end."""

    reason = "session_reserved"
    status = 409


class SessionUnfit(Refusal):
    """A lab session doesn't fit on these GPUs, or beside the other sessions."""

    reason = "session_unfit"
    status = 409


class ImageUnfit(Refusal):
    """The image can't work on this machine, or needs a GPU."""

    reason = "image_unfit"
    status = 409


class LeaseConflict(Refusal):
    """The lease is not in the state that the caller expects."""

    reason = "lease_conflict"
    status = 409


class RequestConflict(Refusal):
    """A request has the id of an earlier one whose result is not known, or that asked for something else."""

    reason = "request_conflict"
    status = 409


class StartConflict(Refusal):
    """Not now: an earlier start of the same server has not ended yet, or the user's files are being moved."""

    reason = "start_conflict"
    status = 409


class TooManyRequests(Refusal):
    """The sender writes too often; `retry_after_seconds` says when the next request is accepted."""

    reason = "too_many_requests"
    status = 429
    retry_after_seconds: float = 0.0


class HubFull(Refusal):
    """As many servers run as the hub's `active_server_limit` allows; the reason is JupyterHub's own."""

    reason = "too_many_users"
    status = 429


class NoCapacity(Refusal):
    """This machine can never serve this request."""

    reason = "no_capacity"
    status = 503


class QueueTimeout(Refusal):
    """The request waited for the maximum time."""

    reason = "queue_timeout"
    status = 503


class BrokerUnavailable(Refusal):
    """The broker can't be reached, so no GPU can be given."""

    reason = "broker_unavailable"
    status = 503


class ConfigError(GpuSpawnerError):
    """A setting can't work; the message names the setting and the remedy."""


class Fault(GpuSpawnerError):
    """Something outside broke; raised `from` its cause."""


class DeviceFault(Fault):
    """A device is lost or can't be read."""


class EngineFault(Fault):
    """Docker answered with the HTTP error `status`, or did not answer (None): then the result is unknown."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class LedgerFault(Fault):
    """The ledger can't be read or written."""


class HubFault(Fault):
    """JupyterHub's API refused, or didn't answer."""


class StartFault(Fault):
    """The server did not start; `sentence` is for its user, `reason` labels the metric.

    `log` has the server's last log lines; the whole message has them too.
    """

    def __init__(self, sentence: str, reason: str, log: str = "") -> None:
        lines = " / ".join(log.splitlines())
        super().__init__(f"{sentence} Last log lines: {lines}" if lines else sentence)
        self.sentence = sentence
        self.reason = reason
        self.log = log


def all_refusals() -> dict[str, type[Refusal]]:
    """All refusal classes by reason; the client raises the broker's answer with them."""
    found: dict[str, type[Refusal]] = {}
    pending: list[type[Refusal]] = [Refusal]
    while pending:
        kind = pending.pop()
        found[kind.reason] = kind
        pending.extend(kind.__subclasses__())
    return found


def refusal_in(reason: str) -> Refusal | None:
    """The refusal for which a lease ended, "quota_tier: Your quota …"; None if it ended otherwise."""
    label, colon, sentence = reason.partition(": ")
    kind = all_refusals().get(label) if colon else None
    return None if kind is None else kind(sentence)
