"""The broker's rounds: Docker is compared with the ledger, and GPUs are given out once both are known."""

from __future__ import annotations

import asyncio

from ...core.errors import ConfigError, EngineFault
from ..leases.allocator import Allocator
from ..leases.leasing import NOT_READY, LeaseService
from ..observe.failures import LoopFailures
from .ground import Ground
from .machines import Machines

RETRY_SECONDS = 0.5
"""Pause after a failed round."""
NOT_SET_UP = (
    "GPUs can't be given out right now: this machine isn't set up for it. Choose CPU. "
    "Admin: run 'gpuspawner doctor', and see the log of the broker."
)
GPUS_SILENT = (
    "GPUs can't be given out right now: the GPUs of this machine don't answer. Choose CPU, or try again in a "
    "few minutes. Admin: see the GPU page, and run 'gpuspawner doctor'."
)


class Rounds:
    """One a broker."""

    def __init__(
        self, ground: Ground, service: LeaseService, allocator: Allocator, machines: Machines
    ) -> None:
        self._ground, self._service = ground, service
        self._allocator, self._machines = allocator, machines

    async def run(self) -> None:
        """Rounds until cancelled. The same failure is logged once."""
        failures, looked = LoopFailures("reconcile", self._ground.metrics, self._ground.log), True
        pause_seconds = self._ground.settings.reconcile_seconds
        while True:
            await asyncio.sleep(pause_seconds if looked else min(RETRY_SECONDS, pause_seconds))
            try:
                looked = await self.look()
                failures.over()
            except Exception as error:  # the top of the timer's loop
                looked = False
                self._service.not_ready = NOT_SET_UP if isinstance(error, ConfigError) else NOT_READY
                failures.failed("Comparing Docker with the ledger failed; trying again", error)

    async def look(self) -> bool:
        """Makes a round. After the first successful one, and when the node has listed its GPUs, new leases
        are given.

        Returns False if Docker didn't answer.

        Raises ConfigError if containers can't get a device.
        """
        service = self._service
        if not await service.reconcile_or_log():
            return False
        if self._machines.here.facts.fault and not service.ready.is_set():
            service.not_ready = GPUS_SILENT
        elif not service.ready.is_set():
            try:
                await self._machines.probe()
            except EngineFault as fault:
                self._ground.log.warning("%s; the next round tries again", fault)
                return False
            service.ready.set()
        await self._allocator.advance()
        return True
