"""How containers get their leased devices: detected once, then used for each lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ...core.errors import BrokerUnavailable
from ...core.model import ContainerPatch, Lease
from ...node.api import Injection, Node
from ...node.injection import make_patch
from ..leases.containers import Engine
from ..leases.leasing import NOT_READY


class WayIn:
    """One object per broker. `uuids` returns the devices that containers need."""

    def __init__(
        self, node: Node, engine: Engine, uuids: Callable[[], Iterable[str]], *, simulated: bool
    ) -> None:
        self._node, self._engine, self._uuids = node, engine, uuids
        self._simulated = simulated
        self.way: Injection | None = None
        """None until it is detected."""

    async def probe(self, late: Iterable[str] = ()) -> None:
        """Detects how all devices, and the `late` ones, get into containers.

        Raises EngineFault, ConfigError.
        """
        if self._simulated:
            self.way = Injection.NONE
            return
        info, version = await self._engine.facts()
        self.way = await self._node.way_in(info, version, [*self._uuids(), *late])

    def patch(self, lease: Lease, folder: Path) -> ContainerPatch:
        """What the lease changes in its container. Raises BrokerUnavailable before `probe` has succeeded."""
        if self.way is None:
            raise BrokerUnavailable(NOT_READY)
        return make_patch(lease, self.way, self._simulated, folder)
