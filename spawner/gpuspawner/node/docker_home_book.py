"""Where the homes of a Swarm are, as its manager keeps it: asked and changed by the broker."""

from __future__ import annotations

from ..protocol import home_places
from ..protocol.home_places import HomePlaces
from .docker_engine import DockerEngine

_SECONDS = 10
"""A manager that has just started answers late."""


class DockerHomeBook:
    """Implements `HomeBook` with the engine of a manager. `own` is the name of its machine."""

    def __init__(self, engine: DockerEngine, own: str, broker: str) -> None:
        """`broker` is this broker's state folder: the homes that another one moves are left alone."""
        self._engine, self._places, self._broker = engine, HomePlaces(own), broker

    async def machine_of(self, volume: str) -> str:
        """See `HomeBook`, as for all."""
        return await self._engine.run(
            _SECONDS, "say where a home is", lambda call: self._places.machine_of(call, volume)
        )

    async def place(self, volume: str, machine: str) -> None:
        """See `HomeBook`."""
        await self._engine.run(
            _SECONDS, "write where a home is", lambda call: self._places.move(call, volume, machine)
        )

    async def hold(self, volume: str, machine: str) -> None:
        """See `HomeBook`."""
        await self._engine.run(
            _SECONDS, "hold a home", lambda call: home_places.hold(call, volume, machine, self._broker)
        )

    async def release(self, volume: str) -> None:
        """See `HomeBook`."""
        await self._engine.run(_SECONDS, "release a home", lambda call: home_places.release(call, volume))

    async def held(self) -> dict[str, str]:
        """See `HomeBook`."""
        return await self._engine.run(
            _SECONDS, "list homes", lambda call: home_places.held(call, self._broker)
        )

    async def used(self) -> set[str]:
        """See `HomeBook`."""
        return await self._engine.run(_SECONDS, "list services", home_places.used_volumes)
