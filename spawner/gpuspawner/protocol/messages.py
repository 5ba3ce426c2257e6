"""What passes between spawner and broker on the unix socket: values to JSON and back, parsed strictly.

Both ends use this module, so a field that one end adds and the other doesn't know is an error that a
test sees, not a value that gets lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from typing import Any

from ..core.errors import BadOption
from ..core.model import ContainerPatch, GpuRequest, Lease, LeaseState, is_lease_id
from ..core.want import Mode, Want

_MAX_TEXT = 255
_MAX_DEVICES = 64
_MAX_GROUPS = 1000
_MAX_BYTES = 1 << 60


def time_to_text(time: datetime) -> str:
    """`time` as ISO 8601 in UTC with "Z"; whole microseconds are kept."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def time_from_text(text: str) -> datetime:
    """The aware time of `time_to_text`. Raises ValueError for anything else."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time.astimezone(UTC)


def request_to_json(request: GpuRequest) -> dict[str, Any]:
    """The body of `POST /leases`."""
    return {**asdict(request), "want": _want_to_json(request.want), "groups": list(request.groups)}


def request_from_json(body: object) -> GpuRequest:
    """The request in the body of `POST /leases`. Raises BadOption, naming the key, for all that is odd."""
    return GpuRequest(**_parse(GpuRequest, body, "The request"))


def _want(value: object, what: str) -> Want:
    return Want(**_parse(Want, value, what))


def _want_to_json(want: Want) -> dict[str, Any]:
    return {**asdict(want), "mode": want.mode.value}


def _parse(kind: type[GpuRequest] | type[Want], body: object, what: str) -> dict[str, Any]:
    """The fields of `kind` in a JSON object. Raises BadOption, naming the key, for all that is odd."""
    if not isinstance(body, Mapping):
        raise BadOption(f"{what} is not a JSON object")
    unknown = sorted(str(key) for key in set(body) - {item.name for item in fields(kind)})
    if unknown:
        raise BadOption(f"{what} has an unknown key {unknown[0][:40]!r}")
    missing = sorted({item.name for item in fields(kind) if item.default is MISSING} - set(body))
    if missing:
        raise BadOption(f"{what} lacks {missing[0]!r}")
    return {key: _PARSERS[key](value, key) for key, value in body.items()}


def _lease_id(value: object, what: str) -> str:
    if not isinstance(value, str) or not is_lease_id(value):
        raise BadOption(f"{what} must be 32 lower-case hexadecimal digits")
    return value


def _text(value: object, what: str) -> str:
    """`value` if it is a short printable string."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
        raise BadOption(f"{what} must be text of 1 to {_MAX_TEXT} characters")
    if not value.isprintable():
        raise BadOption(f"{what} has characters that can't be printed")
    return value


def _server(value: object, what: str) -> str:
    """The default server's name is empty."""
    return "" if value == "" else _text(value, what)


def _text_or_none(value: object, what: str) -> str | None:
    return None if value is None else _text(value, what)


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_DEVICES:
        raise BadOption(f"{what} must be a whole number from 1 to {_MAX_DEVICES}")
    return value


def _bytes_or_none(value: object, what: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_BYTES:
        raise BadOption(f"{what} must be a whole number of bytes")
    return value


def _percent_or_none(value: object, what: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 100:
        raise BadOption(f"{what} must be a number above 0 and up to 100")
    return float(value)


def _mode(value: object, what: str) -> Mode:
    if not isinstance(value, str) or value not in list(Mode):
        raise BadOption(f"{what} must be one of {', '.join(Mode)}")
    return Mode(value)


def _groups(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_GROUPS:
        raise BadOption(f"{what} must be a list of at most {_MAX_GROUPS} names")
    return tuple(_text(item, what) for item in value)


_PARSERS: dict[str, Callable[[object, str], Any]] = {
    "lease_id": _lease_id,
    "hub": _text,
    "user": _text,
    "server": _server,
    "tier": _text,
    "want": _want,
    "groups": _groups,
    "device_count": _count,
    "model": _text_or_none,
    "mode": _mode,
    "pool": _text_or_none,
    "mig_profile": _text_or_none,
    "memory_bytes": _bytes_or_none,
    "compute_percent": _percent_or_none,
}
"""How each field of a request and of what it wants is read; a field without one is refused in the tests."""


def lease_to_json(lease: Lease) -> dict[str, Any]:
    """Every field of `lease`, times as text."""
    return {
        **asdict(lease),
        "state": lease.state.value,
        "want": _want_to_json(lease.want),
        "created_at": time_to_text(lease.created_at),
        "since": time_to_text(lease.since),
        "device_uuids": list(lease.device_uuids),
    }


def lease_from_json(body: Mapping[str, Any]) -> Lease:
    """The lease that `lease_to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
    return Lease(
        **{
            **body,
            "state": LeaseState(body["state"]),
            "want": Want(**{**body["want"], "mode": Mode(body["want"]["mode"])}),
            "created_at": time_from_text(body["created_at"]),
            "since": time_from_text(body["since"]),
            "device_uuids": tuple(body["device_uuids"]),
        }
    )


def patch_to_json(patch: ContainerPatch) -> dict[str, Any]:
    """Every field of `patch`."""
    return asdict(patch)


def patch_from_json(body: Mapping[str, Any]) -> ContainerPatch:
    """The patch that `patch_to_json` wrote. Raises TypeError or KeyError for anything else."""
    return ContainerPatch(
        **{
            **body,
            "mounts": tuple(body["mounts"]),
            "device_requests": tuple(body["device_requests"]),
        }
    )
