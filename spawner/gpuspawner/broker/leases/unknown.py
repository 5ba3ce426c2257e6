"""Running leases whose server the hub doesn't know: a renamed user, a lost hub database, a renamed container.

Nobody's page can stop such a server, so it is marked, and an admin ends it. The hub is asked now and then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ...core.errors import HubFault
from ...core.model import Lease, LeaseState
from .hub_api import HubServer

ROUND_SECONDS = 30.0
"""A lease is marked after two rounds in a row, within a minute or so."""
_WITH_SERVER = (LeaseState.RUNNING, LeaseState.ASLEEP)


class Hub(Protocol):
    """The request to the hub."""

    async def servers(self) -> dict[str, tuple[HubServer, ...]]:
        """The servers of everybody who has one, by user. Raises HubFault."""
        ...


class UnknownServers:
    """One a broker, on its event loop. `hub_name` is that of this hub in leases: others are not asked."""

    def __init__(
        self, hub: Hub, leases: Callable[[], Sequence[Lease]], hub_name: str, log: logging.Logger
    ) -> None:
        self._hub, self._leases, self._hub_name, self._log = hub, leases, hub_name, log
        self._missing: frozenset[str] = frozenset()
        self._marked: frozenset[str] = frozenset()

    def ids(self) -> frozenset[str]:
        """The leases that the hub did not know in the last two rounds."""
        return self._marked

    async def run(self) -> None:
        """Rounds until cancelled."""
        told = ""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            try:
                await self.round()
                told = ""
            except HubFault as fault:
                if str(fault) != told:
                    self._log.info("Whether the hub knows all servers is not known: %s", fault)
                told = str(fault)
            except Exception:  # the top of this loop
                self._log.exception("Comparing leases with the hub's servers failed; retrying")

    async def round(self) -> None:
        """Compares leases and the hub's servers. Raises HubFault; then all marks stay as they are.

        The leases are read first: one that begins meanwhile is not compared. An ended one loses its mark.
        """
        before = self._running()
        servers = await self._hub.servers()
        now = self._running()
        missing = {each for each, lease in before.items() if each in now and not _is_known(lease, servers)}
        marked = self._missing & missing
        for lease_id in sorted(marked - self._marked):
            lease = now[lease_id]
            self._log.warning(
                "The hub doesn't know a server that holds a GPU; an admin can end it on the GPU page: "
                "user=%s server=%s lease=%s devices=%s container=%s",
                lease.user, lease.server or "-", lease.id, ",".join(lease.device_uuids), lease.container_id,
            )  # fmt: skip
        self._missing, self._marked = frozenset(missing), marked

    def _running(self) -> dict[str, Lease]:
        return {
            lease.id: lease
            for lease in self._leases()
            if lease.state in _WITH_SERVER and lease.hub == self._hub_name
        }


def _is_known(lease: Lease, servers: Mapping[str, Sequence[HubServer]]) -> bool:
    return any(server.name == lease.server for server in servers.get(lease.user, ()))
