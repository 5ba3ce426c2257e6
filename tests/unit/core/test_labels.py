"""Labels: what is written for a lease reads back as that lease, and nothing is made up from odd ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpuspawner.core import labels
from gpuspawner.core.errors import LeaseConflict
from gpuspawner.core.labels import ContainerLabels, Owner
from gpuspawner.core.model import Lease
from gpuspawner.core.want import Mode, Want

from tests.unit.lease_examples import NOON, RUNNING, TRAIN

GIB = 1 << 30
PLAIN = ContainerLabels("a" * 32, "here", "hub", "anna", "train", "gpu", ("GPU-1",))
SLICED = replace(
    TRAIN, device_uuids=("GPU-1",), memory_bytes=8 * GIB, compute_percent=12.5, mps=True,
    want=Want(1, mode=Mode.SLICE, memory_bytes=8 * GIB, compute_percent=12.5),
)  # fmt: skip


@pytest.mark.parametrize(
    "lease",
    [TRAIN, replace(TRAIN, want=Want(2, mode=Mode.MIG)), SLICED,
     replace(SLICED, compute_percent=100.0, mps=False, want=replace(SLICED.want, compute_percent=None))],
)  # fmt: skip
def test_a_lease_reads_back_from_its_labels(lease: Lease) -> None:
    found = labels.parse({**labels.lease_labels(lease), **labels.broker_label("here"), "course": "ml"})
    assert (found.broker, found.tells_lease) == ("here", True)
    assert found.lease("c1", NOON, lease.memory_bytes) == replace(lease, state=RUNNING, container_id="c1")


def test_the_labels_whole() -> None:
    assert labels.lease_labels(SLICED) == {
        "gpuspawner.lease": TRAIN.id,
        "gpuspawner.hub": "hub-1",
        "gpuspawner.user": "ada",
        "gpuspawner.server": "train",
        "gpuspawner.tier": "pair",
        "gpuspawner.devices": "GPU-1",
        "gpuspawner.mode": "slice",
        "gpuspawner.memory-bytes": "8589934592",
        "gpuspawner.compute-percent": "12.5",
    }


@pytest.mark.parametrize("found", [None, {}, {"gpuspawner.devices": ",,", "course": "ml"}])
def test_where_nothing_is_said_nothing_is_known(found: dict[str, str] | None) -> None:
    assert labels.parse(found) == ContainerLabels()
    assert not labels.parse(found).tells_lease


@pytest.mark.parametrize(
    "odd",
    [{"user": ""}, {"hub": ""}, {"device_uuids": ()}, {"lease_id": "../../etc"}, {"lease_id": "A" * 32}],
)
def test_labels_that_do_not_tell_their_lease(odd: dict[str, object]) -> None:
    assert PLAIN.tells_lease
    assert not replace(PLAIN, **odd).tells_lease  # type: ignore[arg-type]


def test_a_lease_from_labels() -> None:
    assert PLAIN.lease("c1", NOON, 80) == Lease(
        id="a" * 32, hub="hub", user="anna", server="train", tier="gpu", state=RUNNING, want=Want(1),
        created_at=NOON, since=NOON, device_uuids=("GPU-1",), memory_bytes=80, container_id="c1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"mode": "whole"}, {"memory_bytes": 80}),
        ({"mode": "mig"}, {"memory_bytes": 80, "want": Want(1, mode=Mode.MIG)}),
        (
            {"mode": "slice", "memory_bytes": "20", "compute_percent": "12.5"},
            {
                "want": Want(1, mode=Mode.SLICE, memory_bytes=20, compute_percent=12.5),
                "memory_bytes": 20, "compute_percent": 12.5, "mps": True,
            },
        ),
        (
            {"mode": "slice", "memory_bytes": "20"},
            {"want": Want(1, mode=Mode.SLICE, memory_bytes=20), "memory_bytes": 20},
        ),
        (
            {"mode": "turns", "memory_bytes": "20", "device_uuids": ("GPU-2", "GPU-1")},
            {
                "want": Want(1, mode=Mode.TURNS, memory_bytes=20), "memory_bytes": 20,
                "device_uuids": ("GPU-2", "GPU-1"),
            },
        ),
    ],
)  # fmt: skip
def test_a_share_from_labels(said: dict[str, str], told: dict[str, object]) -> None:
    base = PLAIN.lease("c1", NOON, 80)
    assert replace(PLAIN, **said).lease("c1", NOON, 80) == replace(base, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        {"mode": "slice"},
        {"mode": "slice", "memory_bytes": "0"},
        {"mode": "slice", "memory_bytes": "-1"},
        {"mode": "slice", "memory_bytes": "much"},
        {"mode": "slice", "memory_bytes": "20", "compute_percent": "nan"},
        {"mode": "slice", "memory_bytes": "20", "compute_percent": "101"},
        {"mode": "slice", "memory_bytes": "20", "device_uuids": ("GPU-1", "GPU-2")},
        {"mode": "turns"},
        {"mode": "turns", "memory_bytes": "0"},
        {"mode": "other", "memory_bytes": "20"},
    ],
)
def test_a_share_that_labels_do_not_tell_is_not_made_up(said: dict[str, object]) -> None:
    with pytest.raises(LeaseConflict, match="Its labels don't say how much of its device it holds"):
        replace(PLAIN, **said).lease("c1", NOON, 80)  # type: ignore[arg-type]


def test_whose_a_container_is() -> None:
    owner = Owner("hub", "ada", "", "gpu")
    assert owner.owns({**owner.labels(), labels.TIER: "cpu"})
    assert not owner.owns({**owner.labels(), labels.USER: "eve"})
    assert not owner.owns(None)


def test_two_hubs_of_one_name_differ_in_their_state_folder() -> None:
    owner = Owner("hub", "ada", "", "gpu", "/srv/a")
    assert owner.labels() == {
        "gpuspawner.hub": "hub",
        "gpuspawner.user": "ada",
        "gpuspawner.server": "",
        "gpuspawner.tier": "gpu",
        "gpuspawner.state-folder": "/srv/a",
    }
    assert owner.owns(owner.labels())
    assert not owner.owns({**owner.labels(), labels.STATE_FOLDER: "/srv/b"})
    assert owner.owns(Owner("hub", "ada", "", "gpu").labels())
