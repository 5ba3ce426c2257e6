"""The documents that the broker shows, made from memory: status and tiers. Pure."""

from __future__ import annotations

from typing import Any

from ..model import Lease, Mode, Tier, guarantee_of
from ..wire import time_to_text
from .snapshot import Capacity, DeviceView, QueueEntry, Snapshot

Document = dict[str, Any]


def status_document(snapshot: Snapshot, simulated: bool) -> Document:
    """Devices, leases and queue as JSON values: units in the key names, times in UTC with "Z"."""
    return {
        "simulated": simulated,
        "devices": [_device(view) for view in snapshot.devices],
        "leases": [_lease(lease) for lease in snapshot.leases],
        "queue": [_entry(entry) for entry in snapshot.queue],
    }


def tier_document(tier: Tier, capacity: Capacity | None, simulated: bool) -> Document:
    """One tier for the spawn page; `capacity` is None for a tier without a GPU."""
    return {
        "name": tier.name,
        "title": tier.title,
        "description": tier.description,
        "device_count": tier.device_count,
        "model": tier.model,
        "guarantee": None if capacity is None else guarantee_of(tier.mode, simulated).value,
        "free": None if capacity is None else capacity.free,
        "total": None if capacity is None else capacity.total,
        "waiting": 0 if capacity is None else capacity.waiting,
    }


def _device(view: DeviceView) -> Document:
    device = view.device
    holder = view.holders[0] if view.holders else None
    capability = device.compute_capability
    since = view.health.since if not view.health.healthy else (holder.since if holder else None)
    return {
        "uuid": device.uuid,
        "model": device.model,
        "index": device.index,
        "memory_bytes": device.memory_bytes,
        "compute_capability": None if capability is None else f"{capability[0]}.{capability[1]}",
        "healthy": view.health.healthy,
        "reason": view.health.reason,
        "since": None if since is None else time_to_text(since),
        "guarantee": guarantee_of(Mode.WHOLE, device.simulated).value,
        "simulated": device.simulated,
        "lease_id": holder.id if holder else None,
        "user": holder.user if holder else None,
        "server": holder.server if holder else None,
    }


def _lease(lease: Lease) -> Document:
    return {
        "id": lease.id,
        "user": lease.user,
        "server": lease.server,
        "hub": lease.hub,
        "tier": lease.tier,
        "state": lease.state.value,
        "device_uuids": list(lease.device_uuids),
        "memory_bytes": lease.memory_bytes,
        "compute_percent": lease.compute_percent,
        "since": time_to_text(lease.since),
        "notice": lease.notice,
    }


def _entry(entry: QueueEntry) -> Document:
    lease = entry.lease
    return {
        "id": lease.id,
        "user": lease.user,
        "server": lease.server,
        "hub": lease.hub,
        "tier": lease.tier,
        "position": entry.position,
        "since": time_to_text(lease.created_at),
    }
