"""GPUs and leases that several tests look at."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gpuspawner.core.model import Device, GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Want

NOON = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
SIZE = 80 << 30
GPU0 = Device("GPU-0", "H100 80GB", SIZE, index=0)
GPU1 = Device("GPU-1", "H100 80GB", SIZE, index=1)
GPU2 = Device("GPU-2", "H100 80GB", SIZE, index=2)
SIMULATED = Device("GPU-2", "H100 80GB", SIZE, index=2, simulated=True)
A, B, C, D = "a" * 32, "b" * 32, "c" * 32, "d" * 32


def request(lease_id: str, count: int = 1, model: str | None = None) -> GpuRequest:
    """Of the user who is called like the id."""
    return GpuRequest(lease_id, "hub", f"user-{lease_id[0]}", "", "gpu", Want(count, model))


def lease(lease_id: str, state: LeaseState, *uuids: str, count: int = 1, **more: Any) -> Lease:
    """What the allocator makes of such a request."""
    return Lease(
        lease_id, "hub", f"user-{lease_id[0]}", "", "gpu", state, Want(count), NOON, more.pop("since", NOON),
        device_uuids=uuids, memory_bytes=SIZE * len(uuids),
        device_fractions=more.pop("fractions", (1.0,) * len(uuids)), **more,
    )  # fmt: skip


WAITING, RESERVED, RUNNING = LeaseState.WAITING, LeaseState.RESERVED, LeaseState.RUNNING
RELEASING, CLOSED = LeaseState.RELEASING, LeaseState.CLOSED

PAIR = Lease(
    id="1" * 32, hub="hub", user="ada", server="", tier="gpu", state=RESERVED, want=Want(2, "H100"),
    created_at=NOON, since=NOON, device_uuids=("GPU-b", "GPU-a"), memory_bytes=160 << 30,
)  # fmt: skip
PAIR_RUNNING = replace(PAIR, state=RUNNING, container_id="c" * 64)

UUIDS = ("GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002")
TRAIN = Lease(
    id="0123456789abcdef" * 2, hub="hub-1", user="ada", server="train", tier="pair", state=RESERVED,
    want=Want(2), created_at=NOON, since=NOON, device_uuids=UUIDS, memory_bytes=171_041_619_968,
)  # fmt: skip
