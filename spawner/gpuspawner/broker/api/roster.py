"""A class at a glance: who has a server, who waits, who never started, and who is stuck. Pure.

A member is stuck if a program of theirs was ended, their GPU broke, or their wait or start takes too long.
What isn't known is left out, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from ...core.model import Lease, LeaseState
from ...core.units import format_bytes
from ...protocol.classes import MemberDocument, MemberState, RosterDocument
from ..decide.place.notice import is_withdrawal
from ..decide.snapshot import QueueEntry
from ..leases.hub_api import HubServer
from ..leases.hub_people import Members, Servers
from ..leases.memory_notice import is_memory_notice
from ..ledger import EndedProcess
from ..observe.use import NOTHING_KNOWN, Use

ENDED_SECONDS = 900.0
"""After a program was ended, its user counts as stuck for this long: time to read, restart and run again."""
WAITS_SECONDS = 900.0
"""A longer wait counts as stuck: a quarter of an hour is a sixth of a usual class."""
STARTS_SECONDS = 300.0
"""A start takes seconds, and a minute or two if its image has to be pulled."""
ENDS_SECONDS = 120.0
"""Docker removes a container in seconds."""

_STATES = {
    LeaseState.WAITING: MemberState.WAITING,
    LeaseState.RESERVED: MemberState.STARTING,
    LeaseState.RUNNING: MemberState.RUNNING,
    LeaseState.ASLEEP: MemberState.ASLEEP,
    LeaseState.RELEASING: MemberState.ENDING,
}
_ORDER = tuple(MemberState)


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """Everything that a roster follows from; the maps are by lease id or by user, for one hub.

    `leases` and `ended` may be those of everybody: only the class's are used. `obstacles` say why a waiting
    lease can't be served at all, `last_at` when a user's last lease with a GPU ended, `servers_ended` when a
    server's last lease did, by user and name.
    """

    group: str
    members: Members
    leases: Sequence[Lease] = ()
    queue: Sequence[QueueEntry] = ()
    ended: Sequence[EndedProcess] = ()
    servers: Servers = field(default_factory=Servers)
    use: Mapping[str, Use] = field(default_factory=lambda: MappingProxyType({}))
    idle_since: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    ends_at: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    obstacles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    last_at: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    servers_ended: Mapping[tuple[str, str], datetime] = field(default_factory=lambda: MappingProxyType({}))


def of_class(leases: Iterable[Lease], group: str, members: Members) -> list[Lease]:
    """The leases of the class's members; before the hub has told them, of who asked as a member."""
    names = frozenset(members.names)
    if members.as_of is None:
        return [lease for lease in leases if group in lease.groups]
    return [lease for lease in leases if lease.user in names]


def servers_without_gpu(
    leases: Iterable[Lease],
    members: Members,
    servers: Servers,
    servers_ended: Mapping[tuple[str, str], datetime],
) -> Iterable[tuple[str, HubServer]]:
    """The members' servers that have no lease, by user, as far as the hub told them.

    The hub learns seconds later that a server has ended with its lease: it is left out, unless the hub is
    stopping it.
    """
    held = {(lease.user, lease.server) for lease in leases}
    for user in members.names:
        for server in servers.of_user.get(user, ()):
            ended_at = servers_ended.get((user, server.name))
            if (user, server.name) not in held and (server.ending or not is_over(server.since, ended_at)):
                yield user, server


def is_over(started_at: datetime | None, ended_at: datetime | None) -> bool:
    """Whether the server that the hub names has ended with its last lease, and wasn't started again since."""
    return started_at is not None and ended_at is not None and started_at <= ended_at


def make_roster(facts: ClassFacts, now: datetime) -> RosterDocument:
    """The roster: those who are stuck first, then who waits longest, then the others by state and name."""
    rows = sorted(_rows(facts, now), key=lambda row: _rank(row, now))
    counts = Counter(row.state for row in rows)
    return RosterDocument(
        group=facts.group,
        members_as_of=facts.members.as_of,
        message=None,
        members_fault=" ".join(filter(None, (facts.members.fault, facts.servers.fault))),
        counts={state: counts[state] for state in MemberState if counts[state]},
        stuck_count=sum(bool(row.stuck) for row in rows),
        members=tuple(rows),
    )


def _rows(facts: ClassFacts, now: datetime) -> Iterable[MemberDocument]:
    leases = of_class(facts.leases, facts.group, facts.members)
    entries = {entry.lease.id: entry for entry in facts.queue}
    with_server = {lease.user for lease in leases}
    for lease in leases:
        yield _of_lease(lease, entries.get(lease.id), facts, now)
    for user, server in servers_without_gpu(leases, facts.members, facts.servers, facts.servers_ended):
        with_server.add(user)
        yield _of_server(user, server)
    for user in facts.members.names:
        if user not in with_server:
            yield _without(user, facts.last_at.get(user))


def _rank(row: MemberDocument, now: datetime) -> tuple[bool, datetime, int, datetime, str, str]:
    waits = row.state is MemberState.WAITING
    return (
        not row.stuck,
        row.stuck_since or now if row.stuck else now,
        _ORDER.index(row.state),
        row.since or now if waits else now,
        row.user,
        row.server,
    )


