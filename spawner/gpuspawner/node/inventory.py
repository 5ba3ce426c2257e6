"""Which devices this machine has, and whether each can be read: the only user of NVML.

Everything here blocks; callers give it threads of its own (`health.py` does). NVML's own calls are
thread-safe (NVML API Reference r580, "Known issues and thread safety").
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pynvml

from ..errors import ConfigError, DeviceFault
from ..model import Device
from ..settings import GpuSite

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class XidEvent:
    """An error that the driver reported. `uuid` is None where it named no device: it hits all."""

    uuid: str | None
    xid: int


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """The driver for `doctor`: versions as text ("580.159.04", "13.0"), None where not available."""

    driver_version: str | None
    cuda_version: str | None
    gpu_count: int
    left_out: tuple[str, ...]
    """One sentence for each GPU that can't be leased."""


class Inventory(Protocol):
    """The seam between the broker and the hardware."""

    simulated: bool

    def devices(self) -> tuple[Device, ...]:
        """Every device that can be leased. Raises DeviceFault if nothing can be read."""

    def check(self, uuid: str) -> None:
        """Returns if the device answers; raises DeviceFault with a sentence if lost or unreadable."""

    def reset_pending(self, uuid: str) -> str:
        """Why a withdrawn device must stay so until it is reset; "" if it need not."""

    def wait_xid(self, timeout_seconds: float) -> XidEvent | None:
        """The next XID; None when none came in time. Raises DeviceFault if waiting failed."""

    def close(self) -> None:
        """Ends the use of NVML; further calls fail."""


CORES_PER_SM = {
    (5, 0): 128, (5, 2): 128, (5, 3): 128, (6, 0): 64, (6, 1): 128, (6, 2): 128, (7, 0): 64, (7, 2): 64,
    (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (10, 3): 128,
    (11, 0): 128, (12, 0): 128, (12, 1): 128,
}  # fmt: skip
"""FP32 cores of an SM by compute capability (CUDA C++ Programming Guide 13.0, arithmetic throughput).

NVML tells the cores of a whole GPU, and its SMs only for MIG (`nvmlDeviceGetAttributes_v2`).
"""

_SENTENCES = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "The GPU is lost (it fell off the bus): reset it or restart the machine",
    pynvml.NVML_ERROR_RESET_REQUIRED: "The GPU needs a reset: run `nvidia-smi --gpu-reset`, or "
    "restart the machine",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "Driver and NVML library have different versions, as after an "
    "upgrade: restart the machine, or reload the driver",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "The NVIDIA driver is not loaded: run `modprobe nvidia`, "
    "and see `dmesg`",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 was not found: install the NVIDIA driver",
    pynvml.NVML_ERROR_NO_PERMISSION: "NVML refuses this user: the broker's user needs access to /dev/nvidia*",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "The GPU's power cables are not attached: attach them",
    pynvml.NVML_ERROR_IRQ_ISSUE: "The kernel found an interrupt problem with the GPU: see `dmesg`",
    pynvml.NVML_ERROR_NOT_FOUND: "The GPU is no longer there: see `nvidia-smi -L`",
}  # fmt: skip

_DEVICE_GONE = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
_ABSENT = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


def _fault(error: pynvml.NVMLError) -> DeviceFault:
    """A sentence for NVML's error, with NVML's own word for it."""
    sentence = _SENTENCES.get(error.value, "The GPU can't be read: see `dmesg` and `nvidia-smi`")
    return DeviceFault(f"{sentence} (NVML: {error})")


