"""The turns on all machines together: what people see and ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..decide.snapshot import TurnView
from .turn_pools import Turns


class AllTurns:
    """Finds the machine on which a lease has its seat. `turns` returns those of each machine."""

    def __init__(self, turns: Callable[[], Sequence[Turns]]) -> None:
        self._turns = turns

    def views(self) -> Mapping[str, TurnView]:
        """The turn of each lease that was looked at, by lease id."""
        found: dict[str, TurnView] = {}
        for each in self._turns():
            found |= each.views()
        return found

    def want(self, lease_id: str) -> bool:
        """Its user asks for a GPU now; whether it has a seat."""
        return any(each.want(lease_id) for each in self._turns())

    def rest(self, lease_id: str) -> bool:
        """What it has on a GPU moves to main memory; whether it has a seat and its memory can move."""
        return any(each.rest(lease_id) for each in self._turns())

    async def before_end(self, lease_id: str) -> bool:
        """Its container is about to be stopped: whether its programs may be killed now; else ask again."""
        found = [await each.before_end(lease_id) for each in self._turns()]
        return all(found)

    def give_up(self, lease_id: str) -> bool:
        """Its user gives up the turn; whether it has a seat."""
        return any(each.give_up(lease_id) for each in self._turns())
