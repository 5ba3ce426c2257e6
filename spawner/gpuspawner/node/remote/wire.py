"""The node's interface as messages: each call's arguments and result, and the events, as plain JSON values.

The schema of a message is the types of `node/api.py` themselves, as pydantic reads them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Base64Bytes, TypeAdapter, ValidationError

from ...core.disk import Disk
from ...core.errors import ConfigError, DeviceFault, EngineFault, Fault, LedgerFault
from ...core.finding import Finding
from ...core.model import DeviceHealth
from ..api import (
    Access,
    DesiredState,
    GuardEvent,
    MpsEvent,
    NodeEvent,
    NodeFacts,
    Outcome,
    Process,
    Readings,
    Seat,
    TurnReadings,
)
from ..engine import Container, ContainerEvent, EventsConnected
from ..homes import HomeFacts, Skimmed

VERSION = 2
"""Of these messages. A broker and an agent work together if theirs differ by one at most."""
WRITES_TOGETHER = 2
"""The first version with `folder_write_all`."""

CALLS: Mapping[str, tuple[Any, Any]] = {
    "start": (tuple[()], NodeFacts),
    "apply": (tuple[DesiredState], None),
    "settle": (tuple[str], None),
    "health": (tuple[()], tuple[DeviceHealth, ...]),
    "way_in": (tuple[dict[str, Any], dict[str, Any], tuple[str, ...]], Access),
    "service_way_in": (tuple[dict[str, Any], dict[str, Any], tuple[str, ...]], Access),
    "processes": (tuple[str], tuple[Process, ...]),
    "reload_stamp": (tuple[()], int | None),
    "disks": (tuple[str], tuple[Disk, ...]),
    "check_turns": (tuple[tuple[str, ...]], str),
    "turn_read": (tuple[tuple[Seat, ...]], TurnReadings),
    "turn_pause": (tuple[Seat], Outcome),
    "turn_sleep": (tuple[Seat], Outcome),
    "turn_wake": (tuple[Seat, str], Outcome),
    "turn_may_end": (tuple[Seat], bool),
    "turn_end": (tuple[Seat], int),
    "turn_forget": (tuple[tuple[Seat, ...]], None),
    "docker_list": (tuple[str | None], tuple[Container, ...]),
    "docker_remove": (tuple[str], None),
    "docker_stop": (tuple[str], None),
    "docker_finished_at": (tuple[str], datetime | None),
    "docker_started_at": (tuple[str], datetime | None),
    "docker_main_pid": (tuple[str], int | None),
    "docker_is_denied": (tuple[str, str], bool),
    "docker_exists": (tuple[str], bool),
    "docker_images": (tuple[()], frozenset[str]),
    "docker_facts": (tuple[()], tuple[dict[str, Any], dict[str, Any]]),
    "folder_write": (tuple[str, dict[str, str], bool], None),
    "folder_write_all": (tuple[dict[str, dict[str, str]]], None),
    "folder_remove": (tuple[str], None),
    "folder_keep_only": (tuple[tuple[str, ...]], None),
    "check_machine": (tuple[tuple[str, ...]], tuple[Finding, ...]),
    "home_describe": (tuple[str], HomeFacts | None),
    "home_prepare": (tuple[str, HomeFacts], None),
    "home_begin_read": (tuple[str], str),
    "home_read": (tuple[str], Base64Bytes),
    "home_skim": (tuple[str], Skimmed),
    "home_begin_write": (tuple[str], str),
    "home_write": (tuple[str, Base64Bytes], None),
    "home_finish": (tuple[str], bool),
    "home_end": (tuple[str], None),
    "home_keep": (tuple[str], None),
    "home_drop": (tuple[str], None),
    "home_unfinished": (tuple[()], tuple[str, ...]),
}
"""By name: the types of the arguments and of the result. Those of `TurnHands` begin with "turn_", those of
`Engine` with "docker_", those of `LabFolders` with "folder_", and those of `HomeFiles` with "home_"."""

EVENTS: Mapping[str, type[NodeEvent]] = {
    kind.__name__: kind for kind in (NodeFacts, DeviceHealth, GuardEvent, MpsEvent, Readings)
}
_FAULTS: Mapping[str, type[ConfigError | Fault]] = {
    kind.__name__: kind for kind in (ConfigError, DeviceFault, EngineFault, LedgerFault)
}
_DOCKER_EVENTS: Mapping[str, type[ContainerEvent | EventsConnected]] = {
    kind.__name__: kind for kind in (ContainerEvent, EventsConnected)
}


class Garbled(Exception):
    """A message that has another form than this version knows: the link ends and begins again."""


class Unknown(Exception):
    """The other side is of another release, and asks for something that this one doesn't have."""


def plain(value: Any) -> Any:
    """A value of the interface as JSON values. Raises TypeError for a type that has no form there."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"no form on the wire for {type(value).__name__}")


def read(kind: Any, value: Any) -> Any:
    """A value of this type from JSON values. Raises Garbled."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise Garbled(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def arguments_of(name: str, values: Any) -> tuple[Any, ...]:
    """The arguments of a call. Raises Garbled; Unknown for a call that this version doesn't have."""
    if name not in CALLS:
        raise Unknown(f"this release of gpuspawner has no call {name!r}: install the same one everywhere")
    found: tuple[Any, ...] = read(CALLS[name][0], values)
    return found


def result_of(name: str, value: Any) -> Any:
    """The result of a call. Raises Garbled."""
    return read(CALLS[name][1], value)


def event_to_plain(event: NodeEvent | ContainerEvent | EventsConnected) -> dict[str, Any]:
    """An event with its kind."""
    return {"kind": type(event).__name__, "value": plain(event)}


def event_of(message: Any) -> NodeEvent | None:
    """The node's event of `event_to_plain`; None for a kind that this version doesn't know.

    Raises Garbled.
    """
    event: NodeEvent | None = _event(EVENTS, message)
    return event


def docker_event_of(message: Any) -> ContainerEvent | EventsConnected | None:
    """As `event_of`, for an event of Docker."""
    event: ContainerEvent | EventsConnected | None = _event(_DOCKER_EVENTS, message)
    return event


def _event(kinds: Mapping[str, Any], message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise Garbled("an event without a kind")
    kind = kinds.get(message["kind"])
    return None if kind is None else read(kind, message.get("value"))


def fault_to_plain(error: Exception) -> dict[str, str]:
    """An error as the other side raises it again; its cause stays in the log of this side."""
    kind = type(error).__name__
    return {"kind": kind if kind in _FAULTS else "Fault", "message": str(error)}


def fault_of(message: Any) -> ConfigError | Fault:
    """The error of `fault_to_plain`."""
    if not isinstance(message, dict):
        return Fault("the machine answered with an error that can't be read")
    return _FAULTS.get(str(message.get("kind")), Fault)(str(message.get("message", "")))


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of an agent. `run` tells one start of the agent from the next; `release` is the
    version of gpuspawner there, "" from one that doesn't say."""

    name: str
    run: str
    version: int = VERSION
    release: str = ""

    def refusal(self) -> str:
        """Why a broker of this version can't work with the agent; "" if it can."""
        if abs(self.version - VERSION) <= 1:
            return ""
        older = "the agent on" if self.version < VERSION else "the broker for"
        return (
            f"{older} machine {self.name} is more than one release behind the other side: install the same "
            "release of gpuspawner on both"
        )
