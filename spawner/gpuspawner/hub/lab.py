"""The lab of one server: found by its name and labels, stopped and removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.errors import EngineFault
from ..core.labels import Owner
from .docker_answers import running
from .engine import LabEngine
from .removals import Removals

RETRY_SECONDS = 1.0
"""Pause between attempts while Docker doesn't answer."""


@dataclass(frozen=True, slots=True)
class Lab:
    """One server's lab, which may not exist. `log` gets a level and a line."""

    name: str
    owner: Owner
    engine: LabEngine
    removals: Removals
    log: Callable[..., None]

    async def find(self) -> dict[str, Any] | None:
        """Docker's document of the container; None only if Docker says that this server has none.

        Raises EngineFault if Docker doesn't answer. (DockerSpawner treats a 500 as "gone".)
        """
        container = await self.engine.find(self.name)
        if container is None or not self.owner.owns(container.get("Config", {}).get("Labels")):
            return None
        return container

    async def end(self, grace_seconds: int) -> None:
        """Stops the container and returns when it is gone. Idempotent.

        While Docker doesn't answer, this keeps trying: a container that may run doesn't count as stopped.
        """
        doubted = False
        while True:
            try:
                await self._end_once(grace_seconds)
                return
            except EngineFault as fault:
                if not doubted:
                    self.log(logging.WARNING, "Can't stop it yet, retrying: %s", fault)
                doubted = True
            await asyncio.sleep(RETRY_SECONDS)

    def remove_later(self, container_id: str) -> None:
        """Removes a container that no longer runs, in the background."""

        async def work() -> None:
            while True:
                try:
                    await self.engine.remove(container_id)
                    return
                except EngineFault as fault:
                    self.log(logging.WARNING, "Can't remove the container yet, retrying: %s", fault)
                await asyncio.sleep(RETRY_SECONDS)

        self.removals.begin(self.name, work())

    async def _end_once(self, grace_seconds: int) -> None:
        """Raises EngineFault if it may still run; an ended container is removed later in the background."""
        container = await self.find()
        if container is None:
            return
        if running(container):
            await self.engine.stop(container["Id"], grace_seconds)
        try:
            await self.engine.remove(container["Id"])
        except EngineFault:
            left = await self.find()
            if left is not None and running(left):
                raise
            self.remove_later(container["Id"])
