"""Devices with one owner: whole GPUs and MIG instances. The container's device list holds them."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.model import ContainerPatch, Lease
from ...node.api import NodeEvent, Quota
from .mode import Wishes


class Whole:
    """The modes `whole` and `mig`. Nothing has to be prepared, and nothing runs on the node for them."""

    def begin(self) -> None:
        """Nothing to adopt."""

    async def prepare(self, lease: Lease) -> None:
        """They are ready."""

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """Nothing is added."""
        return patch

    def quotas(self, lease: Lease) -> Iterable[Quota]:
        """No limit of memory; the guard learns whose the device is, and ends what others run on it."""
        return [Quota(lease.id, str(lease.container_id), uuid, None) for uuid in lease.device_uuids]

    def follow(self, lease: Lease) -> None:
        """Nothing changes."""

    def leave(self, lease: Lease) -> None:
        """Nothing to clean up."""

    def wishes(self) -> Wishes:
        """None."""
        return Wishes()

    def obstacle(self, uuid: str) -> str:
        """There is none."""
        return ""

    async def on_event(self, event: NodeEvent) -> None:
        """Nothing runs for these devices that could change."""

    def end(self) -> frozenset[str]:
        """Nothing to end."""
        return frozenset()
