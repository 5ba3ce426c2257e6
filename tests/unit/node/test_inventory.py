"""The real pynvml on a scripted libnvidia-ml.so.1: what is listed, lost, missing, and told of XIDs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import gpuspawner
import pynvml
import pytest
from gpuspawner.config.site import GpuSite
from gpuspawner.core.errors import ConfigError, DeviceFault
from gpuspawner.core.model import Device
from gpuspawner.node.inventory import (
    DriverFacts,
    NvmlInventory,
    Patience,
    XidEvent,
    is_absent,
    nvidia_pci_devices,
    open_inventory,
)
from gpuspawner.node.inventory.simulated import SimulatedInventory

from tests.nvml.scripted import Gpu, Script
from tests.soon import SOON_SECONDS
from tests.unit.lease_examples import UUIDS

(A, B), C = UUIDS, "GPU-c"
H100 = Device(
    uuid=A,
    model="NVIDIA H100 80GB HBM3",
    memory_bytes=85_520_809_984,
    compute_capability=(9, 0),
    sm_count=132,
    memory_bus_width_bits=5120,
    memory_clock_hz=2_619_000_000,
    index=0,
)
LOST = pynvml.NVML_ERROR_GPU_IS_LOST
LOST_SENTENCE = "The GPU is lost (it fell off the bus): reset it or restart the machine (NVML: GPU is lost)"


def uuids(inventory: NvmlInventory) -> list[str]:
    return [device.uuid for device in inventory.devices()]


def test_lists_whole_gpus_with_all_that_nvml_tells(inventory: NvmlInventory) -> None:
    first, second = inventory.devices()
    assert first == H100
    assert first.bandwidth_bytes_per_second == 3_352_320_000_000
    assert (second.uuid, second.index) == (B, 1)
    assert inventory.simulated is False


def test_what_nvml_does_not_tell_is_none(script: Script, inventory: NvmlInventory) -> None:
    script.gpus = [Gpu(C, name="Old", cc="0.0", cores=0, bus=0, clock=0)]
    script.fault("nvmlDeviceGetMigMode", pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert inventory.devices() == (Device(uuid=C, model="Old", memory_bytes=85_520_809_984, index=0),)


VALUES = [
    "nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMigMode",
]  # fmt: skip


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_NO_PERMISSION, 7, 20, 23, 26])
@pytest.mark.parametrize("function", VALUES)
def test_a_value_that_can_not_be_read_leaves_the_gpu_out_alone(
    script: Script, inventory: NvmlInventory, function: str, code: int
) -> None:
    """A GPU whose MIG mode is unknown is no whole GPU."""
    script.fault(function, code, gpu=0)
    assert uuids(inventory) == [B]
    assert [sentence.partition(":")[0] for sentence in inventory.left_out] == ["GPU 0"]


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND])
def test_a_value_that_the_gpu_does_not_have_is_none_and_the_device_stays(
    script: Script, inventory: NvmlInventory, code: int
) -> None:
    for function in VALUES:
        script.fault(function, code, gpu=0)
    bare = Device(uuid=A, model="NVIDIA GPU", memory_bytes=85_520_809_984, index=0)
    assert inventory.devices()[0] == bare
    assert uuids(inventory) == [A, B]


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_TIMEOUT, 7, 20, 26]
)
@pytest.mark.parametrize("function", ["nvmlDeviceGetRemappedRows", "nvmlDeviceGetMigMode"])
def test_a_health_that_can_not_be_read_is_no_good_one(
    script: Script, inventory: NvmlInventory, function: str, code: int
) -> None:
    inventory.devices()
    line = script.fault(function, code, gpu=0)
    with pytest.raises(DeviceFault, match=r"The GPU can't be read|NVML refuses"):
        inventory.check(A)
    inventory.check(B)
    script.drop(line)
    inventory.check(A)
    script.fault("nvmlDeviceGetRetiredPagesPendingStatus", code, gpu=0)
    with pytest.raises(DeviceFault):
        inventory.reset_pending(A)


def test_a_gpu_that_hangs_in_listing_is_left_out_alone_and_asked_once(script: Script) -> None:
    line = script.hang("nvmlDeviceGetName", gpu=0)
    inventory = NvmlInventory(Patience(0.3))
    for _ in range(5):
        assert uuids(inventory) == [B]
    assert inventory.left_out == ("GPU 0: It has not answered for 0.3 s: see `dmesg` and `nvidia-smi`.",)
    hanging = [thread for thread in threading.enumerate() if thread.name == "nvml-GPU 0"]
    assert len(hanging) == 1
    script.drop(line)
    hanging[0].join(SOON_SECONDS)
    assert uuids(inventory) == [A, B]
    inventory.close()


def test_no_look_up_asks_a_gpu_that_hangs_beside_it(script: Script, inventory: NvmlInventory) -> None:
    """A look-up by UUID asks every GPU of the machine, and a fault makes the handle be looked up again."""
    inventory.devices()
    line = script.hang("nvmlDeviceGetHandleByUUID", gpu=0)
    inventory.check(B)
    script.change(1, lost=LOST)
    with pytest.raises(DeviceFault):
        inventory.check(B)
    script.change(1, lost=0)
    inventory.check(B)
    assert inventory.used_bytes(B) == 0
    assert inventory.wait_xid(0.01) is None
    script.drop(line)


CALLS_OF_A_LISTING = [
    "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID", "nvmlDeviceGetMigMode", "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetName", "nvmlDeviceGetMemoryBusWidth",
]  # fmt: skip


@pytest.mark.parametrize("function", CALLS_OF_A_LISTING)
def test_a_gpu_lost_at_any_call_is_left_out_alone(
    script: Script, inventory: NvmlInventory, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    script.fault(function, LOST, gpu=0)
    assert uuids(inventory) == [B]
    assert [record.getMessage() for record in caplog.records] == [f"GPU 0 is not listed: {LOST_SENTENCE}"]


def test_all_lost_is_a_fault_that_names_each(script: Script, inventory: NvmlInventory) -> None:
    script.change(0, lost=LOST)
    script.change(1, lost=pynvml.NVML_ERROR_RESET_REQUIRED)
    with pytest.raises(DeviceFault) as caught:
        inventory.devices()
    assert str(caught.value) == (
        f"No GPU can be leased. GPU 0: {LOST_SENTENCE}. GPU 1: The GPU needs a reset: run "
        "`nvidia-smi --gpu-reset`, or restart the machine (NVML: GPU requires restart)."
    )


def test_counting_fails(script: Script, inventory: NvmlInventory) -> None:
    script.fault("nvmlDeviceGetCount_v2", pynvml.NVML_ERROR_UNKNOWN)
    with pytest.raises(DeviceFault) as caught:
        inventory.devices()
    assert str(caught.value) == ("The GPU can't be read: see `dmesg` and `nvidia-smi` (NVML: Unknown Error)")
    assert isinstance(caught.value.__cause__, pynvml.NVMLError)


def test_a_gpu_in_mig_mode_without_instances_is_left_out(
    script: Script, inventory: NvmlInventory, caplog: pytest.LogCaptureFixture
) -> None:
    script.change(1, mig=1)
    assert uuids(inventory) == [A]
    sentence = (
        "It is in MIG mode but has no instances, which a reboot removes: create some (`nvidia-smi mig "
        "-cgi <profiles> -C`), or "
        "switch MIG off"
    )
    assert caplog.messages == [f"GPU 1 is not listed: {sentence}"]
    caplog.set_level(logging.ERROR)
    assert inventory.driver() == DriverFacts("580.159.04", "13.0", 2, (f"GPU 1: {sentence}.",))


def test_check_of_one_gpu(script: Script, inventory: NvmlInventory) -> None:
    inventory.check(A)
    script.change(0, lost=LOST)
    inventory.check(B)
    with pytest.raises(DeviceFault) as caught:
        inventory.check(A)
    assert str(caught.value) == LOST_SENTENCE
    script.change(0, lost=0)
    inventory.check(A)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"remap_failure": 1}, "A bad memory row could not be remapped: the GPU must be replaced"),
        ({"mig": 1}, "The GPU was switched to MIG mode: switch it back, or restart the broker"),
    ],
)
def test_check_sees_what_makes_a_gpu_unfit(
    script: Script, inventory: NvmlInventory, values: dict[str, int], sentence: str
) -> None:
    script.change(0, **values)
    with pytest.raises(DeviceFault) as caught:
        inventory.check(A)
    assert str(caught.value) == sentence
    inventory.check(B)


def test_check_of_a_gpu_that_is_gone(script: Script, inventory: NvmlInventory) -> None:
    script.gpus = [Gpu(B)]
    script.write()
    with pytest.raises(DeviceFault) as caught:
        inventory.check(A)
    assert str(caught.value) == "The GPU no longer exists: see `nvidia-smi -L` (NVML: Not Found)"


def test_reset_pending(script: Script, inventory: NvmlInventory) -> None:
    assert inventory.reset_pending(A) == ""
    script.change(0, remap_pending=1)
    assert inventory.reset_pending(A) == "Remapped memory rows wait for a reset: run `nvidia-smi --gpu-reset`"
    script.change(0, remap_pending=0, retired=1)
    assert inventory.reset_pending(A) == "Retired memory pages wait for a reset: run `nvidia-smi --gpu-reset`"
    assert inventory.reset_pending(B) == ""
    inventory.check(A)  # alone it is no reason to withdraw a device


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (0, ""),
        (1, "NVML says that the GPU needs a reset: run `nvidia-smi --gpu-reset`"),
        (2, "NVML says that the machine has to be restarted"),
        (3, "NVML says that programs which use this GPU together with others have to end first"),
        (4, "NVML says that the GPU needs a reset: run `nvidia-smi --gpu-reset`"),
        (99, "NVML asks for recovery action 99: see nvmlDeviceGpuRecoveryAction in NVIDIA's NVML manual"),
    ],
)
def test_what_nvml_says_of_recovery(script: Script, inventory: NvmlInventory, action: int, said: str) -> None:
    script.change(0, recovery=action)
    assert inventory.reset_pending(A) == said


def test_a_driver_without_a_recovery_action_needs_none(script: Script, inventory: NvmlInventory) -> None:
    line = script.fault("nvmlDeviceGetFieldValues", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, gpu=0)
    assert inventory.reset_pending(A) == ""
    script.drop(line)
    script.fault("nvmlDeviceGetFieldValues", pynvml.NVML_ERROR_UNKNOWN, gpu=0)
    with pytest.raises(DeviceFault):  # unknown is not none
        inventory.reset_pending(A)


def soon(call: object, *args: object) -> None:
    threading.Timer(0.1, call, args).start()  # type: ignore[arg-type]


def test_xid_names_its_device(script: Script, inventory: NvmlInventory) -> None:
    assert inventory.wait_xid(0.05) is None
    soon(script.xid, 1, 79)
    assert inventory.wait_xid(SOON_SECONDS) == XidEvent(B, 79)
    assert inventory.wait_xid(0.05) is None


def test_xid_of_a_gpu_that_no_longer_tells_its_uuid(script: Script, inventory: NvmlInventory) -> None:
    assert inventory.wait_xid(0.01) is None
    script.change(1, lost=LOST)
    script.xid(1, 79)
    assert inventory.wait_xid(SOON_SECONDS) == XidEvent(B, 79)


def test_xid_without_a_device(script: Script, inventory: NvmlInventory) -> None:
    assert inventory.wait_xid(0.01) is None
    script.xid(-1, 119)
    assert inventory.wait_xid(SOON_SECONDS) == XidEvent(None, 119)


def test_gpus_without_events_are_polled_only(
    script: Script, inventory: NvmlInventory, caplog: pytest.LogCaptureFixture
) -> None:
    script.change(0, events=0)
    script.change(1, events=0)
    begin = time.monotonic()
    assert inventory.wait_xid(0.1) is None
    assert time.monotonic() - begin >= 0.1
    assert caplog.messages == [f"{uuid} is only polled: it has no XID events" for uuid in (A, B)]


def test_a_failed_wait_starts_over_and_a_gpu_that_returns_is_heard_again(
    script: Script, inventory: NvmlInventory
) -> None:
    inventory.devices()
    assert inventory.wait_xid(0.01) is None
    line = script.fault("nvmlEventSetWait_v2", LOST)
    with pytest.raises(DeviceFault, match="lost"):
        inventory.wait_xid(0.01)
    script.drop(line)
    script.change(0, lost=LOST)
    assert inventory.wait_xid(0.01) is None  # made anew, from GPU 1 alone
    script.xid(1, 79)
    assert inventory.wait_xid(SOON_SECONDS) == XidEvent(B, 79)
    script.change(0, lost=0)
    inventory.check(A)
    assert inventory.wait_xid(0.01) is None  # made anew, from both
    script.xid(0, 63)
    assert inventory.wait_xid(SOON_SECONDS) == XidEvent(A, 63)


def test_open_takes_what_nvml_lists(script: Script) -> None:
    opened = open_inventory(GpuSite())
    assert isinstance(opened, NvmlInventory)
    assert [device.uuid for device in opened.devices()] == [A, B]
    opened.close()


def test_open_simulated_where_there_is_no_gpu_or_no_driver(script: Script) -> None:
    script.gpus = []
    script.write()
    assert isinstance(open_inventory(GpuSite()), SimulatedInventory)
    script.init = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    script.write()
    assert isinstance(open_inventory(GpuSite()), SimulatedInventory)
    assert isinstance(open_inventory(GpuSite(inventory="simulated")), SimulatedInventory)


@pytest.mark.parametrize("setting", ["auto", "nvml"])
def test_open_refuses_a_driver_that_fails_rather_than_simulate(script: Script, setting: str) -> None:
    script.init = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    script.write()
    with pytest.raises(ConfigError) as caught:
        open_inventory(GpuSite(inventory=setting))
    assert str(caught.value) == (
        "Driver and NVML library have different versions, as after an upgrade: restart the machine, or "
        "reload the driver (NVML: RM has detected an NVML/RM version mismatch.). Until that is fixed, "
        'c.GpuSite.inventory = "simulated" starts without real GPUs'
    )


@pytest.mark.parametrize("setting", ["auto", "nvml"])
def test_open_refuses_gpus_that_can_not_be_leased(script: Script, setting: str) -> None:
    script.gpus = [Gpu(A, mig=1)]
    script.write()
    with pytest.raises(ConfigError, match="GPU 0: It is in MIG mode"):
        open_inventory(GpuSite(inventory=setting))


def test_open_nvml_without_a_gpu(script: Script) -> None:
    script.gpus = []
    script.write()
    with pytest.raises(ConfigError, match=r"^NVML lists no GPU\. Until that is fixed, c\.GpuSite\.inventory"):
        open_inventory(GpuSite(inventory="nvml"))


def test_absent_is_not_broken(script: Script) -> None:
    verdicts = {}
    for code in (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, 999):
        script.init = code
        script.write()
        with pytest.raises(DeviceFault) as caught:
            NvmlInventory()
        verdicts[code] = is_absent(caught.value)
    assert verdicts == {9: True, 18: False, 999: False}


PROGRAM = """
import json, sys
from gpuspawner.core.errors import GpuSpawnerError
from gpuspawner.node.inventory import open_inventory
from gpuspawner.config.site import GpuSite
try:
    inventory = open_inventory(GpuSite(inventory=sys.argv[1]))
    print(json.dumps([inventory.simulated, [device.model for device in inventory.devices()]]))
