"""The labs of one machine of a Swarm: its containers, and services that have none there (yet).

A service is given to its machine some tenths of a second before its container exists, and Swarm may still
start the container of a service that was just removed. So a service counts like a container that was created,
and a removed one that has a task left like a container that is being removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from ...core.errors import ConfigError
from ...node.engine import Container, ContainerEvent, Engine, EventsConnected
from ...node.swarm import Service, Swarm


class ServiceEngine:
    """Implements `Engine` for one machine: `engine` is that machine's Docker, `swarm` the manager.

    What either can't answer is an EngineFault: nothing is known then.
    """

    def __init__(self, machine: str, engine: Engine, swarm: Swarm) -> None:
        self._machine, self._engine, self._swarm = machine, engine, swarm
        self._service_of: dict[str, str] = {}
        """The service of each container that was listed last."""

    async def list(self, lease_id: str | None = None) -> tuple[Container, ...]:
        """Services are read first: one whose container starts meanwhile is then among the containers.

        Tasks of removed services are asked for only with `lease_id`, as before a lease is closed.
        """
        found = self._swarm.services(self._machine) if lease_id is None else self._swarm.of_lease(lease_id)
        services = await found
        containers = await self._engine.list(lease_id)
        if lease_id is None:
            self._service_of = {}
        self._service_of |= {each.id: each.service_id for each in containers if each.service_id}
        seen = {each.service_id for each in containers}
        return (*containers, *(_as_container(each) for each in services if each.id not in seen))

    async def remove(self, container_id: str) -> None:
        """Removes the service, and its container at once. Without its service it would never start again."""
        service_id = self._service_of.get(container_id)
        await self._swarm.remove(service_id or container_id)
        await self._engine.remove(container_id)

    async def stop(self, container_id: str) -> None:
        """See `Engine`, as for all below: Swarm doesn't start a lab again that has ended."""
        await self._engine.stop(container_id)

    async def finished_at(self, container_id: str) -> datetime | None:
        """None also for a service without a container."""
        return await self._engine.finished_at(container_id)

    async def started_at(self, container_id: str) -> datetime | None:
        """See `Engine`."""
        return await self._engine.started_at(container_id)

    async def main_pid(self, container_id: str) -> int | None:
        """See `Engine`."""
        return await self._engine.main_pid(container_id)

    async def is_denied(self, container_id: str, device: str) -> bool:
        """See `Engine`."""
        return await self._engine.is_denied(container_id, device)

    async def exists(self, container_id: str) -> bool:
        """See `Engine`."""
        return await self._engine.exists(container_id)

    async def images(self) -> frozenset[str]:
        """Those of the machine's Docker."""
        return await self._engine.images()

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those of the machine's Docker."""
        return await self._engine.facts()

    def watch_events(self, sink: Callable[[ContainerEvent | EventsConnected], None]) -> None:
        """Of containers; what happens to services is seen by the rounds."""
        self._engine.watch_events(sink)


def _as_container(service: Service) -> Container:
    """A service without a container on its machine."""
    return Container(
        id=service.id,
        labels=service.labels,
        state="removing" if service.is_removed else "created",
        name=service.name,
        created_unix_seconds=service.created_unix_seconds,
        service_id=service.id,
    )


async def enter_swarm(swarm: Swarm, machine: str, info: Mapping[str, Any]) -> None:
    """Gives the machine whose engine has these `/info` its name in the Swarm: the hub finds it by that.

    Raises ConfigError, with the remedy, if it isn't in the Swarm; EngineFault.
    """
    node_id = str((info.get("Swarm") or {}).get("NodeID") or "")
    remedy = "run `docker swarm join-token worker` on the hub's machine, and what it prints on this one"
    if not node_id:
        raise ConfigError(f"Labs are services of a Swarm, and the machine {machine} is in none: {remedy}")
    if why := await swarm.name_machine(node_id, machine):
        raise ConfigError(f"Labs are services of a Swarm, and {why}: {remedy}")
