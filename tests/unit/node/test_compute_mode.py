"""The compute mode is set while it is needed and put back, at every point of a crash."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.node.compute_mode import FILE, ComputeModes
from gpuspawner.node.inventory import ComputeMode, NvmlInventory

from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Script
from tests.unit.lease_examples import UUIDS

A, B = UUIDS
DEFAULT, EXCLUSIVE, PROHIBITED = ComputeMode.DEFAULT, ComputeMode.EXCLUSIVE_PROCESS, ComputeMode.PROHIBITED


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(A), Gpu(B, mode=PROHIBITED)]
        script.write()
        yield script


def modes(inventory: NvmlInventory) -> tuple[ComputeMode, ComputeMode]:
    return inventory.compute_mode(A), inventory.compute_mode(B)


def restore(modes: ComputeModes, keep: Collection[str] = ()) -> None:
    """As the next broker does it: all that was taken, but for what is needed on."""
    for uuid in sorted(modes.taken() - set(keep)):
        modes.give_back(uuid)


def record(folder: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((folder / FILE).read_text())
    return found


def test_taken_and_given_back(inventory: NvmlInventory, tmp_path: Path) -> None:
    ours = ComputeModes(inventory, tmp_path)
    ours.take(A)
    ours.take(B)
    ours.take(A)
    assert (modes(inventory), record(tmp_path)) == ((EXCLUSIVE, EXCLUSIVE), {A: 0, B: 2})
    ours.give_back(B)
    assert (modes(inventory), record(tmp_path)) == ((EXCLUSIVE, PROHIBITED), {A: 0})
    ours.give_back(A)
    ours.give_back(A)
    assert (modes(inventory), record(tmp_path)) == ((DEFAULT, PROHIBITED), {})


def test_after_a_crash_the_next_broker_puts_back_what_it_does_not_need(
    inventory: NvmlInventory, tmp_path: Path
) -> None:
    crashed = ComputeModes(inventory, tmp_path)
    crashed.take(A)
    crashed.take(B)
    restore(ComputeModes(inventory, tmp_path), keep={A})
    assert (modes(inventory), record(tmp_path)) == ((EXCLUSIVE, PROHIBITED), {A: 0})
    restore(ComputeModes(inventory, tmp_path))
    assert (modes(inventory), record(tmp_path)) == ((DEFAULT, PROHIBITED), {})


def test_a_crash_between_record_and_change_changes_nothing(
    script: Script, inventory: NvmlInventory, tmp_path: Path
) -> None:
    line = script.fault("nvmlDeviceSetComputeMode", 4)
    with pytest.raises(DeviceFault, match="NVML refuses this user"):
        ComputeModes(inventory, tmp_path).take(B)
    script.drop(line)
    assert record(tmp_path) == {B: 2}
    restore(ComputeModes(inventory, tmp_path))
    assert (modes(inventory), record(tmp_path)) == ((DEFAULT, PROHIBITED), {})


def test_what_is_exclusive_already_stays_so(inventory: NvmlInventory, tmp_path: Path) -> None:
    inventory.set_compute_mode(A, EXCLUSIVE)
    ours = ComputeModes(inventory, tmp_path)
    ours.take(A)
    ours.give_back(A)
    assert inventory.compute_mode(A) is EXCLUSIVE
    assert not (tmp_path / FILE).exists()


def test_what_an_admin_set_meanwhile_stays(inventory: NvmlInventory, tmp_path: Path) -> None:
    ours = ComputeModes(inventory, tmp_path)
    ours.take(A)
    inventory.set_compute_mode(A, PROHIBITED)
    ours.give_back(A)
    assert (inventory.compute_mode(A), record(tmp_path)) == (PROHIBITED, {})


def test_a_gpu_that_can_not_be_read_is_tried_again(
    script: Script, inventory: NvmlInventory, tmp_path: Path
) -> None:
    ours = ComputeModes(inventory, tmp_path)
    ours.take(A)
    ours.take(B)
    line = script.fault("nvmlDeviceGetComputeMode", 999, gpu=0)
    with pytest.raises(DeviceFault, match="The GPU can't be read"):
        ours.give_back(A)
    ours.give_back(B)
    assert (record(tmp_path), ours.taken()) == ({A: 0}, {A})
    script.drop(line)
    restore(ours)
    assert (modes(inventory), record(tmp_path)) == ((DEFAULT, PROHIBITED), {})


@pytest.mark.parametrize("text", ["", "[]", '{"GPU-1": 17}', '{"GPU-1": "x"}'])
def test_an_unreadable_record_is_never_overwritten(
    inventory: NvmlInventory, tmp_path: Path, text: str
) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DeviceFault, match="former compute modes are unknown"):
        ComputeModes(inventory, tmp_path).take(A)
    assert inventory.compute_mode(A) is DEFAULT
    assert (tmp_path / FILE).read_text() == text


def test_nothing_is_changed_that_could_not_be_recorded(inventory: NvmlInventory, tmp_path: Path) -> None:
    with pytest.raises(DeviceFault, match="can't be written: No such file or directory"):
        ComputeModes(inventory, tmp_path / "missing").take(A)
    assert inventory.compute_mode(A) is DEFAULT
