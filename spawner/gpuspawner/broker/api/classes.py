"""A class for those who teach it: its roster, and what is done with the servers of its members.

Who may ask is checked before (`public/classes.py`); here only servers of the class's members are touched,
whatever ids were sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ...core.errors import BadOption, GpuSpawnerError, Refusal
from ...core.model import Lease, LeaseState
from ...core.quota import Subject, SubjectKind
from ...core.units import Clock, utc_now
from ...protocol.classes import (
    AnnouncementDocument,
    ClassMessage,
    DoneDocument,
    ExtendServers,
    RosterDocument,
)
from ..leases.allocator import Allocator
from ..leases.announcements import Announcements
from ..leases.endings import Ender, Endings
from ..leases.hub_people import HubPeople, Members, Servers
from ..leases.rule_service import RuleService
from ..ledger import EndedProcess, Ledger
from ..observe.use import Use
from .access import Reach
from .roster import ClassFacts, make_roster, of_class

NO_HUB = "This broker is no service of a hub, so the members of classes are not known."
_AT_ONCE = 8
"""Containers that Docker removes at the same time."""


@dataclass(frozen=True, slots=True)
class ClassParts:
    """What the classes use. `people` None: no hub can be asked. `use` says by id what leases use."""

    people: HubPeople | None
    allocator: Allocator
    service: Ender
    rules: RuleService
    endings: Endings
    announcements: Announcements
    ledger: Ledger
    ended: Callable[[], Sequence[EndedProcess]]
    use: Callable[[], Mapping[str, Use]]
    clock: Clock = utc_now


class Classes:
    """One a broker, on its event loop. `hub` names the hub of the class in the leases."""

    def __init__(self, parts: ClassParts) -> None:
        self._parts = parts

    def groups(self, hub: str, reach: Reach) -> tuple[str, ...]:
        """The groups within reach that are known here: named by the scopes, by the rules or by a server."""
        rulebook = self._parts.rules.rulebook
        of_quotas = {
            quota.subject.name for quota in rulebook.rules.quotas if quota.subject.kind is SubjectKind.GROUP
        }
        of_sessions = {session.group for session in rulebook.rules.sessions.values()}
        of_leases = {group for lease in self._leases(hub) for group in lease.groups}
        known = of_quotas | of_sessions | of_leases | (rulebook.known.groups or frozenset())
        return tuple(sorted(known if reach.everybody else reach.groups))

    async def roster(self, hub: str, group: str) -> RosterDocument:
        """The class at this moment. Raises LedgerFault."""
        parts = self._parts
        members, servers = await self._people(group)
        leases = of_class(self._leases(hub), group, members)
        queue = parts.allocator.snapshot().queue
        facts = ClassFacts(
            group=group,
            members=members,
            servers=servers,
            leases=leases,
            queue=queue,
            ended=parts.ended(),
            use=parts.use(),
            idle_since=self._times(leases, parts.endings.idle_since),
            ends_at=self._times(leases, self._ends_at),
            obstacles=parts.allocator.obstacles(lease.id for lease in leases),
            last_at=await parts.ledger.last_ended(hub, members.names),
        )
        roster = make_roster(facts, parts.clock())
        return roster.model_copy(update={"message": self._message(group)})

    async def stop(self, hub: str, group: str, lease_ids: Sequence[str] | None, author: str) -> DoneDocument:
        """End servers of the class; `lease_ids` None: all of them. Raises BadOption if none was chosen."""
        chosen, strangers = await self._chosen(hub, group, lease_ids)
        slots = asyncio.Semaphore(_AT_ONCE)

        async def end(lease: Lease) -> None:
            async with slots:
                await self._parts.service.release(lease.id, f"stopped by {author}, who teaches {group}")

        return await _each(chosen, end, strangers)

    async def extend(
        self, hub: str, group: str, lease_ids: Sequence[str] | None, asked: ExtendServers
    ) -> DoneDocument:
        """Make sessions of servers longer, each as far as its quota allows. Raises BadOption."""
        chosen, strangers = await self._chosen(hub, group, lease_ids)
        running = [lease for lease in chosen if lease.state in _EXTENDABLE or lease_ids is not None]

        async def extend(lease: Lease) -> None:
            await self._parts.rules.extend(lease.id, asked.seconds, asked.author)

        return await _each(running, extend, strangers)

    async def tell(self, group: str, asked: ClassMessage) -> None:
        """Show a message to the class. Raises BadOption, LedgerFault."""
        until = self._parts.clock() + timedelta(minutes=asked.minutes)
        await self._parts.rules.announce(f"group:{group}", asked.text, until, asked.author)

    async def untell(self, group: str, author: str) -> None:
        """Take the message back. Raises BadOption if there is none, LedgerFault."""
        await self._parts.rules.withdraw(f"group:{group}", author)

    # ---- inside

    async def _people(self, group: str) -> tuple[Members, Servers]:
        people = self._parts.people
        if people is None:
            return Members(fault=NO_HUB), Servers()
        members, servers = await asyncio.gather(people.members(group), people.servers())
        return members, servers

    def _leases(self, hub: str) -> list[Lease]:
        return [lease for lease in self._parts.allocator.leases() if lease.hub == hub]

    async def _chosen(self, hub: str, group: str, lease_ids: Sequence[str] | None) -> tuple[list[Lease], int]:
        """The class's leases among these, and how many of these are not the class's or have ended."""
        if lease_ids is not None and not lease_ids:
            raise BadOption("No server was chosen: mark at least one.")
        members, _ = await self._people(group)
        leases = of_class(self._leases(hub), group, members)
        living = [lease for lease in leases if lease.state is not LeaseState.RELEASING]
        if lease_ids is None:
            return living, 0
        wanted = set(lease_ids)
        found = [lease for lease in living if lease.id in wanted]
        return found, len(wanted) - len(found)

    def _message(self, group: str) -> AnnouncementDocument | None:
        subject = Subject(SubjectKind.GROUP, group)
        found = self._parts.rules.rulebook.rules.messages.get(subject)
        if found is None or self._parts.clock() >= found.until:
            return None
        return AnnouncementDocument(
            text=found.text, author=found.author, since=found.since, until=found.until
        )

    def _ends_at(self, lease: Lease) -> datetime | None:
        deadline = self._parts.endings.deadline_of(lease.id)
        return None if deadline is None else deadline.at

    @staticmethod
    def _times(leases: Sequence[Lease], of: Callable[[Lease], datetime | None]) -> dict[str, datetime]:
        found = ((lease.id, of(lease)) for lease in leases)
        return {lease_id: at for lease_id, at in found if at is not None}


_EXTENDABLE = frozenset({LeaseState.RUNNING, LeaseState.ASLEEP})


async def _each(
    leases: Sequence[Lease], do: Callable[[Lease], Awaitable[None]], strangers: int
) -> DoneDocument:
    """Does it for each, and says for which it didn't work."""
    results = await asyncio.gather(*map(do, leases), return_exceptions=True)
    refused = []
    for lease, result in zip(leases, results, strict=True):
        if isinstance(result, GpuSpawnerError):
            text = result.message if isinstance(result, Refusal) else str(result)
            server = f", server {lease.server!r}" if lease.server else ""
            refused.append(f"{lease.user}{server}: {text}")
        elif isinstance(result, BaseException):
            raise result
    done = len(leases) - len(refused)
    if strangers == 1:
        refused.append("1 server has ended meanwhile, or is not of this class.")
    elif strangers:
        refused.append(f"{strangers} servers have ended meanwhile, or are not of this class.")
    return DoneDocument(done=done, refused=tuple(refused))
