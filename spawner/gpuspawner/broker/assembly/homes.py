"""Makes what moves homes between the machines of a Swarm."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from ...node.docker_home_book import DockerHomeBook
from ...node.docker_homes import DockerHomes
from ...node.homes import HomeFiles
from ..leases.home_moves import HomeMoves, MoveParts
from ..observe.failures import LoopFailures
from .deciding import Deciding
from .ground import Ground
from .machines import Machines


@dataclass(frozen=True, slots=True)
class HomeMoving:
    """One a broker of a Swarm; `own` are the homes of the broker's machine."""

    moves: HomeMoves
    own: DockerHomes
    failures: LoopFailures

    def loop(self) -> Coroutine[Any, Any, None]:
        """What runs until the broker ends."""
        return self.moves.run(
            lambda error: self.failures.failed("What ended moves of homes left can't be looked at", error)
        )

    async def close(self) -> None:
        """Ends the moves, and the threads."""
        await self.moves.close()
        await self.own.end_all()
        self.own.close()


def open_homes(ground: Ground, deciding: Deciding, machines: Machines) -> HomeMoving | None:
    """None where labs are containers of one machine."""
    if ground.swarm is None:
        return None
    broker, name = str(ground.settings.state_dir), machines.here.name
    own = DockerHomes(ground.engine, broker)

    def files() -> dict[str, HomeFiles]:
        return {name: own, **machines.homes()}

    book = DockerHomeBook(ground.engine, name, broker)
    moves = HomeMoves(MoveParts(book, files, deciding.allocator.leases, ground.log))
    return HomeMoving(moves, own, LoopFailures("home_moves", ground.metrics, ground.log))
