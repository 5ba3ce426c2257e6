"""Tells the users whose servers have lost their GPU by `systemctl daemon-reload`.

NVIDIA's hook gives devices to a container without runc's knowledge, so a reload takes the permission away
again (NVIDIA Container Toolkit, "Troubleshooting"). With CDI this can't happen. After each reload the servers
are asked, once, whether they can still open the driver's control device.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ...core.model import Lease, LeaseState
from ...node.api import Injection
from ...node.engine import Engine
from ..observe.failures import LoopFailures
from ..observe.metrics import Metrics

ROUND_SECONDS = 2.0
CONTROL = "/dev/nvidiactl"
LOST = (
    "Your server can't use its GPU any more: the machine has reloaded its services (`systemctl "
    "daemon-reload`). Save your work, then stop this server and start a new one."
)


@dataclass(frozen=True, slots=True)
class ReloadParts:
    """What it uses. `way` is how containers get devices, `stamp` changes with each reload (`Node`), and
    `tell(lease_id, sentence)` gives a notice."""

    engine: Engine
    way: Callable[[], Injection | None]
    stamp: Callable[[], Awaitable[int | None]]
    leases: Callable[[], Sequence[Lease]]
    tell: Callable[[str, str], Awaitable[object]]
    metrics: Metrics
    log: logging.Logger
    stretch: Callable[[], float] = lambda: 1.0
    """So many times as long are the pauses, because there are many machines."""


class ReloadWatch:
    """One a broker, on its event loop."""

    def __init__(self, parts: ReloadParts) -> None:
        self._parts = parts
        self._looked: int | None = None

    async def run(self) -> None:
        """Rounds until cancelled. The same failure is logged once."""
        failures = LoopFailures("reloads", self._parts.metrics, self._parts.log)
        while True:
            await asyncio.sleep(ROUND_SECONDS * self._parts.stretch())
            try:
                await self.round()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed("Whether servers have lost their GPU is not known, retrying", error)

    async def round(self) -> None:
        """Asks all servers if there was a reload since the last complete round.

        The first round asks them, too: the broker may have been away. Raises EngineFault, LedgerFault.
        """
        parts = self._parts
        if parts.way() is not Injection.NVIDIA:
            return
        stamp = await parts.stamp()
        if stamp is None or stamp == self._looked:
            return
        for lease in parts.leases():
            if lease.state is not LeaseState.RUNNING or lease.container_id is None or not lease.device_uuids:
                continue
            if await parts.engine.is_denied(lease.container_id, CONTROL):
                parts.log.warning(
                    "A server has lost its GPU by `systemctl daemon-reload`; use CDI: user=%s server=%s "
                    "lease=%s devices=%s container=%s",
                    lease.user, lease.server or "-", lease.id, ",".join(lease.device_uuids),
                    lease.container_id,
                )  # fmt: skip
                await parts.tell(lease.id, LOST)
        self._looked = stamp
