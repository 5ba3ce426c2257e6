"""The nodes that the settings name: this machine, and further ones that are simulated on it."""

from __future__ import annotations

import logging

from ..config.site import GpuSite
from .api import Node
from .inventory.simulated import machine_names
from .local import open_node
from .simulated_node import SimulatedNode


def node_names(site: GpuSite) -> tuple[str, ...]:
    """This machine first; "": as it calls itself. Raises ConfigError.

    The names of simulated machines count only with `c.GpuSite.inventory = "simulated"`: real GPUs are this
    machine's.
    """
    return machine_names(site.simulated_devices) if site.inventory == "simulated" else ("",)


def open_nodes(site: GpuSite, log: logging.Logger) -> tuple[Node, ...]:
    """This machine first. None accesses hardware before its `start`. Raises ConfigError."""
    here, *others = node_names(site)
    return (open_node(site, log, here), *(SimulatedNode(name, site, log) for name in others))
