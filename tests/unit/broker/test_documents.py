"""The documents that API and pages show, whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gpuspawner.broker.api import documents
from gpuspawner.broker.api.documents import News
from gpuspawner.broker.decide.place.placement import Kind, Share
from gpuspawner.broker.decide.place.sharing_rules import WHOLE, SharingRules
from gpuspawner.broker.decide.snapshot import Capacity, DeviceView, QueueEntry, Snapshot, TurnView
from gpuspawner.broker.decide.turns import Turn
from gpuspawner.broker.ledger import EndedProcess
from gpuspawner.core.disk import Disk
from gpuspawner.core.machine import MachineState, MachineView
from gpuspawner.core.model import Device, DeviceHealth, Lease, LeaseState, Mode, Tier
from gpuspawner.core.want import Want
from gpuspawner.node.usage import Usage
from gpuspawner.protocol.messages import document

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
LATER = datetime(2025, 3, 1, 12, 5, tzinfo=UTC)
HELD = Device("GPU-1", "H100 80GB", 80 << 30, compute_capability=(9, 0), index=0)
LOST = Device("GPU-2", "Unknown", 40 << 30, simulated=True)
LEASE = Lease(
    "a" * 32, "hub", "anna", "train", "gpu", LeaseState.RUNNING, Want(1), NOW, LATER, device_uuids=("GPU-1",),
    memory_bytes=80 << 30, notice="Save your work.",
)  # fmt: skip
ENDED = EndedProcess(
    LATER, "memory", "a" * 32, "hub", "anna", "train", "c" * 64, "GPU-1", 7, "python3", 9, 8, 2.0,
    "It was over.",
)  # fmt: skip
NEWS = News(
    {"GPU-1": Usage(5 << 30, 71.0)},
    {},
    (ENDED,),
    "NVML hangs",
    unknown={"a" * 32},
    disks=(Disk("homes", "/var/lib/docker", 5 << 30, 100 << 30),),
    machines=(
        MachineView("b", MachineState.DRAINING, "by admin", NOW, None, "0.1.0", gpus=2, labels=("fast",)),
    ),
)
SLICE, TURNS = Want(1, mode=Mode.SLICE), Want(1, mode=Mode.TURNS)
WAITING = Lease("b" * 32, "hub", "ben", "", "gpu", LeaseState.WAITING, Want(1), NOW, NOW)


def status_document(*args: Any, **more: Any) -> dict[str, Any]:
    """As it stands on the socket."""
    return document(documents.status_document(*args, **more))


def tier_document(*args: Any, **more: Any) -> dict[str, Any]:
    """As it stands on the socket."""
    return document(documents.tier_document(*args, **more))


def test_status() -> None:
    snapshot = Snapshot(
        devices=(
            DeviceView(HELD, DeviceHealth("GPU-1", True), (LEASE,)),
            DeviceView(LOST, DeviceHealth("GPU-2", False, "it is lost", NOW), ()),
        ),
        leases=(LEASE, WAITING),
        queue=(QueueEntry(WAITING, 1, 1),),
    )
    assert status_document(snapshot, simulated=False, news=NEWS) == {
        "simulated": False,
        "fault": "NVML hangs",
        "devices": [
            {
                "uuid": "GPU-1", "model": "H100 80GB", "index": 0, "memory_bytes": 80 << 30,
                "compute_capability": "9.0", "pool": "whole", "mode": "whole", "healthy": True, "reason": "",
                "since": "2025-03-01T12:05:00Z", "guarantee": "hard", "compute_guarantee": "hard",
                "unguarded_reason": "", "drained": False, "used_bytes": 5 << 30, "utilization_percent": 71.0,
                "simulated": False, "lease_id": "a" * 32, "user": "anna", "server": "train",
                "free_slices": None, "total_slices": None, "free_memory_bytes": None, "shares": [],
                "free_seats": None, "total_seats": None, "node": "",
            },
            {
                "uuid": "GPU-2", "model": "Unknown", "index": None, "memory_bytes": 40 << 30,
                "compute_capability": None, "pool": "whole", "mode": "whole", "healthy": False,
                "reason": "it is lost", "since": "2025-03-01T12:00:00Z", "guarantee": "none",
                "compute_guarantee": "none", "unguarded_reason": "", "drained": False, "used_bytes": None,
                "utilization_percent": None, "simulated": True, "lease_id": None, "user": None,
                "server": None, "free_slices": None, "total_slices": None, "free_memory_bytes": None,
                "shares": [], "free_seats": None, "total_seats": None, "node": "",
            },
        ],
        "leases": [
            {
                "id": "a" * 32, "user": "anna", "server": "train", "hub": "hub", "tier": "gpu",
                "state": "running", "device_uuids": ["GPU-1"], "memory_bytes": 80 << 30,
                "compute_percent": 100.0, "mode": "whole", "since": "2025-03-01T12:05:00Z",
                "notice": "Save your work.", "groups": [], "turn": None, "unknown_to_hub": True,
                "used_bytes": None, "busy_percent": None, "ends_at": None, "ends_because": "",
                "kept_asleep": "",
            },
            {
                "id": "b" * 32, "user": "ben", "server": "", "hub": "hub", "tier": "gpu", "state": "waiting",
                "device_uuids": [], "memory_bytes": 0, "compute_percent": 100.0, "mode": "whole",
                "since": "2025-03-01T12:00:00Z", "notice": "", "groups": [], "turn": None,
                "unknown_to_hub": False, "used_bytes": None, "busy_percent": None, "ends_at": None,
                "ends_because": "", "kept_asleep": "",
            },
        ],
        "queue": [
            {
                "id": "b" * 32, "user": "ben", "server": "", "hub": "hub", "tier": "gpu", "position": 1,
                "since": "2025-03-01T12:00:00Z", "earliest_at": None, "latest_at": None,
                "groups": [],
            },
        ],
        "ended": [
            {
                "at": "2025-03-01T12:05:00Z", "offence": "memory", "lease_id": "a" * 32, "hub": "hub",
                "user": "anna", "server": "train", "container_id": "c" * 64, "device_uuid": "GPU-1", "pid": 7,
                "name": "python3", "used_bytes": 9, "quota_bytes": 8, "over_seconds": 2.0,
                "sentence": "It was over.", "groups": [],
            },
        ],
        "disks": [
            {
                "holds": "homes", "folder": "/var/lib/docker", "free_bytes": 5 << 30,
                "total_bytes": 100 << 30, "state": "low",
                "sentence": "5.0 GiB of 100 GiB free at /var/lib/docker: low",
            },
        ],
        "machines": [
            {
                "name": "b", "state": "draining", "reason": "by admin", "since": "2025-03-01T12:00:00Z",
                "heard_at": None, "release": "0.1.0", "own": False, "gpus": 2, "in_service": 0, "drained": 0,
                "leases": 0, "labels": ["fast"], "notices": [],
            },
        ],
    }  # fmt: skip


def test_slices_of_a_device_that_has_left_its_pool_are_shown_as_such() -> None:
    held = [
        replace(LEASE, id=letter * 32, user=user, want=SLICE, memory_bytes=8 << 30, mps=True)
        for letter, user in (("a", "anna"), ("b", "ben"))
    ]
    view = DeviceView(HELD, DeviceHealth("GPU-1", True), tuple(held), SharingRules())
    blind = News(blind={"GPU-1": "NVML hangs"})
    (found,) = status_document(Snapshot((view,), (), ()), simulated=False, news=NEWS)["devices"]
    (unguarded,) = status_document(Snapshot((view,), (), ()), simulated=False, news=blind)["devices"]
    keys = ("pool", "mode", "guarantee", "compute_guarantee", "lease_id", "free_slices", "total_slices")
    assert [found[key] for key in keys] == ["whole", "slice", "guarded", "guarded", None, 0, 2]
    assert [share["user"] for share in found["shares"]] == ["anna", "ben"]
    assert found["free_memory_bytes"] == 0
    assert unguarded["guarantee"] == "none"


def test_slices_that_nobody_guards_are_worth_nothing() -> None:
    """Whole devices are the container's alone: there it does not matter."""
    news = News(blind={"GPU-1": "NVML hangs"})
    views = tuple(
        DeviceView(HELD, DeviceHealth("GPU-1", True), (), terms)
        for terms in (SharingRules("s", Mode.SLICE, slices=2, mps=True), SharingRules())
    )
    devices = status_document(Snapshot(views, (), ()), simulated=False, news=news)["devices"]
    keys = ("guarantee", "compute_guarantee", "unguarded_reason")
    assert [[device[key] for key in keys] for device in devices] == [
        ["none", "guarded", "NVML hangs"], ["hard", "hard", ""],
    ]  # fmt: skip


