"""The manager of a Swarm, through the Docker Engine of this machine: services and tasks of leases, nodes.

Every failure is an EngineFault, as in `docker_engine.py`, whose threads make the calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..core import labels
from .docker_engine import LIST_SECONDS, DockerEngine, unless_gone
from .swarm import Service

_ENDED = frozenset({"complete", "failed", "shutdown", "rejected", "remove", "orphaned"})
"""A task's states in which nothing of it runs (moby 28, `api/types/swarm/task.go`). "orphaned": its machine
was removed from the Swarm; what its engine has is asked of that machine itself."""
NAME_SECONDS = 10
"""A manager that has just started answers late."""


class DockerSwarm:
    """Implements `Swarm` with the engine of a manager."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    async def services(self, machine: str) -> tuple[Service, ...]:
        """See `Swarm`, as for all."""
        wanted = [labels.LEASE, f"{labels.NODE}={machine}"]

        def read(client: Any) -> tuple[Service, ...]:
            return tuple(_service(item) for item in client.services(filters={"label": wanted}))

        return await self._engine.call(LIST_SECONDS, "list services", read)

    async def of_lease(self, lease_id: str) -> tuple[Service, ...]:
        """See `Swarm`. Tasks are read last: a service that was removed before still has them then."""
        wanted = {"label": f"{labels.LEASE}={lease_id}"}

        def read(client: Any) -> tuple[Service, ...]:
            services = {item["ID"]: item for item in client.services(filters=wanted)}
            tasks = {item["ServiceID"]: item for item in client.tasks(filters=wanted) if _may_run(item)}
            there = [_service(item, may_run=key in tasks) for key, item in services.items()]
            return (*there, *(_of_task(item) for key, item in tasks.items() if key not in services))

        return await self._engine.call(LIST_SECONDS, "list the services of a lease", read)

    async def remove(self, service_id: str) -> None:
        """See `Swarm`."""

        def remove(client: Any) -> None:
            unless_gone(lambda: client.remove_service(service_id))

        await self._engine.call(LIST_SECONDS, "remove a service", remove)

    async def name_machine(self, node_id: str, name: str) -> str:
        """Writes the label `gpuspawner.node`; see `Swarm`. If it is there, that is one call."""

        def write(client: Any) -> str:
            node: dict[str, Any] = {}
            unless_gone(lambda: node.update(client.inspect_node(node_id)))
            if not node:
                return f"the machine {name} isn't in the Swarm of the hub's machine"
            known = node["Spec"].get("Labels") or {}
            if known.get(labels.NODE) == name:
                return ""
            if any(_name_of(each) == name for each in client.nodes() if each["ID"] != node_id):
                return f"another machine of the Swarm has the name {name} (see `docker node ls`)"
            spec = {**node["Spec"], "Labels": {**known, labels.NODE: name}}
            client.update_node(node_id, node["Version"]["Index"], spec)
            return ""

        return await self._engine.call(NAME_SECONDS, "name a machine of the Swarm", write)


def _name_of(node: Mapping[str, Any]) -> str:
    """A machine's name: its label, else its host name; the hub reads it in the same way."""
    label = (node["Spec"].get("Labels") or {}).get(labels.NODE)
    return str(label or node.get("Description", {}).get("Hostname", ""))


def _service(item: Mapping[str, Any], *, may_run: bool = False) -> Service:
    spec = item["Spec"]
    created = int(datetime.fromisoformat(item["CreatedAt"]).timestamp())
    return Service(item["ID"], labels.parse(spec.get("Labels")), spec["Name"], created, may_run)


def _of_task(item: Mapping[str, Any]) -> Service:
    """A service that is removed, as its last task tells of it."""
    found = labels.parse(item["Spec"]["ContainerSpec"].get("Labels"))
    created = int(datetime.fromisoformat(item["CreatedAt"]).timestamp())
    return Service(item["ServiceID"], found, "", created, may_run=True, is_removed=True)


def _may_run(item: Mapping[str, Any]) -> bool:
    return item.get("Status", {}).get("State", "") not in _ENDED
