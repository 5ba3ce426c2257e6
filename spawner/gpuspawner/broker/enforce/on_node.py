"""The lease service as the enforcement of one node sees it: with the leases of this node alone."""

from __future__ import annotations

from collections.abc import Callable

from ...core.model import DeviceHealth, Lease
from ...node.engine import Engine
from .mode import CommonHolders


class OnNode:
    """Implements `Holders`. `leases` returns those on the node that have not ended, `engine` is the node's
    Docker."""

    def __init__(
        self, holders: CommonHolders, leases: Callable[[], tuple[Lease, ...]], engine: Engine
    ) -> None:
        self._holders, self._leases, self._engine = holders, leases, engine
        self.ready = holders.ready

    def leases(self) -> tuple[Lease, ...]:
        """The leases on the node that have not ended."""
        return self._leases()

    def is_drained(self, uuid: str) -> bool:
        """See `Holders`."""
        return self._holders.is_drained(uuid)

    async def tell(self, lease_id: str, sentence: str) -> None:
        """See `Holders`."""
        await self._holders.tell(lease_id, sentence)

    async def main_pid(self, container_id: str) -> int | None:
        """See `Holders`."""
        return await self._engine.main_pid(container_id)

    async def set_turn(self, lease_id: str, awake: bool, ago_seconds: float) -> None:
        """See `Holders`."""
        await self._holders.set_turn(lease_id, awake, ago_seconds)

    async def say_turn(self, lease_id: str, sentence: str) -> None:
        """See `Holders`."""
        await self._holders.say_turn(lease_id, sentence)

    async def set_health(self, *healths: DeviceHealth) -> None:
        """See `Holders`."""
        await self._holders.set_health(*healths)
