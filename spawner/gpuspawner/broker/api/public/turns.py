"""The turns' actions at the service's own address, behind the hub's login: for a lease's user and for admins.

A browser's cookie changes nothing without the hub's XSRF token, as with the rules (`rules.py`).
"""

from __future__ import annotations

from typing import Any

from ....core.errors import NotAllowed
from ..socket import Site as Socket
from ..turns import PATH, TurnHandler, TurnService
from .base import ApiUser, Route, Site
from .rules import MoreRoutes


class PublicTurn(ApiUser, TurnHandler):
    """POST api/turns/{lease id}/{wake or yield}"""

    def initialize(self, pages: Site, **wanted: Any) -> None:  # type: ignore[override]
        TurnHandler.initialize(self, **wanted)
        self.know(pages)

    def check(self, lease_id: str) -> None:
        """Raises NotAllowed for the lease of another user, without the scope; LeaseConflict."""
        lease = self.turns.lease(lease_id)
        whose = {"user": lease.user, "hub": lease.hub, "groups": lease.groups}
        if not (self.viewer.is_mine(whose) or self.viewer.may(self.viewer.reserve, whose)):
            raise NotAllowed("This is another user's server: ask its user, or an admin.")


def public_turns(socket: Socket, turns: TurnService) -> MoreRoutes:
    """The socket's route as one of the service, for `make_handlers`."""

    def routes(pages: Site) -> list[Route]:
        wanted = {"pages": pages, "site": socket, "turns": turns}
        return [(f"{pages.prefix}api{PATH}", PublicTurn, wanted)]

    return routes
