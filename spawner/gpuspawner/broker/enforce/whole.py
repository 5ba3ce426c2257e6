"""Devices with one owner: whole GPUs and MIG instances. The container's device list enforces the quota."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.model import ContainerPatch, Lease
from ...node.api import NodeEvent, Quota
from .mode import Wishes


class Whole:
    """The modes `whole` and `mig`. They need no preparation, and no process on the node."""

    def begin(self) -> None:
        """Nothing to adopt."""

    async def prepare(self, lease: Lease) -> None:
        """Does nothing: the devices are ready."""

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """Returns the patch unchanged."""
        return patch

    def quotas(self, lease: Lease) -> Iterable[Quota]:
        """No memory limit; the guard learns the owner, and ends other containers' processes."""
        return [Quota(lease.id, str(lease.container_id), uuid, None) for uuid in lease.device_uuids]

    def follow(self, lease: Lease) -> None:
        """Does nothing."""

    def leave(self, lease: Lease) -> None:
        """Does nothing."""

    def wishes(self) -> Wishes:
        """Nothing."""
        return Wishes()

    def obstacle(self, uuid: str) -> str:
        """Always ""."""
        return ""

    async def on_event(self, event: NodeEvent) -> None:
        """Does nothing: no process runs for these devices."""

    def end(self) -> frozenset[str]:
        """No GPUs: nothing has to end."""
        return frozenset()
