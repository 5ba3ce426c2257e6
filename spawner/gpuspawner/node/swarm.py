"""What the broker asks the manager of a Swarm about the labs' services: the interface, in plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..core.labels import ContainerLabels


@dataclass(frozen=True, slots=True)
class Service:
    """A service that carries the lease label. `may_run`: Swarm knows a task of it that has not ended.

    `is_removed`: the service itself is gone, and that task is being ended.
    """

    id: str
    labels: ContainerLabels
    name: str = ""
    created_unix_seconds: int = 0
    may_run: bool = False
    is_removed: bool = False


class Swarm(Protocol):
    """What the broker needs from the manager. Each coroutine may raise EngineFault: nothing is known then."""

    async def services(self, machine: str) -> tuple[Service, ...]:
        """The services with the lease label on the machine of this name. Their tasks are not asked for."""
        ...

    async def of_lease(self, lease_id: str) -> tuple[Service, ...]:
        """The services of a lease, also removed ones that have a task which has not ended."""
        ...

    async def remove(self, service_id: str) -> None:
        """Removes it; Swarm then ends its task. No error if it is gone."""
        ...

    async def name_machine(self, node_id: str, name: str) -> str:
        """Makes `name` the name of the Swarm's node with this id. Returns why it can't; "" if it could."""
        ...
