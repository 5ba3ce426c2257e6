"""A class for those who teach it: its roster, and what is done with the servers of its members.

Who may ask is checked before (`public/classes.py`); here only servers of the class's members are touched,
whatever ids were sent. Servers with a GPU are ended here, by their lease; the hub is asked to stop the
others, with the sender's own token, so that it decides who may.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ...core.errors import BadOption, GpuSpawnerError, LeaseConflict, NotAllowed, Refusal
from ...core.model import Lease, LeaseState
from ...core.quota import Subject, SubjectKind
from ...core.states import WITH_CONTAINER
from ...core.units import Clock, utc_now
from ...protocol.classes import (
    AnnouncementDocument,
    Chosen,
    ClassMessage,
    DoneDocument,
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
from .roster import ClassFacts, make_roster, of_class, servers_without_gpu

NO_HUB = "This broker is no service of a hub, so the members of classes are not known."
NO_TOKEN = "JupyterHub stops servers without a GPU: send an API token of JupyterHub, or use its Admin page."
_AT_ONCE = 8
"""Containers that Docker removes at the same time, and servers that the hub is asked to stop."""

StopThroughHub = Callable[[str, str, str], Awaitable[bool]]
"""Stops a server through the hub, with the sender's token, by user and name; see `HubServers.stop`."""


@dataclass(frozen=True, slots=True)
class ClassParts:
    """What the classes use. `use` says by id what leases use.

    `people` and `stop_through_hub` are None where no hub can be asked.
    """

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
    stop_through_hub: StopThroughHub | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """Servers that the sender chose: by lease, or by user and name those without a GPU; or `everybody`'s."""

    lease_ids: tuple[str, ...] = ()
    servers: tuple[tuple[str, str], ...] = ()
    everybody: bool = False


def picked_by(asked: Chosen) -> Picked:
    """What a message chooses."""
    servers = tuple((each.user, each.server) for each in asked.servers)
    return Picked(asked.lease_ids, servers, asked.everybody)


@dataclass(frozen=True, slots=True)
class _Found:
    """The class's servers among those that were chosen; `strangers` are not the class's, or have ended."""

    leases: tuple[Lease, ...] = ()
    without_gpu: tuple[tuple[str, str], ...] = ()
    strangers: int = 0


@dataclass(slots=True)
class _Tally:
    """For how many servers it worked, and a sentence for each other one."""

    done: int = 0
    refused: list[str] = field(default_factory=list)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def do(self, user: str, server: str, work: Callable[[], Awaitable[object]]) -> None:
        """Does it, a few at a time."""
        async with self.slots:
            try:
                await work()
            except GpuSpawnerError as error:
                text = error.message if isinstance(error, Refusal) else str(error)
                self.refused.append(f"{user}{f', server {server!r}' if server else ''}: {text}")
            else:
                self.done += 1

    def document(self, verb: str, strangers: int) -> DoneDocument:
        """The answer. Raises LeaseConflict if it worked for none: then nothing was changed."""
        refused = sorted(self.refused)
        if strangers == 1:
            refused.append("1 server has ended meanwhile, or is not of this class.")
        elif strangers:
            refused.append(f"{strangers} servers have ended meanwhile, or are not of this class.")
        if not self.done:
            raise LeaseConflict(" ".join([f"No server was {verb}.", *refused]))
        return DoneDocument(done=self.done, refused=tuple(refused))


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
        last_at = await parts.ledger.last_ended(hub, members.names)
        if parts.people is not None and _is_older(servers, last_at):
            parts.people.forget_servers()
            servers = await parts.people.servers()
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
            last_at=last_at,
            servers_ended=await parts.ledger.servers_ended(hub, members.names),
        )
        roster = make_roster(facts, parts.clock())
        return roster.model_copy(update={"message": self._message(group)})

    async def stop(self, hub: str, group: str, picked: Picked, author: str, token: str = "") -> DoneDocument:
        """End servers of the class. Without a `token` of the hub, those without a GPU stay.

        Raises BadOption if none was chosen, or nobody has a server; LeaseConflict if none could be stopped.
        """
        found, tally = await self._chosen(hub, group, picked), _Tally()
        reason = f"stopped by {author}, who teaches {group}"

        def end(lease: Lease) -> Awaitable[None]:
            return tally.do(lease.user, lease.server, lambda: self._parts.service.release(lease.id, reason))

        def stop(user: str, server: str) -> Awaitable[None]:
            return tally.do(user, server, lambda: self._stop_through_hub(token, user, server))

        await asyncio.gather(*map(end, found.leases), *(stop(*each) for each in found.without_gpu))
        if found.without_gpu and self._parts.people is not None:
            self._parts.people.forget_servers()
        return tally.document("stopped", found.strangers)

    async def extend(self, hub: str, group: str, picked: Picked, seconds: float, author: str) -> DoneDocument:
        """Make sessions of servers longer, each as far as its quota allows.

        Raises BadOption if none was chosen, LeaseConflict if none could be extended.
        """
        found, tally = await self._chosen(hub, group, picked), _Tally()
        running = [lease for lease in found.leases if lease.state in WITH_CONTAINER or not picked.everybody]

        def extend(lease: Lease) -> Awaitable[None]:
            work = lambda: self._parts.rules.extend(lease.id, seconds, author)  # noqa: E731
            return tally.do(lease.user, lease.server, work)

        await asyncio.gather(*map(extend, running))
        if not picked.everybody:
            tally.refused += [f"{user}: without a GPU, a server has no end." for user, _ in found.without_gpu]
        return tally.document("extended", found.strangers)

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

    async def _chosen(self, hub: str, group: str, picked: Picked) -> _Found:
        """The class's servers among these. Raises BadOption if there is none to do something with."""
        if not (picked.everybody or picked.lease_ids or picked.servers):
            raise BadOption("No server was chosen: mark at least one.")
        members, servers = await self._people(group)
        leases = of_class(self._leases(hub), group, members)
        living = tuple(lease for lease in leases if lease.state is not LeaseState.RELEASING)
        ended = await self._parts.ledger.servers_ended(hub, members.names)
        found = servers_without_gpu(leases, members, servers, ended)
        without_gpu = tuple((user, server.name) for user, server in found)
        if picked.everybody:
            if not living and not without_gpu:
                raise BadOption("Nobody of this class has a server.")
            return _Found(living, without_gpu)
        marked = tuple(lease for lease in living if lease.id in set(picked.lease_ids))
        named = tuple(each for each in without_gpu if each in set(picked.servers))
        wanted = len(set(picked.lease_ids)) + len(set(picked.servers))
        return _Found(marked, named, wanted - len(marked) - len(named))

    async def _stop_through_hub(self, token: str, user: str, server: str) -> None:
        """Raises NotAllowed, LeaseConflict or HubFault."""
        stop = self._parts.stop_through_hub
        if stop is None or not token:
            raise NotAllowed(NO_TOKEN)
        await stop(token, user, server)

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


def _is_older(servers: Servers, last_at: Mapping[str, datetime]) -> bool:
    """Whether the hub's list is from before a lease ended: its server would seem to run without a GPU."""
    if servers.as_of is None or servers.fault:  # a hub that does not answer is not asked each time
        return False
    return any(at > servers.as_of for user, at in last_at.items() if servers.of_user.get(user))
