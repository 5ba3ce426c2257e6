"""Makes what serves leases: the lease service, the leases' folders, and what ends servers."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.hub_name import hub_of
from ...core.model import ContainerPatch, Lease
from ...core.states import AWAKE
from ...node.local_folders import LocalFolders
from ..leases.endings import EndingParts, Endings
from ..leases.engines import Engines
from ..leases.folders import Place, PlacedFolders
from ..leases.leasing import LeaseService, Parts
from ..leases.prestart import Prestart
from ..leases.unknown import UnknownServers
from .deciding import Deciding
from .ground import Ground
from .machines import Machines


@dataclass(frozen=True, slots=True)
class Leasing:
    """One a broker. `unknown` finds servers that the hub doesn't know, `prestart` starts servers for lab
    sessions; both are None if no hub started this broker."""

    service: LeaseService
    folders: PlacedFolders
    own_folders: LocalFolders
    endings: Endings
    unknown: UnknownServers | None
    prestart: Prestart | None

    def unknown_ids(self) -> frozenset[str]:
        """The leases whose server the hub doesn't know."""
        return frozenset() if self.unknown is None else self.unknown.ids()


async def open_leasing(ground: Ground, deciding: Deciding, machines: Machines) -> Leasing:
    """Removes the folders of ended leases, and takes up those that live. Raises LedgerFault."""
    own_folders = LocalFolders(ground.settings.state_dir)
    await own_folders.keep_only({lease.id for lease in deciding.allocator.leases()})
    folders = _make_folders(own_folders, deciding, machines)
    service = _open_service(ground, deciding, machines, folders)
    unknown, prestart = None, None
    if (hub := ground.hub_api) is not None:
        allocator, log = deciding.allocator, ground.log
        unknown = UnknownServers(hub, allocator.leases, hub_of(ground.settings.config), log)

        def running_users() -> set[str]:
            """Users whose default server holds a GPU and runs."""
            return {each.user for each in allocator.leases() if not each.server and each.state in AWAKE}

        at_once = ground.settings.site.prestart_at_once
        prestart = Prestart(deciding.rulebook, hub, running_users, at_once, log)
    endings = _make_endings(ground, deciding, machines, service)
    return Leasing(service, folders, own_folders, endings, unknown, prestart)


def _make_folders(own: LocalFolders, deciding: Deciding, machines: Machines) -> PlacedFolders:
    here = Place(own, own.root, machines.simulated)
    return PlacedFolders(
        lambda lease: machines.place_of(lease) or here,
        deciding.allocator.lease,
        notice_of=deciding.announcements.notice_of,
    )


def _open_service(
    ground: Ground, deciding: Deciding, machines: Machines, folders: PlacedFolders
) -> LeaseService:
    def make_patch(lease: Lease) -> ContainerPatch:
        return machines.patch(lease, folders.path(lease))

    parts = Parts(
        broker=str(ground.settings.state_dir),
        allocator=deciding.allocator,
        ledger=ground.ledger,
        engines=Engines(machines.own_engine, machines.engine_of, machines.leases_with),
        folders=folders,
        make_patch=make_patch,
        metrics=ground.metrics,
        prepare=machines.prepare,
        before_close=machines.before_close,
    )
    service = LeaseService(parts, ground.log)
    service.restore()
    return service


def _make_endings(ground: Ground, deciding: Deciding, machines: Machines, service: LeaseService) -> Endings:
    parts = EndingParts(
        rulebook=deciding.rulebook,
        gate=deciding.gate,
        allocator=deciding.allocator,
        service=service,
        ledger=ground.ledger,
        gpu_use=machines.gpu_use,
        idle=ground.settings.idle,
        timezone=ground.settings.site.timezone,
        sleep=machines.rest,
        can_sleep=machines.can_rest,
    )
    endings = Endings(parts, ground.log)
    machines.on_running = endings.look_soon
    return endings
