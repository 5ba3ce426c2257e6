"""Builds the broker's documents, status and tiers, from memory. Pure; see `protocol.messages`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from ...core.disk import Disk
from ...core.machine import MachineView
from ...core.model import Guarantee, Lease, Tier, guarantee_of
from ...core.want import Mode, Want
from ...node.api import DriverFacts, Usage
from ...protocol.messages import (
    DeviceDocument,
    DiskDocument,
    DriverDocument,
    EndedDocument,
    LeaseDocument,
    MachineDocument,
    QueueDocument,
    ShareDocument,
    StatusDocument,
    TierDocument,
    TurnDocument,
)
from ..decide.place.placement import Kind, Room, Share, count_free, share_of
from ..decide.place.sharing_rules import worth_compute
from ..decide.snapshot import Capacity, DeviceView, QueueEntry, Snapshot, TurnView
from ..decide.turns import Turn
from ..decide.when.deadline import Deadline
from ..ledger import EndedProcess
from ..observe.use import NOTHING_KNOWN, Use


@dataclass(frozen=True, slots=True)
class News:
    """Facts besides the leases: the use of devices by UUID, devices without a guard and why, the
    ended processes, newest first, why the GPUs can't be listed now ("" if they can), the use of each lease by
    its id, when it ends, the leases whose server the hub doesn't know, the disks, and the machines."""

    usage: Mapping[str, Usage] = field(default_factory=dict)
    blind: Mapping[str, str] = field(default_factory=dict)
    ended: Sequence[EndedProcess] = ()
    fault: str = ""
    uses: Mapping[str, Use] = field(default_factory=dict)
    deadline_of: Callable[[str], Deadline | None] = lambda lease_id: None
    unknown: Collection[str] = frozenset()
    turns: Mapping[str, TurnView] = field(default_factory=dict)
    """By lease id, of leases in turns."""
    disks: Sequence[Disk] = ()
    machines: Sequence[MachineView] = ()


def status_document(snapshot: Snapshot, simulated: bool, news: News) -> StatusDocument:
    """Devices, leases and queue at this moment."""
    return StatusDocument(
        simulated=simulated,
        fault=news.fault,
        devices=tuple(device_document(view, news) for view in snapshot.devices),
        leases=tuple(lease_document(lease, news) for lease in snapshot.leases),
        queue=tuple(_entry(entry) for entry in snapshot.queue),
        ended=tuple(EndedDocument(**asdict(each)) for each in news.ended),
        disks=tuple(
            DiskDocument(**asdict(disk), state=disk.state, sentence=disk.sentence()) for disk in news.disks
        ),
        machines=tuple(MachineDocument(**asdict(each)) for each in news.machines),
    )


@dataclass(frozen=True, slots=True)
class Served:
    """What serves a tier with a GPU: how much is free, the kinds of devices, the smallest first, and what a
    server gets of one; None if no device matches."""

    capacity: Capacity
    kinds: Sequence[Kind] = ()
    share: Share | None = None


def tier_document(tier: Tier, served: Served | None, simulated: bool) -> TierDocument:
    """One tier for the spawn page; `served` is None for a tier without a GPU.

    `free` and `total` count devices, or slices of them.
    """
    if served is None:
        return TierDocument(
            name=tier.name,
            title=tier.title,
            description=tier.description,
            device_count=tier.want.device_count,
            model=tier.want.model,
        )
    capacity, share, kinds = served.capacity, served.share, served.kinds
    mode, mps = tier.want.mode, share is not None and share.mps
    return TierDocument(
        name=tier.name,
        title=tier.title,
        description=tier.description,
        device_count=tier.want.device_count,
        model=tier.want.model,
        mode=mode,
        device_models=tuple(dict.fromkeys(kind.model for kind in kinds)),
        device_memory_bytes=kinds[0].memory_bytes if kinds else None,
        memory_bytes=None if share is None else share.memory_bytes,
        compute_percent=None if share is None else share.compute_percent,
        guarantee=guarantee_of(mode, simulated),
        compute_guarantee=worth_compute(mode, mps, simulated),
        free=capacity.free,
        total=capacity.total,
        waiting=capacity.waiting,
        drained=capacity.drained,
    )


def driver_document(driver: DriverFacts | None) -> DriverDocument | None:
    """The driver's version and the newest CUDA that it runs; the spawner compares images with them."""
    if driver is None:
        return None
    return DriverDocument(version=driver.driver_version, cuda=driver.cuda_version)


