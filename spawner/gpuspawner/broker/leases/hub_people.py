"""The members of groups and who has a server, as the hub tells them: asked seldom, kept, with their age.

Many pages ask at once: the hub is asked once for all of them. If it doesn't answer, what it said last stays,
with its time and the fault: nobody takes "not known" for "nobody".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from ...core.errors import HubFault
from ...core.units import Clock, utc_now
from .hub_api import HubServer

MEMBERS_SECONDS = 30.0
"""Who is in a class changes seldom."""
SERVERS_SECONDS = 10.0
AFTER_FAULT_SECONDS = 5.0
"""The hub is asked again after this long if it could not answer."""
_MOST_GROUPS = 500
"""More groups than that are not kept: names come from people who ask."""

V = TypeVar("V")


class Hub(Protocol):
    """The requests to the hub; each raises HubFault."""

    async def members(self, group: str) -> list[str]:
        """The users of a group, by name."""
        ...

    async def servers(self) -> dict[str, tuple[HubServer, ...]]:
        """The servers of everybody who has one, by user."""
        ...


@dataclass(frozen=True, slots=True)
class Members:
    """The users of a group, as the hub told them at `as_of`; None: it never did. `fault`: why not now."""

    names: tuple[str, ...] = ()
    as_of: datetime | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Servers:
    """The hub's servers by user, as told at `as_of`; None: never. `fault`: why not now."""

    of_user: Mapping[str, tuple[HubServer, ...]] = field(default_factory=lambda: MappingProxyType({}))
    as_of: datetime | None = None
    fault: str = ""


class _Kept(Generic[V]):
    """One answer of the hub; those who ask while it is asked wait for the same answer."""

    def __init__(self, empty: V, ask: Callable[[V], Awaitable[V]], seconds: float) -> None:
        self.value = empty
        self._ask, self._seconds = ask, seconds
        self._lock = asyncio.Lock()
        self._until = 0.0

    def expire(self) -> None:
        """Asks again at the next question."""
        self._until = 0.0

    async def get(self, monotonic: Callable[[], float]) -> V:
        async with self._lock:
            if monotonic() >= self._until:
                self.value = await self._ask(self.value)
                failed = bool(getattr(self.value, "fault", ""))
                self._until = monotonic() + (AFTER_FAULT_SECONDS if failed else self._seconds)
            return self.value


class HubPeople:
    """One a broker, on its event loop."""

    def __init__(
        self, hub: Hub, clock: Clock = utc_now, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._hub, self._clock, self._monotonic = hub, clock, monotonic
        self._members: dict[str, _Kept[Members]] = {}
        self._servers = _Kept(Servers(), self._ask_servers, SERVERS_SECONDS)

    async def members(self, group: str) -> Members:
        """The members of a group; at most `MEMBERS_SECONDS` old unless `fault` says otherwise."""
        if group not in self._members:
            if len(self._members) >= _MOST_GROUPS:
                self._members.pop(next(iter(self._members)))
            ask = lambda before: self._ask_members(group, before)  # noqa: E731 - it needs the group
            self._members[group] = _Kept(Members(), ask, MEMBERS_SECONDS)
        return await self._members[group].get(self._monotonic)

    async def servers(self) -> Servers:
        """Everybody's servers; at most `SERVERS_SECONDS` old unless `fault` says otherwise."""
        return await self._servers.get(self._monotonic)

    def forget_servers(self) -> None:
        """The next question goes to the hub: somebody has just stopped a server."""
        self._servers.expire()

    async def _ask_members(self, group: str, before: Members) -> Members:
        try:
            return Members(tuple(await self._hub.members(group)), self._clock())
        except HubFault as fault:
            return replace(before, fault=f"The hub's list of members can't be read: {fault}.")

    async def _ask_servers(self, before: Servers) -> Servers:
        try:
            return Servers(await self._hub.servers(), self._clock())
        except HubFault as fault:
            return replace(before, fault=f"The hub's list of servers can't be read: {fault}.")
