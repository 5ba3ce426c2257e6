"""How containers get their leased devices, and why some don't get into any: detected again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ...core.errors import BrokerUnavailable, ConfigError
from ...core.model import ContainerPatch, Lease
from ...node.api import Injection, Node, NodeFacts
from ...node.engine import Engine
from ...node.injection import make_patch
from ..leases.leasing import NOT_READY


class WayIn:
    """One a machine. `uuids` returns the devices that containers need, `facts` the node's latest facts."""

    def __init__(
        self,
        node: Node,
        engine: Engine,
        uuids: Callable[[], Iterable[str]],
        facts: Callable[[], NodeFacts],
    ) -> None:
        self._node, self._engine, self._uuids = node, engine, uuids
        self._facts = facts
        self.way: Injection | None = None
        """None until it is detected."""
        self.obstacles: Mapping[str, str] = {}
        """Why no new container gets a device, by UUID, as of the last detection."""

    async def probe(self, late: Iterable[str] = ()) -> None:
        """Detects how all devices, and the `late` ones, get into containers.

        Raises EngineFault; ConfigError if no device can.
        """
        if self._facts().simulated:
            self.way = Injection.NONE
            return
        info, version = await self._engine.facts()
        access = await self._node.way_in(info, version, [*self._uuids(), *late])
        self.way, self.obstacles = access.way, access.obstacles

    async def look_again(self) -> Mapping[str, str]:
        """Detects it again; if now no device gets into a container, the obstacle is that of all.

        Of a machine that can't be reached, it stays as it was. Raises EngineFault.
        """
        try:
            if not self._facts().away:
                await self.probe()
        except ConfigError as error:
            self.obstacles = dict.fromkeys(self._uuids(), str(error))
        return self.obstacles

    def patch(self, lease: Lease, folder: Path) -> ContainerPatch:
        """What the lease changes in its container. Raises BrokerUnavailable before `probe` has succeeded."""
        if self.way is None:
            raise BrokerUnavailable(NOT_READY)
        return make_patch(lease, self.way, self._facts().simulated, folder)
