"""The interface between the hub and what runs the labs: containers of one engine, or services of a Swarm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ..core.errors import EngineFault
from .container import ContainerPlan


@dataclass(frozen=True, slots=True)
class Created:
    """A lab that was created and doesn't run yet. `problems` are sentences about its home, for the log."""

    lab_id: str
    problems: tuple[str, ...] = ()


class LabEngine(Protocol):
    """Runs labs. All methods raise EngineFault; then nothing is known, and unknown is not gone.

    A lab is described by a document as Docker has it of a container: `Id`, `Name`, `Config` (with `Labels`
    and `Env`), `State` and `NetworkSettings`; `docker_answers` reads it.
    """

    async def find(self, lab: str) -> dict[str, Any] | None:
        """The document of a lab by name or id; None only if the engine says that there is none."""
        ...

    async def create(self, plan: ContainerPlan) -> Created:
        """Creates a lab that doesn't run yet. Status 409 if there is one of this name.

        Raises ConfigError for settings that this engine doesn't know.
        """
        ...

    async def start(self, lab_id: str) -> None:
        """Starts it, and returns when its program was started. Raises StartFault."""
        ...

    async def repair(self, fault: EngineFault, lab_id: str) -> str:
        """Repairs what made a start fail; returns what it did, for the log, or "" if there was nothing.

        After a repair, the start is worth another attempt.
        """
        ...

    async def reconnect(self, lab_id: str, address: str | None) -> None:
        """Makes a lab reachable again that was cut from its network, at this address; None: at any."""
        ...

    async def stop(self, lab_id: str, grace_seconds: int) -> None:
        """Sends SIGTERM, then SIGKILL after `grace_seconds`. No error if it is gone."""
        ...

    async def remove(self, lab_id: str) -> None:
        """Ends and removes it; returns when the engine says that it is gone."""
        ...

    async def log_tail(self, lab_id: str, secret: str = "") -> str:
        """Its last log lines, without `secret`; empty if they can't be read."""
        ...

    async def home_machine(self, volume: str) -> str:
        """The only machine where a lab with this home can run; "" if any will do."""
        ...

    def address_of(self, lab: dict[str, Any]) -> tuple[str, int]:
        """Where the hub and its proxy reach it. Raises ConfigError if it isn't reachable."""
        ...