except GpuSpawnerError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def in_process(setting: str, environment: dict[str, str]) -> list[object]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, setting]
    environment["PYTHONPATH"] = str(Path(gpuspawner.__file__).parents[1])
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    answer: list[object] = json.loads(found.stdout)
    return answer


def test_pynvml_finds_the_library_by_name(script: Script) -> None:
    assert in_process("nvml", script.environment()) == [False, ["NVIDIA H100 80GB HBM3"] * 2]


def test_a_process_without_the_library(tmp_path: Path) -> None:
    # A file that is no library hides a real one, so that this also holds on a machine with a GPU.
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    assert in_process("auto", environment) == [True, ["H100 80GB"] * 2]
    assert in_process("nvml", environment) == [
        "ConfigError",
        "libnvidia-ml.so.1 was not found: install the NVIDIA driver (NVML: NVML Shared Library Not Found). "
        'Until that is fixed, c.GpuSite.inventory = "simulated" starts without real GPUs',
    ]


def test_pci_devices(tmp_path: Path) -> None:
    for name, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030200"),
        ("0000:01:00.1", "0x10de", "0x040300"),  # the GPU's audio function
        ("0000:02:00.0", "0x1a03", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    (tmp_path / "broken").mkdir()
    assert nvidia_pci_devices(tmp_path) == ("0000:01:00.0",)
    assert nvidia_pci_devices(tmp_path / "missing") == ()