def test_a_pool_of_turns_shows_who_is_awake_and_the_seats_of_all() -> None:
    other = replace(HELD, uuid="GPU-2", index=1)
    held = [
        replace(LEASE, id=letter * 32, user=user, want=TURNS, device_uuids=("GPU-1", "GPU-2"))
        for letter, user in (("a", "anna"), ("b", "ben"), ("c", "cem"))
    ]
    terms = SharingRules("turns", Mode.TURNS, seats=8)
    views = tuple(
        DeviceView(each, DeviceHealth(each.uuid, True), tuple(held), terms) for each in (HELD, other)
    )
    turns = {
        "a" * 32: TurnView(Turn.ASLEEP, NOW, None, 9 << 30, moves=True, position=1, wait_seconds=20.5),
        "b" * 32: TurnView(Turn.AWAKE, LATER, "GPU-2", 5 << 30, can_move=False),
    }
    snapshot = Snapshot(views, tuple(held), ())
    found = status_document(snapshot, simulated=False, news=News(turns=turns))
    keys = ("mode", "guarantee", "lease_id", "user", "free_slices", "free_seats", "total_seats", "shares")
    assert [[device[key] for key in keys] for device in found["devices"]] == [
        ["turns", "guarded", None, None, None, 5, 8, []],
        ["turns", "guarded", "b" * 32, "ben", None, 5, 8, []],
    ]  # fmt: skip
    assert [lease["turn"] for lease in found["leases"]] == [
        {
            "turn": "asleep", "since": "2025-03-01T12:00:00Z", "gpu_uuid": None, "memory_bytes": 9 << 30,
            "moves": True, "position": 1, "wait_seconds": 20.5, "can_move": True,
            "held_up": None,
        },
        {
            "turn": "awake", "since": "2025-03-01T12:05:00Z", "gpu_uuid": "GPU-2", "memory_bytes": 5 << 30,
            "moves": False, "position": None, "wait_seconds": None, "can_move": False,
            "held_up": None,
        },
        None,
    ]  # fmt: skip


