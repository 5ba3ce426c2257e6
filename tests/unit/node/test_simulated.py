"""Simulated devices: what the setting's text means, and what can be broken on purpose."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from gpuspawner.config.site import GpuSite
from gpuspawner.core.errors import ConfigError, DeviceFault
from gpuspawner.core.model import Device
from gpuspawner.node.inventory import XidEvent
from gpuspawner.node.inventory.simulated import (
    FAULTS_FILE,
    SimulatedInventory,
    machine_names,
    parse_simulated,
)
from hypothesis import given
from hypothesis import strategies as st

FIRST = "GPU-facade00-0000-4000-8000-000000000000"


def test_the_devices_of_a_text() -> None:
    assert parse_simulated("1 x H100 80GB, 1×a100 40 GB,1 X Quantum 9 1.5T") == (
        Device(
            uuid=FIRST,
            model="H100 80GB",
            memory_bytes=80 << 30,
            compute_capability=(9, 0),
            sm_count=132,
            memory_bus_width_bits=5120,
            memory_clock_hz=2_619_000_000,
            index=0,
            simulated=True,
        ),
        Device(
            uuid="GPU-facade00-0000-4000-8000-000000000001",
            model="a100 40GB",
            memory_bytes=40 << 30,
            compute_capability=(8, 0),
            sm_count=108,
            memory_bus_width_bits=5120,
            memory_clock_hz=1_215_000_000,
            index=1,
            simulated=True,
        ),
        Device(
            uuid="GPU-facade00-0000-4000-8000-000000000002",
            model="Quantum 9 1.5T",
            memory_bytes=3 << 39,
            index=2,
            simulated=True,
        ),
    )


@pytest.mark.parametrize(
    ("text", "bandwidth_tb_per_second"),
    [
        ("1 x H100 80GB", 3.35), ("1 x A100 40GB", 1.56), ("1 x A100 80GB", 2.04), ("1 x V100 16GB", 0.90),
        ("1 x V100 32GB", 0.90), ("1 x L40S 48GB", 0.86), ("1 x L4 24GB", 0.30), ("1 x T4 16GB", 0.32),
        ("1 x NVIDIA T4 16GB", 0.32),
    ],
)  # fmt: skip
def test_known_models_have_their_data_sheet_bandwidth(text: str, bandwidth_tb_per_second: float) -> None:
    (device,) = parse_simulated(text)
    assert device.bandwidth_bytes_per_second is not None
    assert round(device.bandwidth_bytes_per_second / 1e12, 2) == bandwidth_tb_per_second


@pytest.mark.parametrize(
    "part", ["", "H100", "0 x H100 80GB", "-1 x H100 80GB", "2 x 80GB", "2 x H100", "5000 x H100 80GB"]
)
def test_a_bad_text_is_refused_with_the_remedy(part: str) -> None:
    for text in (part, f"1 x H100 80GB, {part}"):
        with pytest.raises(ConfigError) as caught:
            parse_simulated(text)
        assert str(caught.value) == (
            f"c.GpuSite.simulated_devices: {part!r} can't be read: write a count from 1 to 4096, a model and "
            'its memory, like "2 x H100 80GB, 1 x A100 40GB"'
        )


@given(st.integers(1, 300), st.integers(1, 2000))
def test_uuids_are_stable_distinct_and_of_nvidia_s_form(count: int, size_gb: int) -> None:
    devices = parse_simulated(f"{count} x Any {size_gb}GB")
    assert devices == parse_simulated(f"{count} x Any {size_gb}GB")
    assert len({device.uuid for device in devices}) == count
    assert [device.index for device in devices] == list(range(count))
    form = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
    assert all(form.fullmatch(device.uuid) for device in devices)


@given(st.text(max_size=40))
def test_any_text_gives_devices_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_simulated(text)


def test_faults_from_a_file_by_index_and_by_uuid(tmp_path: Path) -> None:
    site = GpuSite(state_dir=str(tmp_path), simulated_devices="3 x H100 80GB")
    inventory = SimulatedInventory.from_site(site)
    uuids = [device.uuid for device in inventory.devices()]
    for uuid in uuids:
        inventory.check(uuid)
    (tmp_path / FAULTS_FILE).write_text(f"1 Fell off the bus\n\n{uuids[2]}\n")
    inventory.check(uuids[0])
    for uuid, sentence in ((uuids[1], "Fell off the bus"), (uuids[2], "Broken on purpose")):
        with pytest.raises(DeviceFault) as caught:
            inventory.check(uuid)
        assert str(caught.value) == sentence
    (tmp_path / FAULTS_FILE).unlink()
    inventory.check(uuids[1])


def test_a_faults_file_that_can_not_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / FAULTS_FILE).mkdir()
    inventory = SimulatedInventory.from_site(GpuSite(state_dir=str(tmp_path)))
    with pytest.raises(DeviceFault) as caught:
        inventory.check(FIRST)
    assert str(caught.value) == f"{tmp_path / FAULTS_FILE} can't be read: Is a directory"


def test_faults_and_xids_from_methods() -> None:
    inventory = SimulatedInventory(parse_simulated("1 x H100 80GB"))
    inventory.break_device(FIRST, "Too hot")
    with pytest.raises(DeviceFault, match=r"^Too hot$"):
        inventory.check(FIRST)
    inventory.break_device(FIRST, "")
    inventory.check(FIRST)
    with pytest.raises(DeviceFault, match=r"^There is no such simulated GPU$"):
        inventory.check("GPU-other")
    assert inventory.reset_pending(FIRST) == ""
    inventory.hold_for_reset(FIRST, "Reset it")
    assert inventory.reset_pending(FIRST) == "Reset it"
    assert inventory.wait_xid(0.01) is None
    inventory.send_xid(FIRST, 79)
    assert inventory.wait_xid(1) == XidEvent(FIRST, 79)
    inventory.close()


def test_mig_instances() -> None:
    whole, first, second = parse_simulated("1 x H100 80GB, 2 x H100 80GB MIG 1G.10GB")
    assert (whole.is_mig, whole.uuid) == (False, "GPU-facade00-0000-4000-8000-000000000000")
    assert first == Device(
        uuid="MIG-facade00-0000-4000-8000-000000000001",
        model="H100 80GB MIG 1g.10gb",
        memory_bytes=10 << 30,
        compute_capability=(9, 0),
        index=1,
        parent_uuid="GPU-facade00-0000-4000-8000-000000000001",
        simulated=True,
        mig_profile="1g.10gb",
        gpu_fraction=1 / 8,
    )
    assert second == replace(
        first,
        uuid="MIG-facade00-0000-4000-8000-000000000002",
        index=2,
        parent_uuid="GPU-facade00-0000-4000-8000-000000000002",
    )
    for odd in ("1 x H100 80GB MIG tiny", "1 x H100 80GB MIG 1g.90gb"):
        with pytest.raises(ConfigError, match="is not a MIG profile of a H100 80GB: write it like"):
            parse_simulated(odd)


def test_several_machines_have_names_indices_and_uuids_of_their_own() -> None:
    text = "a: 2 x H100 80GB; b.x: 1 x A100 40GB, 1 x T4 16GB"
    found = [(each.node, each.index, each.model, each.uuid[-2:]) for each in parse_simulated(text)]
    assert found == [
        ("a", 0, "H100 80GB", "00"), ("a", 1, "H100 80GB", "01"),
        ("b.x", 0, "A100 40GB", "02"), ("b.x", 1, "T4 16GB", "03"),
    ]  # fmt: skip
    assert machine_names(text) == ("a", "b.x")
    assert machine_names("1 x T4 16GB") == ("",)


@pytest.mark.parametrize("text", ["1 x T4 16GB; b: 1 x T4 16GB", "a: 1 x T4 16GB; a: 1 x T4 16GB", "a: ;"])
def test_machines_need_names_of_their_own_and_devices(text: str) -> None:
    with pytest.raises(ConfigError, match="simulated_devices"):
        parse_simulated(text)
