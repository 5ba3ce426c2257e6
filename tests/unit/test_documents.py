"""The documents that API and pages show, whole."""

from __future__ import annotations

from datetime import UTC, datetime

from gpuspawner.broker.documents import status_document, tier_document
from gpuspawner.broker.placement import Share
from gpuspawner.broker.snapshot import Capacity, DeviceView, QueueEntry, Snapshot
from gpuspawner.model import Device, DeviceHealth, Lease, LeaseState, Tier

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
LATER = datetime(2025, 3, 1, 12, 5, tzinfo=UTC)
HELD = Device("GPU-1", "H100 80GB", 80 << 30, compute_capability=(9, 0), index=0)
LOST = Device("GPU-2", "Unknown", 40 << 30, simulated=True)
LEASE = Lease(
    "a" * 32, "hub", "anna", "train", "gpu", LeaseState.RUNNING, 1, NOW, LATER, device_uuids=("GPU-1",),
    memory_bytes=80 << 30, notice="Save your work.",
)  # fmt: skip
WAITING = Lease("b" * 32, "hub", "ben", "", "gpu", LeaseState.WAITING, 1, NOW, NOW)


def test_status() -> None:
    snapshot = Snapshot(
        devices=(
            DeviceView(HELD, DeviceHealth("GPU-1", True), (LEASE,)),
            DeviceView(LOST, DeviceHealth("GPU-2", False, "it is lost", NOW), ()),
        ),
        leases=(LEASE, WAITING),
        queue=(QueueEntry(WAITING, 1, 1),),
    )
    assert status_document(snapshot, simulated=False) == {
        "simulated": False,
        "devices": [
            {
                "uuid": "GPU-1", "model": "H100 80GB", "index": 0, "memory_bytes": 80 << 30,
                "compute_capability": "9.0", "pool": "whole", "mode": "whole", "healthy": True, "reason": "",
                "since": "2025-03-01T12:05:00Z", "guarantee": "hard", "compute_guarantee": "hard",
                "simulated": False, "lease_id": "a" * 32, "user": "anna", "server": "train",
                "free_slices": None, "total_slices": None, "free_memory_bytes": None, "shares": [],
            },
            {
                "uuid": "GPU-2", "model": "Unknown", "index": None, "memory_bytes": 40 << 30,
                "compute_capability": None, "pool": "whole", "mode": "whole", "healthy": False,
                "reason": "it is lost", "since": "2025-03-01T12:00:00Z", "guarantee": "none",
                "compute_guarantee": "none", "simulated": True, "lease_id": None, "user": None,
                "server": None, "free_slices": None, "total_slices": None, "free_memory_bytes": None,
                "shares": [],
            },
        ],
        "leases": [
            {
                "id": "a" * 32, "user": "anna", "server": "train", "hub": "hub", "tier": "gpu",
                "state": "running", "device_uuids": ["GPU-1"], "memory_bytes": 80 << 30,
                "compute_percent": 100.0, "mode": "whole", "since": "2025-03-01T12:05:00Z",
                "notice": "Save your work.",
            },
            {
                "id": "b" * 32, "user": "ben", "server": "", "hub": "hub", "tier": "gpu", "state": "waiting",
                "device_uuids": [], "memory_bytes": 0, "compute_percent": 100.0, "mode": "whole",
                "since": "2025-03-01T12:00:00Z", "notice": "",
            },
        ],
        "queue": [
            {
                "id": "b" * 32, "user": "ben", "server": "", "hub": "hub", "tier": "gpu", "position": 1,
                "since": "2025-03-01T12:00:00Z",
            },
        ],
    }  # fmt: skip


def test_a_tier_with_and_without_a_gpu() -> None:
    pair = Tier("pair", "Two H100", "For big models.", device_count=2, model="H100")
    share = Share("GPU-1", 80 << 30, 100.0)
    assert tier_document(pair, Capacity(3, 4, 1), simulated=False, share=share) == {
        "name": "pair", "title": "Two H100", "description": "For big models.", "device_count": 2,
        "model": "H100", "mode": "whole", "memory_bytes": 80 << 30, "compute_percent": 100.0,
        "guarantee": "hard", "compute_guarantee": "hard", "free": 3, "total": 4, "waiting": 1,
    }  # fmt: skip
    assert tier_document(Tier("cpu", "CPU"), None, simulated=True) == {
        "name": "cpu", "title": "CPU", "description": "", "device_count": 0, "model": None, "mode": None,
        "memory_bytes": None, "compute_percent": None, "guarantee": None, "compute_guarantee": None,
        "free": None, "total": None, "waiting": 0,
    }  # fmt: skip
