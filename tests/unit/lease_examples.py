"""Two GPUs and leases with short names: what the allocator's tests by example have in common."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gpuspawner.model import Device, GpuRequest, Lease, LeaseState

NOON = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
SIZE = 80 << 30
GPU0 = Device("GPU-0", "H100 80GB", SIZE, index=0)
GPU1 = Device("GPU-1", "H100 80GB", SIZE, index=1)
GPU2 = Device("GPU-2", "H100 80GB", SIZE, index=2)
SIMULATED = Device("GPU-2", "H100 80GB", SIZE, index=2, simulated=True)
A, B, C, D = "a" * 32, "b" * 32, "c" * 32, "d" * 32


def request(lease_id: str, count: int = 1, model: str | None = None) -> GpuRequest:
    """Of the user who is called like the id."""
    return GpuRequest(lease_id, "hub", f"user-{lease_id[0]}", "", "gpu", count, model)


def lease(lease_id: str, state: LeaseState, *uuids: str, count: int = 1, **more: Any) -> Lease:
    """What the allocator makes of such a request."""
    return Lease(
        lease_id, "hub", f"user-{lease_id[0]}", "", "gpu", state, count, NOON, more.pop("since", NOON),
        device_uuids=uuids, memory_bytes=SIZE * len(uuids), **more,
    )  # fmt: skip


WAITING, RESERVED, RUNNING = LeaseState.WAITING, LeaseState.RESERVED, LeaseState.RUNNING
RELEASING, CLOSED = LeaseState.RELEASING, LeaseState.CLOSED
