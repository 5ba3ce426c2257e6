"""Tells the broker how far the pulls of this process are, for the admin's page."""

from __future__ import annotations

import asyncio
import os

from ..core.errors import Refusal
from ..protocol.client import BrokerClient
from ..protocol.pulls import PullsMessage
from .pulls import TELL_SECONDS, Pulls


class PullReport:
    """One for a process's `Pulls`. A broker that doesn't answer is no reason to stop a pull."""

    def __init__(self, broker: BrokerClient, pulls: Pulls) -> None:
        self._broker, self._pulls = broker, pulls
        self._source = f"process {os.getpid()}"
        self._task: asyncio.Task[None] | None = None
        pulls.on_begin = self.begin

    def begin(self) -> None:
        """A pull has begun: tell of all of them until none is left."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="report pulls")

    async def _run(self) -> None:
        while views := self._pulls.views():
            await self._tell(PullsMessage(source=self._source, pulls=views))
            await asyncio.sleep(TELL_SECONDS)
        await self._tell(PullsMessage(source=self._source, pulls=()))

    async def _tell(self, message: PullsMessage) -> None:
        try:
            await self._broker.tell("POST", "/pulls", message)
        except Refusal:
            return  # the page shows nothing of it then
