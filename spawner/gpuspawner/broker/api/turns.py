"""What users may ask of their turns, on the unix socket: a GPU now, or to give up the one that they have.

POST /turns/{lease id}/wake    it wants a GPU, and gets one when it is its turn
POST /turns/{lease id}/yield   its turn ends now; a program that still computes wants a new one
POST /turns/{lease id}/end     its container is about to be stopped: {"ready": whether that may be done now}

The first two answer with the lease's turn. The public API has them below `api/`, for the lease's user and for
holders of `custom:gpu:reserve` (`public/turns.py`). The hub asks the third, again and again, for any lease.
"""

from __future__ import annotations

from typing import Any

from ...core.errors import Fault, LeaseConflict, Refusal
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
        """Does it and returns the turn's document. Raises LeaseConflict if it has no seat or may not wake."""
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


class TurnHandler(Handler):
    """POST /turns/{lease id}/{wake or yield}"""

    turns: TurnService

    def initialize(self, site: Site, **more: Any) -> None:
        super().initialize(site)
        self.turns = more["turns"]

    async def post(self, lease_id: str, action: str) -> None:
        """200 with the turn; 409 if the lease has none."""
        try:
            self.answer(await self.act(lease_id, action))
        except Refusal as refusal:
            self.refuse(refusal)
        except Fault as fault:
            self.refuse(self.refusal_of(fault))

    async def act(self, lease_id: str, action: str) -> dict[str, Any]:
        """Whoever reaches the socket may do it."""
        return self.turns.act(lease_id, action)


class EndHandler(Handler):
    """POST /turns/{lease id}/end"""

    turns: TurnService

    def initialize(self, site: Site, **more: Any) -> None:
        super().initialize(site)
        self.turns = more["turns"]

    async def post(self, lease_id: str) -> None:
        """200 for any lease; one that has no turns is ready."""
        self.answer(document(EndDocument(ready=await self.turns.before_end(lease_id))))


PATH = r"/turns/([0-9a-f]{32})/(wake|yield)"


def turn_routes(site: Site, turns: TurnService) -> list[tuple[Any, ...]]:
    """The routes, for `make_app`."""
    more = {"site": site, "turns": turns}
    return [(PATH, TurnHandler, more), (r"/turns/([0-9a-f]{32})/end", EndHandler, more)]
