"""Follows which machines join the broker and which are forgotten, while it runs.

`gpuspawner node` changes the list in the state folder, which is read every two seconds. The leases of a
forgotten machine end without a word of its Docker: an admin says that it is gone for good.
"""

from __future__ import annotations

import asyncio

from ...node.remote.members import Members
from ..enforce.sharing import Sharing
from ..leases.leasing import LeaseService
from ..observe.failures import LoopFailures
from .ground import Ground
from .machine import FoundNode
from .machines import Machines

LOOK_SECONDS = 2.0


class Following:
    """One a broker."""

    def __init__(self, ground: Ground, members: Members, machines: Machines, service: LeaseService) -> None:
        self._ground, self._members = ground, members
        self._machines, self._service = machines, service

    async def run(self) -> None:
        """Looks until cancelled. The same failure is logged once."""
        failures = LoopFailures("members", self._ground.metrics, self._ground.log)
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed("Who has joined can't be read, retrying", error)

    async def look(self) -> None:
        """Removes and adds machines. Raises Fault."""
        joined, gone = await self._members.look()
        for name in gone:  # first: one that has joined again is among both
            await self._machines.shut(name)
            leases = self._machines.leases_of(name)
            self._ground.log.warning("Machine %s was forgotten, with %d leases", name, len(leases))
            for lease in leases:
                await self._service.forget(lease.id, f"the machine {name} was forgotten")
            await self._machines.remove(name)
        settings = self._ground.settings
        for node in joined:
            sharing = Sharing(settings.site, settings.tiers, others=True)
            await self._machines.add(FoundNode(node, await node.start(), sharing))