def device_document(view: DeviceView, news: News) -> DeviceDocument:
    """One device, its holders and its readings."""
    device, terms = view.device, view.terms
    shared = _is_shared(view)
    mode = Mode.SLICE if shared else terms.mode
    mps = terms.mps if terms.sliced else all(lease.mps for lease in view.holders)
    usage, guarantee = news.usage.get(device.uuid, Usage()), guarantee_of(mode, device.simulated)
    unguarded = news.blind.get(device.uuid, "") if guarantee is Guarantee.GUARDED else ""
    holder = _holder(view, news.turns) if not shared else None
    capability = device.compute_capability
    since = view.health.since if not view.health.healthy else (holder.since if holder else None)
    free, total = _slices(view)
    return DeviceDocument(
        uuid=device.uuid,
        model=device.model,
        index=device.index,
        memory_bytes=device.memory_bytes,
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        pool=terms.pool,
        mode=mode,
        healthy=view.health.healthy,
        reason=view.health.reason,
        since=since,
        guarantee=Guarantee.NONE if unguarded else guarantee,
        compute_guarantee=worth_compute(mode, mps, device.simulated),
        unguarded_reason=unguarded,
        used_bytes=usage.used_bytes,
        utilization_percent=usage.utilization_percent,
        simulated=device.simulated,
        lease_id=holder.id if holder else None,
        user=holder.user if holder else None,
        server=holder.server if holder else None,
        free_slices=free,
        total_slices=total,
        free_memory_bytes=None if free is None else _room(view).free_memory_bytes if terms.sliced else 0,
        shares=tuple(_share(lease, view) for lease in view.holders) if shared else (),
        drained=view.drain is not None,
        free_seats=_room(view).free_seats if terms.in_turns else None,
        total_seats=terms.seats if terms.in_turns else None,
        node=view.node,
    )


def _holder(view: DeviceView, turns: Mapping[str, TurnView]) -> Lease | None:
    """Who has the whole device now: of leases in turns the one that is awake there."""
    for lease in view.holders:
        turn = turns.get(lease.id)
        here = turn is not None and turn.turn is Turn.AWAKE and turn.gpu_uuid == view.device.uuid
        if lease.mode is not Mode.TURNS or here:
            return lease
    return None


def _is_shared(view: DeviceView) -> bool:
    """Whether it is in a pool of slices, or still held in slices from before a change of settings."""
    return view.terms.sliced or any(lease.mode is Mode.SLICE for lease in view.holders)


def _room(view: DeviceView) -> Room:
    shares = tuple(share_of(lease, view.device) for lease in view.holders)
    return Room(view.device, shares, view.terms)


def _slices(view: DeviceView) -> tuple[int | None, int | None]:
    """How many slices are free, and how many a device has; None if it isn't sliced.

    If sizes differ, slices of the smallest size are counted: the maximum number of further leases.
    """
    terms = view.terms
    if not _is_shared(view):
        return None, None
    if not terms.sliced:
        return 0, len(view.holders)
    want = Want(1, mode=Mode.SLICE, memory_bytes=min(terms.sizes_bytes, default=None))
    room = _room(view)
    return count_free(want, room), count_free(want, replace(room, shares=()))


def _share(lease: Lease, view: DeviceView) -> ShareDocument:
    share = share_of(lease, view.device)
    return ShareDocument(
        lease_id=lease.id,
        user=lease.user,
        server=lease.server,
        hub=lease.hub,
        memory_bytes=share.memory_bytes,
        compute_percent=share.compute_percent,
        since=lease.since,
    )


def turn_document(view: TurnView) -> TurnDocument:
    """Where a lease in turns is."""
    held_up = None if view.held_up is None else view.held_up.value
    return TurnDocument(**{**asdict(view), "turn": view.turn.value, "held_up": held_up})


def lease_document(lease: Lease, news: News) -> LeaseDocument:
    """One lease: what it holds and uses, and when it ends."""
    use, deadline = news.uses.get(lease.id, NOTHING_KNOWN), news.deadline_of(lease.id)
    return LeaseDocument(
        id=lease.id,
        user=lease.user,
        server=lease.server,
        hub=lease.hub,
        tier=lease.tier,
        state=lease.state,
        device_uuids=lease.device_uuids,
        memory_bytes=lease.memory_bytes,
        compute_percent=lease.compute_percent,
        mode=lease.mode,
        since=lease.since,
        notice=lease.notice,
        turn=turn_document(news.turns[lease.id]) if lease.id in news.turns else None,
        groups=lease.groups,
        used_bytes=use.memory_bytes,
        busy_percent=use.busy_percent,
        ends_at=None if deadline is None else deadline.at,
        ends_because="" if deadline is None else deadline.cause.value,
        kept_asleep=lease.kept_asleep,
        unknown_to_hub=lease.id in news.unknown,
    )


def _entry(entry: QueueEntry) -> QueueDocument:
    lease, wait = entry.lease, entry.wait
    return QueueDocument(
        id=lease.id,
        user=lease.user,
        server=lease.server,
        hub=lease.hub,
        tier=lease.tier,
        position=entry.position,
        since=lease.created_at,
        earliest_at=None if wait is None else datetime.fromtimestamp(wait.earliest_seconds, UTC),
        latest_at=None if wait is None else datetime.fromtimestamp(wait.latest_seconds, UTC),
        groups=lease.groups,
    )
