"""What is asked of turns: a GPU now, to give up the one that somebody has, or whether a container may end.

Users ask the first two by the API and its pages (`public/actions.py`). The hub asks the third on the unix
socket, again and again, for any lease:
POST /turns/{lease id}/end     its container is about to be stopped: {"ready": whether that may be done now}
"""

from __future__ import annotations

from typing import Any

from ...core.errors import LeaseConflict
from ...core.model import Lease, Mode
from ...protocol.messages import EndDocument, document
from ..enforce.all_turns import AllTurns
from ..enforce.turn_pools import Turns
from ..leases.allocator import Allocator
from .documents import turn_document
from .socket import Handler, Site

NO_TURNS = "This server's GPU isn't shared in turns: it has its GPU all the time."
NO_SEAT = "This server isn't running yet: try again in a moment."


class TurnService:
    """Carries them out. No method waits for a turn to change."""

    def __init__(self, allocator: Allocator, turns: Turns | AllTurns) -> None:
        self._allocator, self._turns = allocator, turns

    def lease(self, lease_id: str) -> Lease:
        """The lease in turns. Raises LeaseConflict if there is none with this id."""
        lease = self._allocator.lease(lease_id)
        if lease is None:
            raise LeaseConflict("This server has ended: start it again.")
        if lease.mode is not Mode.TURNS:
            raise LeaseConflict(NO_TURNS)
        return lease

    def act(self, lease_id: str, action: str) -> dict[str, Any]:
        """Does "wake" or "yield" and returns the turn's document.

        Who wakes wants a GPU, and gets one when it is their turn. Who yields gives up their turn now; a
        program that still computes wants a new one.

        Raises LeaseConflict if it has no seat or may not wake.
        """
        lease = self.lease(lease_id)
        if action == "wake" and lease.kept_asleep:
            raise LeaseConflict(lease.kept_asleep)
        done = self._turns.want(lease_id) if action == "wake" else self._turns.give_up(lease_id)
        view = self._turns.views().get(lease_id)
        if not done or view is None:
            raise LeaseConflict(NO_SEAT)
        return document(turn_document(view))

    async def before_end(self, lease_id: str) -> bool:
        """Whether the programs of this lease may be killed now; if not, they are being put to sleep."""
        return await self._turns.before_end(lease_id)


class EndHandler(Handler):
    """POST /turns/{lease id}/end"""

    turns: TurnService

    def initialize(self, site: Site, **more: Any) -> None:
        super().initialize(site)
        self.turns = more["turns"]

    async def post(self, lease_id: str) -> None:
        """200 for any lease; one that has no turns is ready."""
        self.answer(document(EndDocument(ready=await self.turns.before_end(lease_id))))


def turn_routes(site: Site, turns: TurnService) -> list[tuple[Any, ...]]:
    """The hub's route, for `make_app`."""
    return [(r"/turns/([0-9a-f]{32})/end", EndHandler, {"site": site, "turns": turns})]
