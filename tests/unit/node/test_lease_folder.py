"""The folder that a lease's container sees: whole files, readable by anybody, under the lease's id only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gpuspawner.core.errors import LedgerFault
from gpuspawner.core.model import Lease
from gpuspawner.node.lease_folder import TURN, USE, LeaseFolders, files_of

from tests.unit.lease_examples import TRAIN, UUIDS

A, B = UUIDS


def write(folders: LeaseFolders, lease: Lease, *, simulated: bool) -> Path:
    """As the broker writes it before the container is made."""
    folders.put(lease.id, files_of(lease, simulated), make=True)
    return folders.path(lease.id)


def test_the_lease_s_folder(tmp_path: Path) -> None:
    folders = LeaseFolders(tmp_path)
    assert folders.ids() == ()
    folder = write(folders, TRAIN, simulated=False)
    assert folder == tmp_path / "leases" / TRAIN.id
    write(folders, replace(TRAIN, notice="GPU 0 is lost."), simulated=False)
    assert json.loads((folder / "lease.json").read_text()) == {
        "id": TRAIN.id,
        "user": "ada",
        "server": "train",
        "tier": "pair",
        "device_uuids": [A, B],
        "mode": "whole",
        "memory_bytes": 171_041_619_968,
        "compute_percent": 100.0,
        "guarantee": "hard",
        "simulated": False,
        "notice": "GPU 0 is lost.",
    }
    assert (folder / "notice").read_text() == "GPU 0 is lost."
    assert sorted((entry.name, entry.stat().st_mode & 0o777) for entry in folder.iterdir()) == [
        ("lease.json", 0o644),
        ("notice", 0o644),
    ]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert folders.ids() == (TRAIN.id,)
    folders.remove(TRAIN.id)
    folders.remove(TRAIN.id)
    assert folders.ids() == ()


def test_turn_and_use_are_written_only_where_there_is_a_folder(tmp_path: Path) -> None:
    folders = LeaseFolders(tmp_path)
    folders.put(TRAIN.id, {TURN: "You are 2nd."})
    folders.put(TRAIN.id, {USE: "{}"})
    assert folders.ids() == ()
    folder = write(folders, TRAIN, simulated=False)
    folders.put(TRAIN.id, {TURN: "You are 2nd."})
    folders.put(TRAIN.id, {USE: "{}"})
    found = {path.name: path.read_text() for path in folder.iterdir() if path.name in ("turn", "use")}
    assert found == {"turn": "You are 2nd.", "use": "{}"}
    assert (folder / "use").stat().st_mode & 0o777 == 0o644


def test_nothing_else_becomes_a_file(tmp_path: Path) -> None:
    folders = LeaseFolders(tmp_path)
    write(folders, TRAIN, simulated=False)
    with pytest.raises(ValueError, match=r"^a lease's folder has no \.\./evil, x$"):
        folders.put(TRAIN.id, {TURN: "", "../evil": "", "x": ""})
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["lease.json", "notice"]


@pytest.mark.parametrize(
    "lease_id", ["", "..", "../" * 10 + "ab", TRAIN.id.upper(), TRAIN.id + "\n", "0" * 31]
)
def test_only_a_lease_id_becomes_a_folder(tmp_path: Path, lease_id: str) -> None:
    with pytest.raises(ValueError, match=r"is not a lease id$"):
        write(LeaseFolders(tmp_path), replace(TRAIN, id=lease_id), simulated=True)


def test_a_state_folder_that_can_not_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text("in the way")
    with pytest.raises(LedgerFault) as caught:
        write(LeaseFolders(tmp_path), TRAIN, simulated=True)
    assert str(caught.value) == (
        f"{tmp_path}/leases/{TRAIN.id} can't be written: Not a directory. Check disk and permissions"
    )
