"""GET, POST /homes/moves on the unix socket: homes that are moved from one machine to another."""

from __future__ import annotations

from typing import Any

from ...core.errors import BadOption, BrokerUnavailable, Fault, Refusal
from ...protocol.homes import HomeMoveDocument, HomeMoveOrder, HomeMovesDocument
from ..leases.endings import Endings
from ..leases.home_moves import HomeMove, HomeMoves, MoveOrder
from ..leases.rule_service import RuleService
from .rules import Change, RuleHandler, answering
from .socket import Site


class MovesHandler(RuleHandler):
    """GET POST /homes/moves"""

    homes: HomeMoves | None

    def initialize(self, site: Site, **more: Any) -> None:
        super().initialize(site, **more)
        self.homes = more["homes"]

    @answering
    async def get(self) -> None:
        """The moves since the broker began."""
        moves = () if self.homes is None else self.homes.all()
        self.send(HomeMovesDocument(moves=tuple(map(_document, moves))))

    @answering
    async def post(self) -> None:
        """200 with the move, which goes on by itself."""
        order = self.read(HomeMoveOrder)

        async def begin() -> HomeMoveDocument:
            if self.homes is None:
                raise BadOption("Homes are moved only where labs are services of a Swarm.")
            asked = MoveOrder(order.volume, order.user, order.machine, order.copied)
            return _document(await self.homes.begin(asked))

        await self.make(Change("move home", order.volume, (), order), begin)

    def refusal_of(self, fault: Fault) -> Refusal:
        """Who asks is an admin: as it is."""
        return BrokerUnavailable(f"{fault}. The home stays where it is.")


def _document(move: HomeMove) -> HomeMoveDocument:
    return HomeMoveDocument(
        id=move.id,
        volume=move.order.volume,
        source=move.source,
        machine=move.order.machine,
        began_at=move.began_at,
        state=move.state.value,
        size_bytes=move.size_bytes,
        message=move.message,
    )


def home_routes(
    site: Site, rules: RuleService, endings: Endings, homes: HomeMoves | None
) -> list[tuple[Any, ...]]:
    """The route, for `make_app`. `homes` is None where labs are containers of one machine."""
    wanted = {"site": site, "rules": rules, "endings": endings, "homes": homes}
    return [(r"/homes/moves", MovesHandler, wanted)]
