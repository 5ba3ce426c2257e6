"""The network by which labs of a Swarm leave their machine, and whether it leads to a cloud's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import EngineFault
from ...hub.docker import DockerEngine
from ...hub.metadata import MetadataWall
from .facts import MetadataFacts
from .network import read_metadata

BRIDGE = "docker_gwbridge"
"""Docker's name of it: every container of a Swarm's network has its way out there (Docker 28)."""


def wall_of(call: Callable[..., Any]) -> MetadataWall | None:
    """The firewall's rules for it; None if this machine has no such network. Raises EngineFault. Blocks.

    Docker makes the network when the machine joins a Swarm.
    """
    try:
        network: Mapping[str, Any] = call("inspect_network", BRIDGE)
    except EngineFault as fault:
        if fault.status == 404:
            return None
        raise
    ranges = network.get("IPAM", {}).get("Config") or ()
    subnets = [str(each["Subnet"]) for each in ranges if "." in str(each.get("Subnet"))]
    return MetadataWall(subnets[0]) if subnets else None


def read_swarm_metadata() -> MetadataFacts | None:
    """Whether labs of a Swarm are kept from a cloud's keys here; None outside of a Swarm. Blocks."""
    engine = DockerEngine({}, {})
    try:
        wall = wall_of(engine.call_here)
    except EngineFault:
        return None  # said about Docker
    finally:
        engine.close()
    return None if wall is None else read_metadata(wall, block=True)
