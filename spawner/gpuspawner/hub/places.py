"""The hub's places: its `active_server_limit` counts servers that run or start, not who waits for a GPU.

JupyterHub (6.1, `spawn_single_user`) compares its limit before the spawner is asked, and counts everybody who
waits. So `take_over` sets it to 0 there, and each start takes a place here: without a GPU when it begins, and
with one when it gets its lease. While no place is free, nobody else could use that GPU either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import HubFull

LOOK_SECONDS = 1.0
"""How often somebody with a GPU looks whether a place is free."""


@dataclass
class Places:
    """One for a hub. `line` has those who have a GPU and wait for a place, in the order of their leases."""

    line: list[object] = field(default_factory=list)

    def take(self, limit: int, held: Callable[[], int]) -> None:
        """Raises HubFull if no place is free, or if those with a GPU wait for one. A limit of 0 is none."""
        if limit and (self.line or held() >= limit):
            raise HubFull(
                f"This hub runs at most {limit} servers at a time, and all of these run. "
                "Try again when somebody has stopped a server."
            )

    async def wait(self, limit: int, held: Callable[[], int], tell: Callable[[], None]) -> None:
        """Returns when a place is free and it is one's turn; calls `tell` once if that isn't so at first.

        The caller has to hold the place before its next await.
        """
        mine = object()
        self.line.append(mine)
        try:
            told = False
            while limit and (self.line[0] is not mine or held() >= limit):
                if not told:
                    tell()
                told = True
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self.line.remove(mine)


def count_held(users: Iterable[Any]) -> int:
    """How many places the servers of these users (JupyterHub's) hold."""
    return sum(_holds(spawner) for user in users for spawner in user.spawners.values())


def _holds(spawner: Any) -> bool:
    """Whether it is active, as JupyterHub counts, and not in a start that has no place yet."""
    if spawner.pending == "spawn":
        return bool(getattr(spawner, "has_place", True))
    return bool(spawner.active)


def take_over(app: Any) -> None:
    """Has JupyterHub's own limit checked here alone; the spawner reads it from the settings."""
    app.active_server_limit = 0
