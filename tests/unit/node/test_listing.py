"""MIG instances as devices of their own: listed, named, checked, hit by their own XIDs only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.core.model import Device
from gpuspawner.node.inventory import Climate, ComputeMode, GpuProcess, NvmlInventory, XidEvent
from gpuspawner.node.inventory.listing import profile_of

from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Mig, Script
from tests.unit.lease_examples import UUIDS

A, B = UUIDS
SMALL, LARGE = "MIG-11111111-0000-0000-0000-000000000001", "MIG-22222222-0000-0000-0000-000000000002"


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """GPU 0 whole, GPU 1 with a small and a large instance."""
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(A), Gpu(B, mig=1)]
        large = Mig(LARGE, gpu=1, gi=2, memory=42_144_366_592, sms=60, slices=3, compute=3)
        script.lines = [
            Mig(SMALL, gpu=1, gi=9).line(),
            # A driver that names the instance as its GPU: the profile is made of its slices.
            f"{large.line().rpartition(' name=')[0]} name=NVIDIA_H100_80GB_HBM3",
        ]
        script.write()
        yield script


def device(uuid: str, profile: str, memory_bytes: int, sm_count: int, eighths: int) -> Device:
    return Device(
        uuid=uuid,
        model=f"NVIDIA H100 80GB HBM3 MIG {profile}",
        memory_bytes=memory_bytes,
        compute_capability=(9, 0),
        sm_count=sm_count,
        index=1,
        parent_uuid=B,
        mig_profile=profile,
        gpu_fraction=eighths / 8,
    )


def test_instances_beside_a_whole_gpu(script: Script, inventory: NvmlInventory) -> None:
    whole, *instances = inventory.devices()
    assert (whole.uuid, whole.parent_uuid, whole.mig_profile) == (A, None, None)
    assert instances == [
        device(SMALL, "1g.10gb", 10_468_982_784, 16, 1),
        device(LARGE, "3g.40gb", 42_144_366_592, 60, 4),
    ]


@pytest.mark.parametrize(
    ("name", "slices", "profile"),
    [
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, "1g.5gb"),
        ("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb", (1, 3, 20096), "1c.3g.20gb"),
        ("NVIDIA H100 MIG 1g.10gb+me", None, "1g.10gb+me"),
        ("NVIDIA A100", (3, 3, 20096), "3g.20gb"),
        ("NVIDIA A100", (1, 3, 20096), "1c.3g.20gb"),
        ("NVIDIA A100", None, None),
    ],
)
def test_the_profile(name: str, slices: tuple[int, int, int] | None, profile: str | None) -> None:
    attributes = None
    if slices is not None:
        compute, gpu, memory = slices
        attributes = SimpleNamespace(
            computeInstanceSliceCount=compute, gpuInstanceSliceCount=gpu, memorySizeMB=memory
        )
    assert profile_of(name, attributes) == profile


def test_compute_instances_that_share_memory_are_left_out(
    script: Script, inventory: NvmlInventory, caplog: pytest.LogCaptureFixture
) -> None:
    script.add(Mig("MIG-33333333", gpu=1, gi=9, ci=1).line())
    assert [each.uuid for each in inventory.devices()] == [A, LARGE]
    why = (
        "It shares the memory of GPU instance 9 with other compute instances: create one compute instance in "
        "each GPU instance"
    )
    assert caplog.messages == [
        f"MIG instance {uuid} of GPU 1 is not listed: {why}" for uuid in (SMALL, "MIG-33333333")
    ]


def test_an_instance_is_as_well_as_its_gpu(script: Script, inventory: NvmlInventory) -> None:
    inventory.check(SMALL)
    assert inventory.reset_pending(SMALL) == ""
    script.change(1, remap_pending=1)
    assert inventory.reset_pending(SMALL).startswith("Remapped memory rows wait")
    script.change(1, remap_failure=1)
    with pytest.raises(DeviceFault, match=r"^A bad memory row could not be remapped"):
        inventory.check(SMALL)
    script.change(1, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(DeviceFault, match=r"^The GPU is lost"):
        inventory.check(SMALL)
    inventory.check(A)


def test_an_instance_that_is_gone(script: Script, inventory: NvmlInventory) -> None:
    script.lines = [line for line in script.lines if SMALL not in line]
    script.write()
    with pytest.raises(DeviceFault, match=r"^The GPU no longer exists"):
        inventory.check(SMALL)


def test_an_xid_hits_the_instance_that_it_names_or_all(script: Script, inventory: NvmlInventory) -> None:
    inventory.devices()
    assert inventory.wait_xid(0) is None
    script.xid(1, 48, gi=2)
    assert inventory.wait_xid(1) == XidEvent(LARGE, 48)
    assert inventory.wait_xid(0) is None
    script.xid(1, 79)
    assert [inventory.wait_xid(1), inventory.wait_xid(0)] == [XidEvent(SMALL, 79), XidEvent(LARGE, 79)]
    assert inventory.wait_xid(0) is None
    script.xid(0, 79)
    assert inventory.wait_xid(1) == XidEvent(A, 79)


def test_an_xid_for_an_instance_that_nobody_leases_hits_all(script: Script, inventory: NvmlInventory) -> None:
    inventory.devices()
    assert inventory.wait_xid(0) is None
    script.xid(1, 48, gi=5)
    assert [inventory.wait_xid(1), inventory.wait_xid(0)] == [XidEvent(SMALL, 48), XidEvent(LARGE, 48)]


def test_what_goes_on_on_a_device(script: Script, inventory: NvmlInventory) -> None:
    script.change(0, used=5 << 30, util=71)
    script.process(20, 2 << 30)
    script.process(10, 1 << 30, mps=1)
    script.process(30, -1)
    assert inventory.processes(A) == (
        GpuProcess(10, 1 << 30, True),
        GpuProcess(20, 2 << 30, False),
        GpuProcess(30, None, False),
    )
    assert inventory.used_bytes(A) == 5 << 30
    assert (inventory.utilization_percent(A), inventory.utilization_percent(SMALL)) == (71.0, None)


def test_how_warm_it_is_and_what_it_draws(script: Script, inventory: NvmlInventory) -> None:
    assert inventory.climate(A) == Climate()
    script.change(0, celsius=64, draw_mw=312_450, limit_mw=700_000)
    script.change(1, celsius=40)
    assert inventory.climate(A) == Climate(64.0, 312.45, 700.0)
    assert inventory.climate(SMALL) == Climate(40.0)  # of its GPU
    script.change(0, lost=15)
    with pytest.raises(DeviceFault):
        inventory.climate(A)


def test_memory_for_graphics_counts(script: Script, inventory: NvmlInventory) -> None:
    """Vulkan and OpenGL are in a list of their own; a driver without one has none of them."""
    script.process(20, 2 << 30)
    script.process(40, 9 << 30, draws=1)
    both = (GpuProcess(20, 2 << 30, False), GpuProcess(40, 9 << 30, False))
    assert inventory.processes(A) == both
    script.process(20, 2 << 30, draws=1)  # one that does both
    assert inventory.processes(A) == both
    script.fault("nvmlDeviceGetGraphicsRunningProcesses_v3", pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert inventory.processes(A) == both[:1]


def test_processes_of_an_instance(script: Script, inventory: NvmlInventory) -> None:
    script.add("process gpu=1 pid=5 memory=1000 gi=9 ci=0")
    assert (inventory.processes(SMALL), inventory.processes(LARGE)) == ((GpuProcess(5, 1000, False),), ())


def test_without_a_list_of_mps_clients_nobody_went_round(script: Script, inventory: NvmlInventory) -> None:
    script.process(20, 2 << 30)
    script.fault("nvmlDeviceGetMPSComputeRunningProcesses_v3", pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert inventory.processes(A) == (GpuProcess(20, 2 << 30, None),)
    script.fault("nvmlDeviceGetMPSComputeRunningProcesses_v3", pynvml.NVML_ERROR_UNKNOWN)
    with pytest.raises(DeviceFault):
        inventory.processes(A)


def test_the_compute_mode(script: Script, inventory: NvmlInventory) -> None:
    assert inventory.compute_mode(A) is ComputeMode.DEFAULT
    inventory.set_compute_mode(A, ComputeMode.EXCLUSIVE_PROCESS)
    assert inventory.compute_mode(A) is ComputeMode.EXCLUSIVE_PROCESS
    log = script.path.with_name(f"{script.path.name}.log").read_text()
    assert log == f"compute_mode {A} 3\n"
    with pytest.raises(DeviceFault):
        inventory.set_compute_mode(SMALL, ComputeMode.DEFAULT)