def test_a_tier_with_and_without_a_gpu() -> None:
    pair = Tier("pair", "Two H100", "For big models.", want=Want(2, "H100"))
    kinds = (Kind("H100 80GB", 80 << 30, None, WHOLE), Kind("H100 94GB", 94 << 30, None, WHOLE))
    served = documents.Served(Capacity(3, 4, 1, 1), kinds, Share("GPU-1", 80 << 30, 100.0))
    assert tier_document(pair, served, simulated=False) == {
        "name": "pair", "title": "Two H100", "description": "For big models.", "device_count": 2,
        "model": "h100", "mode": "whole", "device_models": ["H100 80GB", "H100 94GB"],
        "device_memory_bytes": 80 << 30, "memory_bytes": 80 << 30, "compute_percent": 100.0,
        "guarantee": "hard", "compute_guarantee": "hard", "free": 3, "total": 4, "waiting": 1, "drained": 1,
    }  # fmt: skip
    assert tier_document(pair, documents.Served(Capacity(0, 0, 0)), simulated=False) == {
        "name": "pair", "title": "Two H100", "description": "For big models.", "device_count": 2,
        "model": "h100", "mode": "whole", "device_models": [], "device_memory_bytes": None,
        "memory_bytes": None, "compute_percent": None, "guarantee": "hard", "compute_guarantee": "hard",
        "free": 0, "total": 0, "waiting": 0, "drained": 0,
    }  # fmt: skip
    assert tier_document(Tier("cpu", "CPU"), None, simulated=True) == {
        "name": "cpu", "title": "CPU", "description": "", "device_count": 0, "model": None, "mode": None,
        "device_models": [], "device_memory_bytes": None, "memory_bytes": None, "compute_percent": None,
        "guarantee": None, "compute_guarantee": None, "free": None, "total": None, "waiting": 0, "drained": 0,
    }  # fmt: skip
