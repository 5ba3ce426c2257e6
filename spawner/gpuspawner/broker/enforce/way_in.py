"""How containers get their leased devices, and why some don't get into any: detected again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import BrokerUnavailable, ConfigError
from ...core.model import ContainerPatch, Lease
from ...node.api import Access, Injection, Node, NodeFacts
from ...node.engine import Engine
from ...node.injection import make_patch
from ..leases.leasing import NOT_READY

Enter = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Makes sure that services can be started on the machine whose engine has these `/info`.

Raises ConfigError, with the remedy, if they can't; EngineFault if that isn't known.
"""


class WayIn:
    """One a machine. `uuids` returns the devices that containers need, `facts` the node's latest facts.

    `enter` is for a machine where labs are services of a Swarm.
    """

    def __init__(
        self,
        node: Node,
        engine: Engine,
        uuids: Callable[[], Iterable[str]],
        facts: Callable[[], NodeFacts],
        enter: Enter | None = None,
    ) -> None:
        self._node, self._engine, self._uuids = node, engine, uuids
        self._facts, self._enter = facts, enter
        self.way: Injection | None = None
        """None until it is detected."""
        self.obstacles: Mapping[str, str] = {}
        """Why no new container gets a device, by UUID, as of the last detection."""

    async def probe(self, late: Iterable[str] = ()) -> None:
        """Detects how all devices, and the `late` ones, get into containers.

        Raises EngineFault; ConfigError if no device can.
        """
        simulated, enter = self._facts().simulated, self._enter
        if simulated and enter is None:
            self.way = Injection.NONE
            return
        info, version = await self._engine.facts()
        if enter is not None:
            await enter(info)
        access = Access(Injection.NONE)
        if not simulated:
            uuids = [*self._uuids(), *late]
            find = self._node.way_in if enter is None else self._node.service_way_in
            access = await find(info, version, uuids)
        self.way, self.obstacles = access.way, access.obstacles

    async def probe_late(self, late: Iterable[str]) -> None:
        """As `probe`, for a machine that isn't the broker's own: an obstacle keeps its devices out of use.

        Raises EngineFault.
        """
        uuids = tuple(late)
        try:
            await self.probe(uuids)
        except ConfigError as error:
            self.obstacles = dict.fromkeys((*self._uuids(), *uuids), str(error))

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
