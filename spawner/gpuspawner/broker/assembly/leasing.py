"""Makes what serves leases: the lease service, the leases' folders, and what ends servers."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.model import ContainerPatch, Lease
from ...core.states import AWAKE
from ..leases.endings import EndingParts, Endings
from ..leases.folders import DiskFolders
from ..leases.leasing import LeaseService, Parts
from ..leases.prestart import Prestart
from ..leases.unknown import UnknownServers
from ..pages.look import hub_of
from .deciding import Deciding
from .ground import Ground
from .machines import Machines


@dataclass(frozen=True, slots=True)
class Leasing:
    """One a broker. `unknown` finds servers that the hub doesn't know, `prestart` starts servers for lab
    sessions; both are None if no hub started this broker."""

    service: LeaseService
    folders: DiskFolders
    endings: Endings
    unknown: UnknownServers | None
    prestart: Prestart | None

    def unknown_ids(self) -> frozenset[str]:
        """The leases whose server the hub doesn't know."""
        return frozenset() if self.unknown is None else self.unknown.ids()


async def open_leasing(ground: Ground, deciding: Deciding, machines: Machines) -> Leasing:
    """Removes the folders of ended leases, and takes up those that live. Raises LedgerFault."""
    service, folders = await _open_service(ground, deciding, machines)
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
    return Leasing(service, folders, endings, unknown, prestart)


async def _open_service(
    ground: Ground, deciding: Deciding, machines: Machines
) -> tuple[LeaseService, DiskFolders]:
    state_dir, allocator = ground.settings.state_dir, deciding.allocator
    folders = DiskFolders(state_dir, simulated=machines.simulated, notice_of=deciding.announcements.notice_of)
    await folders.keep_only({lease.id for lease in allocator.leases()})

    def make_patch(lease: Lease) -> ContainerPatch:
        return machines.patch(lease, folders.path(lease.id))

    parts = Parts(
        broker=str(state_dir),
        allocator=allocator,
        ledger=ground.ledger,
        engine=ground.engine,
        folders=folders,
        make_patch=make_patch,
        metrics=ground.metrics,
        prepare=machines.prepare,
        before_close=machines.before_close,
    )
    service = LeaseService(parts, ground.log)
    service.restore()
    return service, folders


def _make_endings(ground: Ground, deciding: Deciding, machines: Machines, service: LeaseService) -> Endings:
    parts = EndingParts(
        rulebook=deciding.rulebook,
        gate=deciding.gate,
        allocator=deciding.allocator,
        service=service,
        gpu_use=machines.gpu_use,
        idle=ground.settings.idle,
        timezone=ground.settings.site.timezone,
        sleep=machines.rest,
        can_sleep=machines.can_rest,
    )
    endings = Endings(parts, ground.log)
    machines.on_running = endings.look_soon
    return endings
