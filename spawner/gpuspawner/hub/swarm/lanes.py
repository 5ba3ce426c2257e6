"""Each lab's own overlay network, here called its lane: created, and removed when the lab is gone.

Docker's overlay networks have no switch that keeps their containers apart, as the bridge of a single machine
has. So each lab has a network that it shares with the gateway alone.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from ...config.swarm import LANE_BITS, MOST_LABS
from ...core.errors import EngineFault, StartFault
from ...core.labels import HUB
from ...protocol.call import Call, unless_gone
from .document import LANE

LAB = "gpuspawner.lab"
"""The label of a lane with the name of its lab's service."""
GATEWAY_ALIAS = "hub"
"""The name by which a lab reaches the gateway, and through it the hub."""
_TAKEN = 409


def alias_of(number: int) -> str:
    """The name by which the gateway reaches the lab of this lane."""
    return f"lab-{number}"


@dataclass(frozen=True, slots=True)
class Lane:
    """A lab's network: its number from 0 on, Docker's id of it, and the name of the lab's service."""

    number: int
    network_id: str
    lab: str


class Lanes:
    """The lanes of one hub. The methods take `call`, block on Docker and raise EngineFault. Thread-safe.

    A number that was given back is used again last: a former user's request must not reach the next lab.
    """

    def __init__(self, hub_id: str, prefix: str, subnet: str, *, encrypted: bool) -> None:
        self._hub_id, self._prefix, self._encrypted = hub_id, prefix, encrypted
        self._subnet = IPv4Network(subnet)
        self.count = min(MOST_LABS, 1 << LANE_BITS - self._subnet.prefixlen)
        self._turn = random.randrange(self.count)
        self._lock = threading.Lock()

    def create(self, call: Call, lab: str) -> Lane:
        """A new lane for the lab. Raises StartFault if all are in use."""
        for _ in range(self.count):
            number = self._next()
            try:
                made = call("create_network", **self._settings(number, lab))
            except EngineFault as fault:
                if fault.status == _TAKEN:
                    continue
                raise
            return Lane(number, str(made["Id"]), lab)
        raise StartFault(
            "All networks for labs are in use, so no more servers can run. Try again when somebody has "
            "stopped their server. Admin: set a larger c.GpuSwarm.subnet.",
            "addresses",
        )

    def remove(self, call: Call, network_id: str) -> None:
        """Removes a lane; no error if it is gone. Status 403 or 409 while something is still in it."""
        unless_gone(call, "remove_network", network_id)

    def all(self, call: Call) -> tuple[Lane, ...]:
        """The lanes that this hub has made."""
        filters = {"label": [f"{HUB}={self._hub_id}", LANE]}
        found: list[Mapping[str, Any]] = call("networks", filters=filters)
        lanes = ((each["Labels"], str(each["Id"])) for each in found)
        return tuple(
            Lane(int(labels[LANE]), network_id, labels.get(LAB, ""))
            for labels, network_id in lanes
            if labels[LANE].isdecimal()
        )

    def _next(self) -> int:
        with self._lock:
            self._turn = (self._turn + 1) % self.count
            return self._turn

    def _settings(self, number: int, lab: str) -> dict[str, Any]:
        first = int(self._subnet.network_address) + (number << 32 - LANE_BITS)
        subnet = IPv4Network((first, LANE_BITS))
        return {
            "name": f"{self._prefix}-lane-{number}",
            "driver": "overlay",
            "scope": "swarm",
            "attachable": True,
            "options": {"encrypted": ""} if self._encrypted else {},
            "ipam": {"Driver": "default", "Config": [{"Subnet": str(subnet)}]},
            "labels": {HUB: self._hub_id, LANE: str(number), LAB: lab},
        }