def _call(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)`; an NVML error becomes a DeviceFault."""
    try:
        return function(*args)
    except pynvml.NVMLError as error:
        raise _fault(error) from error


def _optional(function: Callable[..., T], *args: Any) -> T | None:
    """As `_call`, but None where this GPU or driver doesn't say. A lost GPU still is a fault."""
    try:
        return function(*args)
    except pynvml.NVMLError as error:
        if error.value in _DEVICE_GONE:
            raise _fault(error) from error
        return None


class NvmlInventory:
    """The GPUs that NVML lists. Raises DeviceFault where there is no usable NVML.

    One GPU that is lost or can't be read is left out with a logged sentence; the others stay usable.
    """

    simulated = False

    def __init__(self) -> None:
        _call(pynvml.nvmlInit)
        self._uuids: tuple[str, ...] = ()
        self._events: Any = None
        self._event_uuids: dict[int, str] = {}
        self._not_registered: set[str] = set()
        self._event_lock = threading.Lock()
        self._stale = threading.Event()
        self._closed = threading.Event()

    def devices(self) -> tuple[Device, ...]:
        """The whole GPUs, by NVML's index. Raises DeviceFault if NVML lists some and none can be read.

        A GPU in MIG mode is left out: its instances are devices of their own, which this version
        does not lease.
        """
        found, left_out = self._read()
        if left_out and not found:
            raise DeviceFault(f"No GPU can be leased. {' '.join(left_out)}")
        self._uuids = tuple(device.uuid for device in found)
        return tuple(found)

    def _read(self) -> tuple[list[Device], list[str]]:
        found, left_out = [], []
        for index in range(_call(pynvml.nvmlDeviceGetCount)):
            try:
                found.append(_read_device(index))
            except DeviceFault as fault:
                left_out.append(f"GPU {index}: {fault}.")
                _log.warning("GPU %d is left out: %s", index, fault)
        return found, left_out

    def driver(self) -> DriverFacts:
        """Versions and what is left out, for `doctor`. Raises DeviceFault."""
        _, left_out = self._read()
        cuda = _optional(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return DriverFacts(
            driver_version=_optional(pynvml.nvmlSystemGetDriverVersion),
            cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            gpu_count=_call(pynvml.nvmlDeviceGetCount),
            left_out=tuple(left_out),
        )

    def check(self, uuid: str) -> None:
        """Asks the GPU for its memory and for rows that could not be remapped. Raises DeviceFault.

        A failed remap means replacing the GPU (NVIDIA GPU Memory Error Management r580, RMA policy).
        """
        handle = _call(pynvml.nvmlDeviceGetHandleByUUID, uuid)
        _call(pynvml.nvmlDeviceGetMemoryInfo, handle)
        rows = _optional(pynvml.nvmlDeviceGetRemappedRows, handle)
        if rows is not None and rows[3]:
            raise DeviceFault("A bad memory row could not be remapped: the GPU must be replaced")
        if _mig_is_on(handle):
            raise DeviceFault("The GPU was switched to MIG mode: switch it back, or restart the broker")
        if uuid in self._not_registered:
            self._stale.set()

    def reset_pending(self, uuid: str) -> str:
        """Why the GPU must be reset first: remapped rows or retired pages wait for it. Raises DeviceFault."""
        handle = _call(pynvml.nvmlDeviceGetHandleByUUID, uuid)
        rows = _optional(pynvml.nvmlDeviceGetRemappedRows, handle)
        if rows is not None and rows[2]:
            return "Remapped memory rows wait for a reset: run `nvidia-smi --gpu-reset`"
        if _optional(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle):
            return "Retired memory pages wait for a reset: run `nvidia-smi --gpu-reset`"
        return ""

    def wait_xid(self, timeout_seconds: float) -> XidEvent | None:
        """Waits in NVML's event set. A GPU without events is polled only (`check`).

        After an error the set is made anew from the GPUs that still answer. One thread at a time.
        """
        with self._event_lock:
            if self._events is None or self._stale.is_set():
                self._register()
            if not self._event_uuids:
                self._closed.wait(timeout_seconds)
                return None
            try:
                data = pynvml.nvmlEventSetWait_v2(self._events, int(timeout_seconds * 1000))
            except pynvml.NVMLError as error:
                if error.value == pynvml.NVML_ERROR_TIMEOUT:
                    return None
                self._drop_events()
                raise _fault(error) from error
            return XidEvent(self._uuid_of(data.device), int(data.eventData))

    def _uuid_of(self, handle: Any) -> str | None:
        # By the handle that was registered: a GPU that fell off the bus no longer tells its UUID.
        address = ctypes.cast(handle, ctypes.c_void_p).value
        if not address:
            return None
        known = self._event_uuids.get(address)
        if known is not None:
            return known
        try:
            return str(pynvml.nvmlDeviceGetUUID(handle))
        except pynvml.NVMLError:
            return None

    def _register(self) -> None:
        self._drop_events()
        self._stale.clear()
        events = _call(pynvml.nvmlEventSetCreate)
        wanted = pynvml.nvmlEventTypeXidCriticalError
        for uuid in self._uuids or tuple(device.uuid for device in self.devices()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                if not pynvml.nvmlDeviceGetSupportedEventTypes(handle) & wanted:
                    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
                pynvml.nvmlDeviceRegisterEvents(handle, wanted, events)
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED:
                    self._not_registered.add(uuid)
                _log.warning("No XID events from %s, it is only polled: %s", uuid, error)
                continue
            self._event_uuids[ctypes.cast(handle, ctypes.c_void_p).value or 0] = uuid
        self._events = events

    def _drop_events(self) -> None:
        events, self._events = self._events, None
        self._event_uuids, self._not_registered = {}, set()
        if events is not None:
            try:
                pynvml.nvmlEventSetFree(events)
            except pynvml.NVMLError as error:
                _log.warning("NVML's event set was not freed: %s", error)

    def close(self) -> None:
        """Frees the event set and shuts NVML down, unless a call hangs in it: then it is left."""
        self._closed.set()
        if not self._event_lock.acquire(timeout=2.0):
            _log.warning("NVML is left open: a call still hangs in it")
            return
        try:
            self._drop_events()
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            _log.warning("NVML did not shut down: %s", error)
        finally:
            self._event_lock.release()


def _mig_is_on(handle: Any) -> bool:
    mode = _optional(pynvml.nvmlDeviceGetMigMode, handle)
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def _read_device(index: int) -> Device:
    """GPU `index`. Raises DeviceFault where it can't be leased; values that NVML lacks are None."""
    handle = _call(pynvml.nvmlDeviceGetHandleByIndex, index)
    uuid = str(_call(pynvml.nvmlDeviceGetUUID, handle))
    if _mig_is_on(handle):
        raise DeviceFault("It is in MIG mode, and this version leases whole GPUs only")
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None or memory.total <= 0:
        raise DeviceFault("It does not tell the size of its memory")
    capability = _optional(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    cores = _optional(pynvml.nvmlDeviceGetNumGpuCores, handle)
    cores_per_sm = CORES_PER_SM.get(capability) if capability else None
    clock_mhz = _optional(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM)
    return Device(
        uuid=uuid,
        model=_optional(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
        memory_bytes=memory.total,
        compute_capability=capability,
        sm_count=cores // cores_per_sm if cores and cores_per_sm else None,
        memory_bus_width_bits=_optional(pynvml.nvmlDeviceGetMemoryBusWidth, handle) or None,
        memory_clock_hz=clock_mhz * 1_000_000 if clock_mhz else None,
        index=index,
    )


def open_inventory(site: GpuSite) -> Inventory:
    """The inventory that `c.GpuSite.inventory` asks for. Blocks; raises ConfigError with the remedy.

    `auto` takes simulated GPUs only where there is no driver or no GPU. A driver that is there and
    fails is an error: a machine with GPUs must not hand out simulated ones after a bad upgrade.
    """
    from .simulated import SimulatedInventory

    if site.inventory == "simulated":
        return SimulatedInventory.from_site(site)
    try:
        inventory = NvmlInventory()
    except DeviceFault as fault:
        if site.inventory == "nvml" or not is_absent(fault):
            raise _no_nvml(fault) from fault
        _log.info("GPUs are simulated: %s", fault)
        return SimulatedInventory.from_site(site)
    try:
        if inventory.devices():
            return inventory
    except DeviceFault as fault:
        inventory.close()
        raise _no_nvml(fault) from fault
    inventory.close()
    if site.inventory == "nvml":
        raise _no_nvml(DeviceFault("NVML lists no GPU"))
    _log.info("GPUs are simulated: NVML lists no GPU")
    return SimulatedInventory.from_site(site)


def is_absent(fault: DeviceFault) -> bool:
    """Whether the fault says that there is no NVIDIA driver, rather than a broken one."""
    return isinstance(fault.__cause__, pynvml.NVMLError) and fault.__cause__.value in _ABSENT


def _no_nvml(fault: DeviceFault) -> ConfigError:
    return ConfigError(
        f'{fault}. Until that is mended, c.GpuSite.inventory = "simulated" starts without real GPUs'
    )


def nvidia_pci_devices(root: Path = Path("/sys/bus/pci/devices")) -> tuple[str, ...]:
    """PCI addresses of NVIDIA display controllers, driver or not (vendor 0x10de, class 0x03)."""
    found = []
    for device in sorted(root.glob("*")):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            found.append(device.name)
    return tuple(found)
