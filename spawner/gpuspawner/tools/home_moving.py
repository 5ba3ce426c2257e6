"""`gpuspawner homes move`: asks the broker to move a home, and says how far it is."""

from __future__ import annotations

import asyncio
import getpass
import os
import time
from collections.abc import Callable

from ..core.units import format_bytes
from ..protocol.client import BrokerClient
from ..protocol.homes import HomeMoveDocument, HomeMoveOrder, HomeMovesDocument
from .homes import HomeVolume

ASK_SECONDS = 0.5
SAY_SECONDS = 10.0
BEGIN_SECONDS = 120.0
"""The broker asks Swarm and both machines before it answers."""


class Moving:
    """The moves that one command asks for. `say` prints a line."""

    def __init__(self, socket_path: str, say: Callable[[str], None]) -> None:
        self._socket_path, self._say = socket_path, say
        self._said: tuple[str, float] = ("", 0.0)

    async def move(self, home: HomeVolume, machine: str, *, copied: bool) -> bool:
        """Returns when the move is over; whether the home is there now. Raises Refusal.

        The broker goes on if this ends.
        """
        client = BrokerClient(self._socket_path)
        try:
            order = HomeMoveOrder(
                author=os.environ.get("SUDO_USER") or getpass.getuser(),
                volume=home.name,
                user=home.user,
                machine=machine,
                copied=copied,
            )
            move = await client.ask("/homes/moves", HomeMoveDocument, order, BEGIN_SECONDS)
            while move.state not in ("done", "failed"):
                self._tell(move)
                await asyncio.sleep(ASK_SECONDS)
                moves = (await client.ask("/homes/moves", HomeMovesDocument)).moves
                found = next((each for each in moves if each.id == move.id), None)
                if found is None:
                    self._say(
                        "The broker was started again meanwhile, and undoes what it had begun: `gpuspawner "
                        "homes` says where the home is. Move it again if it isn't there."
                    )
                    return False
                move = found
        finally:
            await client.close()
        self._say(move.message)
        return move.state == "done"

    def _tell(self, move: HomeMoveDocument) -> None:
        """A line for each step, and every 10 s."""
        state, at = self._said
        if move.state == state and time.monotonic() - at < SAY_SECONDS:
            return
        self._said = (move.state, time.monotonic())
        route = f"{move.source} to {move.machine}"
        self._say(f"{move.volume}: {move.state}, {route}, {format_bytes(move.size_bytes)} so far")