def _of_lease(lease: Lease, entry: QueueEntry | None, facts: ClassFacts, now: datetime) -> MemberDocument:
    use = facts.use.get(lease.id, NOTHING_KNOWN)
    waits = lease.state is LeaseState.WAITING
    wait = None if entry is None else entry.wait
    stuck, stuck_since = _stuck(lease, facts, now)
    return MemberDocument(
        user=lease.user,
        server=lease.server,
        state=_STATES[lease.state],
        tier=lease.tier,
        lease_id=lease.id,
        since=lease.created_at if waits else lease.since,
        memory_used_bytes=use.memory_bytes,
        memory_quota_bytes=lease.memory_bytes or None,
        compute_percent=use.busy_percent,
        idle_since=facts.idle_since.get(lease.id),
        ends_at=facts.ends_at.get(lease.id),
        position=None if entry is None else entry.position,
        earliest_at=None if wait is None else datetime.fromtimestamp(wait.earliest_seconds, UTC),
        latest_at=None if wait is None else datetime.fromtimestamp(wait.latest_seconds, UTC),
        stuck=stuck,
        stuck_since=stuck_since,
        notice=lease.notice,
        last_at=None,
    )


def _of_server(user: str, server: HubServer) -> MemberDocument:
    state = MemberState.CPU if server.ready else MemberState.STARTING
    state = MemberState.ENDING if server.ending else state
    return _plain(user, server.name, state, tier=server.tier, since=server.since)


def _without(user: str, last_at: datetime | None) -> MemberDocument:
    state = MemberState.NEVER if last_at is None else MemberState.NOTHING
    return _plain(user, "", state, last_at=last_at)


def _plain(
    user: str,
    server: str,
    state: MemberState,
    *,
    tier: str = "",
    since: datetime | None = None,
    last_at: datetime | None = None,
) -> MemberDocument:
    """A member's row without a lease."""
    return MemberDocument(
        user=user, server=server, state=state, tier=tier, lease_id=None, since=since, memory_used_bytes=None,
        memory_quota_bytes=None, compute_percent=None, idle_since=None, ends_at=None, position=None,
        earliest_at=None, latest_at=None, stuck="", stuck_since=None, notice="", last_at=last_at,
    )  # fmt: skip


def _stuck(lease: Lease, facts: ClassFacts, now: datetime) -> tuple[str, datetime | None]:
    """Why the server's user can't go on, and since when; ("", None) if nothing is known."""
    match lease.state:
        case LeaseState.WAITING:
            return _stuck_in_queue(lease, facts.obstacles.get(lease.id, ""), now)
        case LeaseState.RESERVED if now - lease.since > timedelta(seconds=STARTS_SECONDS):
            return "The server's start takes long: its image may still be pulled.", lease.since
        case LeaseState.RELEASING if now - lease.since > timedelta(seconds=ENDS_SECONDS):
            return "The server can't be removed yet: its GPU isn't free.", lease.since
        case LeaseState.RUNNING | LeaseState.ASLEEP:
            return _stuck_at_work(lease, facts.ended, now)
        case _:
            return "", None


def _stuck_in_queue(lease: Lease, obstacle: str, now: datetime) -> tuple[str, datetime | None]:
    if obstacle:
        return obstacle, lease.created_at
    if now - lease.created_at > timedelta(seconds=WAITS_SECONDS):
        return f"Waiting long for a GPU. {_FREE_ONE}", lease.created_at
    return "", None


def _stuck_at_work(lease: Lease, ended: Iterable[EndedProcess], now: datetime) -> tuple[str, datetime | None]:
    if is_withdrawal(lease.notice):
        return "The GPU is out of service: a new server is needed.", None
    own = sorted((each for each in ended if each.lease_id == lease.id), key=lambda each: each.at)
    recent = [each for each in own if now - each.at <= timedelta(seconds=ENDED_SECONDS)]
    if recent:
        return _ended_sentence(recent), recent[-1].at
    if is_memory_notice(lease.notice):
        return "The server's memory (not the GPU's) was full: a kernel was ended.", None
    return "", None


def _ended_sentence(ended: Sequence[EndedProcess]) -> str:
    last = ended[-1]
    times = "" if len(ended) == 1 else f" {len(ended)} times"
    if last.offence == "memory" and last.quota_bytes is not None:
        used, quota = format_bytes(last.used_bytes), format_bytes(last.quota_bytes)
        what = f"more than the {quota} that it may use" if used == quota else f"used {used}, may use {quota}"
        return f"Out of GPU memory ({what}): kernel ended{times}. {_LESS_MEMORY}"
    return f"A program was ended{times}: {_OFFENCES.get(last.offence, 'it broke a rule of this GPU')}."


_LESS_MEMORY = "Try a smaller batch, or a tier with more memory."
_FREE_ONE = "Stop idle servers to free a GPU."
_OFFENCES = {
    "memory": "it used too much GPU memory",
    "no_lease": "it used a GPU that the server doesn't have",
    "bypassed_mps": "it bypassed MPS",
}
