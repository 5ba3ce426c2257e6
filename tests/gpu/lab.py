"""What several of these tests share: a pool of slices, and the container of a user's server."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import docker

from tests.running import System

EIGHT_SLICES: dict[str, Any] = {
    "pools": [{"name": "class", "mode": "slice", "slices": 8, "mps": True}],
    "tiers": [{"name": "cpu"}, {"name": "slice", "mode": "slice", "memory": "8G"}],
}
"""Pools and tiers: a GPU in eight, 8 GiB each."""


def inspected(system: System, user: str, server: str = "") -> dict[str, Any]:
    """Docker's document of the one container of this server. Blocks."""
    labels = [f"gpuspawner.user={user}", f"gpuspawner.server={server}", f"gpuspawner.hub={system.name}"]
    with closing(docker.APIClient(timeout=60)) as engine:
        (found,) = engine.containers(filters={"label": labels})
        document: dict[str, Any] = engine.inspect_container(found["Id"])
    return document


def container_of(system: System, user: str, server: str = "") -> str:
    """Its id. Blocks."""
    return str(inspected(system, user, server)["Id"])
