"""Computes the steps that make ledger and Docker agree, from leases and containers. Pure.

The caller reads the leases first and the containers after them, so that a lease that is running in
`leases` had its container before `containers` was read: not finding one means that it is gone.
`leasing.py` carries out the steps, with the same release code as for every other release.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...core.model import Lease, LeaseState
from ...core.states import AWAKE, Event, can
from ...node.engine import Container


@dataclass(frozen=True, slots=True)
class SetRunning:
    """Its container runs: the lease is in use."""

    lease: Lease
    container_id: str


@dataclass(frozen=True, slots=True)
class Charge:
    """Its container runs, but no awake interval is open: Docker started it again after a reboot."""

    lease: Lease
    container_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """The lease has ended: remove what carries its label, then free its devices.

    `ended` is the container that had it and stopped, if it is still there to be asked when.
    """

    lease: Lease
    reason: str
    ended: Container | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    """A container that must not exist. `unexpected`: an invariant was broken."""

    container: Container
    reason: str
    unexpected: bool = False


@dataclass(frozen=True, slots=True)
class Adopt:
    """A running container whose lease the ledger has lost: adopt the lease, or stop the container."""

    container: Container


Step = SetRunning | Charge | Release | Remove | Adopt


@dataclass(frozen=True, slots=True)
class Facts:
    """The input of one round.

    `leases` are the living ones, read before `containers`. `kept` are the ids of those whose hold is
    open, or may yet be made again after a restart of the broker. `closed` are the ids of leases that
    the ledger knows as closed. `broker` is this broker's name on its containers: one of another broker
    matters only if it carries a lease of ours. `ending` are the ids of containers that are being ended
    already, or could not be a moment ago. `uncharged` are the ids of running leases without an open interval.
    """

    leases: Sequence[Lease]
    containers: Sequence[Container]
    kept: Collection[str] = frozenset()
    closed: Collection[str] = frozenset()
    broker: str = ""
    ending: Collection[str] = frozenset()
    uncharged: Collection[str] = frozenset()

    def going(self, container: Container) -> bool:
        """Whether it is being removed, so that the only thing to do is to wait."""
        return container.state == "removing" or container.id in self.ending


def plan(facts: Facts) -> tuple[Step, ...]:
    """The steps that make ledger and Docker agree; empty if they agree."""
    by_lease: Mapping[str, list[Container]] = _by_lease(facts.containers)
    living = {lease.id for lease in facts.leases}
    steps: list[Step] = []
    for lease in facts.leases:
        steps.extend(_plan_lease(lease, by_lease.get(lease.id, []), facts))
    for container in facts.containers:
        if container.lease_id not in living and container.labels.broker == facts.broker:
            steps.extend(_plan_stray(container, facts))
    return tuple(steps)


def unknown_ids(leases: Iterable[Lease], containers: Iterable[Container]) -> tuple[str, ...]:
    """Lease ids on containers that match no living lease: the caller looks them up in the ledger."""
    living = {lease.id for lease in leases}
    return tuple(sorted({item.lease_id for item in containers} - living))


def _plan_lease(lease: Lease, containers: list[Container], facts: Facts) -> list[Step]:
    alive = [item for item in containers if item.alive]
    kept = lease.id in facts.kept
    match lease.state:
        case LeaseState.WAITING:
            steps: list[Step] = [
                Remove(item, "its lease is still waiting", unexpected=True)
                for item in containers
                if not facts.going(item)
            ]
            return steps if kept else [*steps, Release(lease, "nobody waits for it any more")]
        case LeaseState.RESERVED:
            if alive:
                return _use(lease, alive, containers, facts)
            return [] if kept else [Release(lease, "the spawn was given up")]
        case LeaseState.RUNNING | LeaseState.ASLEEP:
            if alive:
                return _use(lease, alive, containers, facts)
            if not containers:
                return [Release(lease, "its container is gone")]
            if kept:  # it failed to start: the spawner that holds it may read its log first
                return []
            return [Release(lease, "its container has ended", containers[-1])]
        case LeaseState.RELEASING:
            if containers and all(map(facts.going, containers)):
                return []  # the lease is closed when their removal ends
            return [Release(lease, lease.reason or "released")]
        case _:
            return []


def _use(lease: Lease, alive: list[Container], containers: list[Container], facts: Facts) -> list[Step]:
    """One running container keeps the lease, preferably the one that has it; others are removed."""
    used = next((item for item in alive if item.id == lease.container_id), alive[0])
    steps: list[Step] = []
    if can(lease.state, Event.START):
        steps.append(SetRunning(lease, used.id))
    elif lease.state in AWAKE and lease.id in facts.uncharged:
        steps.append(Charge(lease, used.id))
    for item in containers:
        if item.id != used.id and not facts.going(item):
            steps.append(Remove(item, "another container has its lease", unexpected=item.alive))
    return steps


def _plan_stray(container: Container, facts: Facts) -> list[Step]:
    """A container without a living lease: only a running container of an unknown lease may be kept."""
    if facts.going(container):
        return []
    if container.lease_id in facts.closed:
        return [Remove(container, "its lease is closed", unexpected=container.alive)]
    if container.alive and container.labels.tells_lease:
        return [Adopt(container)]
    return [Remove(container, "the ledger doesn't know its lease", unexpected=container.alive)]


def _by_lease(containers: Iterable[Container]) -> dict[str, list[Container]]:
    found: dict[str, list[Container]] = defaultdict(list)
    for container in sorted(containers, key=lambda item: (item.created_unix_seconds, item.id)):
        found[container.lease_id].append(container)
    return dict(found)
