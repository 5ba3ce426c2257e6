"""The machines of the Swarm, as its manager sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import ConfigError, StartFault
from ...core.labels import NODE
from ...protocol.call import Call


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine by its name; `id` is Swarm's. `why_not`: why nothing can start there now, "" if it can."""

    name: str
    id: str
    why_not: str = ""


def read_machines(nodes: Iterable[Mapping[str, Any]]) -> tuple[Machine, ...]:
    """The machines in Swarm's list of nodes, by name.

    A machine has the name of its label `gpuspawner.node`, else its host name.
    """
    return tuple(sorted((_read(node) for node in nodes), key=lambda machine: machine.name))


def _read(node: Mapping[str, Any]) -> Machine:
    spec, status = node["Spec"], node["Status"]
    host = str(node.get("Description", {}).get("Hostname", ""))
    name = str((spec.get("Labels") or {}).get(NODE) or host)
    why = ""
    if status.get("State") != "ready":
        why = f"it can't be reached (Swarm says {status.get('State')!r})"
    elif spec.get("Availability") != "active":
        why = f"an admin has taken it out of use (it is on {spec.get('Availability')!r})"
    return Machine(name, str(node["ID"]), why)


def find_machine(machines: Iterable[Machine], name: str, *, has_files: bool = False) -> Machine:
    """The machine of that name, on which something can start. Raises StartFault.

    `has_files`: the user's home is there, so no other machine will do.
    """
    named = [machine for machine in machines if machine.name == name]
    files = "Your files are there, so it can't start elsewhere. " if has_files else ""
    if len(named) != 1:
        what = "isn't part of the Swarm" if not named else "has the name of another one"
        raise StartFault(
            f"The machine {name} {what}, so your server can't start there. {files}Tell an admin"
            f"{'' if has_files else ', or choose a server without a GPU'}. Admin: see `docker node ls`; the "
            f"name is the label {NODE} or the host name.",
            "machine",
        )
    if named[0].why_not:
        raise StartFault(
            f"Your server can't start on the machine {name}: {named[0].why_not}. {files}Try again later, or "
            "tell an admin.",
            "machine",
        )
    return named[0]


def own_machine(call: Call, machines: Iterable[Machine]) -> Machine:
    """The machine of the engine that is asked. Raises ConfigError if that isn't a manager of a Swarm."""
    swarm = call("info").get("Swarm") or {}
    check_manager(swarm)
    return next(machine for machine in machines if machine.id == swarm.get("NodeID"))


def check_manager(swarm: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the remedy, if the engine whose `/info` has this is no manager of a Swarm."""
    if not swarm.get("ControlAvailable"):
        raise ConfigError(
            'c.GpuSite.engine is "swarm", but this machine\'s Docker Engine is no manager of a Swarm: run '
            "`docker swarm init --advertise-addr ADDRESS` on it, with its address in the network of the "
            "machines"
        )
