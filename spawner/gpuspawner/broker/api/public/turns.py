"""The turns' actions at the service's own address, behind the hub's login: for a lease's user and for admins.

A browser's cookie changes nothing without the hub's XSRF token, as with the rules (`rules.py`). Each is
recorded in the audit log.
"""

from __future__ import annotations

import json
from typing import Any

from ....core.errors import NotAllowed
from ....core.model import Lease
from ...leases.audit import Answer, Asked, Audit
from ..rules import REQUEST_ID_HEADER
from ..socket import Site as Socket
from ..turns import PATH, TurnHandler, TurnService
from .base import ApiUser, Route, Site
from .rules import MoreRoutes

NOT_YOURS = "This is another user's server: ask its user, or an admin."


class PublicTurn(ApiUser, TurnHandler):
    """POST api/turns/{lease id}/{wake or yield}"""

    audit: Audit

    def initialize(self, pages: Site, **wanted: Any) -> None:  # type: ignore[override]
        TurnHandler.initialize(self, **wanted)
        self.audit = wanted["audit"]
        self.know(pages)

    async def act(self, lease_id: str, action: str) -> dict[str, Any]:
        """Raises NotAllowed for the lease of another user, without the scope; LeaseConflict."""
        lease = self.turns.lease(lease_id)

        async def act() -> Answer:
            return Answer(200, json.dumps(self.turns.act(lease_id, action)), f"Turn: {action}.")

        asked = Asked(
            author=self.viewer.author,
            via=self.viewer.via,
            action=f"turn: {action}",
            subject=f"user:{lease.user}",
            groups=lease.groups,
            document={"lease": lease.id, "server": lease.server},
            reason="",
            request_id=self.request.headers.get(REQUEST_ID_HEADER),
        )
        if not self._may(lease):
            await self.audit.refuse(asked, NOT_YOURS)
            raise NotAllowed(NOT_YOURS)
        answer = await self.audit.write(asked, act)
        found: dict[str, Any] = json.loads(answer.body or "{}")
        return found

    def _may(self, lease: Lease) -> bool:
        whose = {"user": lease.user, "hub": lease.hub, "groups": lease.groups}
        return self.viewer.changes(whose)


def public_turns(socket: Socket, turns: TurnService, audit: Audit) -> MoreRoutes:
    """The socket's route as one of the service, for `make_handlers`."""

    def routes(pages: Site) -> list[Route]:
        wanted = {"pages": pages, "site": socket, "turns": turns, "audit": audit}
        return [(f"{pages.prefix}api{PATH}", PublicTurn, wanted)]

    return routes
