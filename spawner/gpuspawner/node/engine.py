"""What the broker asks a machine's Docker Engine, and what it reports: the interface, in plain values.

`docker_engine.py` asks the engine of this machine; that of another one is asked through its agent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from ..core.labels import ContainerLabels

STOP_SECONDS = 2
OUT_OF_MEMORY = "oom"
"""Docker's name of the event."""
_ALIVE = frozenset({"running", "paused", "restarting"})


@dataclass(frozen=True, slots=True)
class Container:
    """A container that carries the lease label. `state` is Docker's word ("created", "running", …).

    `service_id` is the Swarm's service that it belongs to; "" for a container of its own.
    """

    id: str
    labels: ContainerLabels
    state: str
    name: str = ""
    created_unix_seconds: int = 0
    service_id: str = ""

    @property
    def lease_id(self) -> str:
        """The lease whose label it carries."""
        return self.labels.lease_id

    @property
    def alive(self) -> bool:
        """Whether its processes may use a device now, or later without further action."""
        return self.state in _ALIVE


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """Docker reports that something happened to a container with the lease label.

    `exit_code` is that of its main process, in the event "die".
    """

    action: str
    container_id: str
    lease_id: str
    broker: str = ""
    mem_limit_bytes: int | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class EventsConnected:
    """The event stream is connected (again): earlier events may be missing, so check everything."""


class Engine(Protocol):
    """What the broker needs from Docker. Each coroutine may raise EngineFault; then nothing is known."""

    async def list(self, lease_id: str | None = None) -> tuple[Container, ...]:
        """Every container with the lease label, or with this lease's; one being removed still counts."""
        ...

    async def remove(self, container_id: str) -> None:
        """Kills and removes it. No error if it is already gone or being removed: only `list` shows that."""
        ...

    async def stop(self, container_id: str) -> None:
        """SIGTERM, and SIGKILL after `STOP_SECONDS`. No error if it is gone."""
        ...

    async def finished_at(self, container_id: str) -> datetime | None:
        """When it stopped; None if it runs, never ran, or is gone."""
        ...

    async def started_at(self, container_id: str) -> datetime | None:
        """When it was last started; None if it does not run."""
        ...

    async def main_pid(self, container_id: str) -> int | None:
        """Its first process, on the host; None if it does not run."""
        ...

    async def is_denied(self, container_id: str, device: str) -> bool:
        """Whether a program in the container has lost the permission to open this device.

        False if it can open it, and if that can't be tried: the container is gone, or has no shell.
        """
        ...

    async def exists(self, container_id: str) -> bool:
        """Whether Docker has the container, whatever its labels and state."""
        ...

    async def images(self) -> frozenset[str]:
        """The ids of all images that it has."""
        ...

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The engine's `info` and `version`, for the probe of the injection."""
        ...

    def watch_events(self, sink: Callable[[ContainerEvent | EventsConnected], None]) -> None:
        """`sink` is called on the current loop for each event and each connection; call this once."""
        ...
