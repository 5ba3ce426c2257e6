"""Lists the devices that can be leased: whole GPUs, and the instances of GPUs in MIG mode, by their UUIDs."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pynvml

from ...core.errors import DeviceFault
from ...core.model import Device
from .calls import call, fault_of, optional
from .mig import gpu_fraction
from .patience import Patience

_log = logging.getLogger(__name__)

CORES_PER_SM = {
    (5, 0): 128, (5, 2): 128, (5, 3): 128, (6, 0): 64, (6, 1): 128, (6, 2): 128, (7, 0): 64, (7, 2): 64,
    (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (10, 3): 128,
    (11, 0): 128, (12, 0): 128, (12, 1): 128,
}  # fmt: skip
"""FP32 cores of an SM by compute capability (CUDA C++ Programming Guide 13.0, arithmetic throughput).

NVML reports the cores of a whole GPU, but its SMs only for MIG (`nvmlDeviceGetAttributes_v2`).
"""

_PROFILE = re.compile(r"\bMIG (\S+)\s*$")


@dataclass(frozen=True, slots=True)
class Handle:
    """NVML's handles of a device and of its whole GPU; they are the same for a whole GPU."""

    own: Any
    whole: Any
    is_instance: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """The devices that can be leased, NVML's handles by UUID, and a sentence for each other device."""

    devices: tuple[Device, ...]
    left_out: tuple[str, ...]
    handles: Mapping[str, Handle]


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG device: a compute instance of a GPU instance."""

    uuid: str
    gpu_instance: int
    compute_instance: int


def read_all(patience: Patience) -> Listing:
    """Lists the devices of this machine, by NVML's index. A GPU that hangs or fails doesn't hide the others.

    Raises DeviceFault if NVML itself can't be read.
    """
    devices: list[Device] = []
    left_out: list[str] = []
    handles: dict[str, Handle] = {}
    count = call(pynvml.nvmlDeviceGetCount)
    found = patience.ask({f"GPU {index}": partial(_read_index, index) for index in range(count)})
    for subject, listing in found.items():
        if isinstance(listing, DeviceFault):
            left_out.append(_left_out(subject, listing))
            continue
        devices.extend(listing.devices)
        left_out.extend(listing.left_out)
        handles |= listing.handles
    return Listing(tuple(devices), tuple(left_out), handles)


def _read_index(index: int) -> Listing:
    """The GPU with that index, or its instances. Raises DeviceFault if it can't be read."""
    handle = call(pynvml.nvmlDeviceGetHandleByIndex, index)
    if mig_is_on(handle):
        return _read_instances(handle, index)
    device = _read_gpu(handle, index)
    return Listing((device,), (), {device.uuid: Handle(handle, handle)})


def find_handle(uuid: str, device: Device | None) -> Handle:
    """NVML's handles of `device`, which may be None if it was never listed. Raises DeviceFault.

    It looks the device up by index, which asks only that GPU. A look-up by UUID asks one GPU after the other
    (NVML API Reference r580, nvmlDeviceGetHandleByUUID), and one that hangs would block all look-ups.
    """
    if device is not None and device.index is not None:
        whole = call(pynvml.nvmlDeviceGetHandleByIndex, device.index)
        if call(pynvml.nvmlDeviceGetUUID, whole) == (device.parent_uuid or uuid):
            if device.parent_uuid is None:
                return Handle(whole, whole)
            for instance in instance_handles(whole):
                if call(pynvml.nvmlDeviceGetUUID, instance) == uuid:
                    return Handle(instance, whole, is_instance=True)
    own = call(pynvml.nvmlDeviceGetHandleByUUID, uuid)
    parent = parent_handle(own)
    return Handle(own, own if parent is None else parent, is_instance=parent is not None)


def _left_out(subject: str, fault: DeviceFault) -> str:
    _log.warning("%s is not listed: %s", subject, fault)
    return f"{subject}: {fault}."


def mig_is_on(handle: Any) -> bool:
    """Whether the whole GPU is in MIG mode now. Raises DeviceFault if that is unknown."""
    mode = optional(pynvml.nvmlDeviceGetMigMode, handle)
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def instance_handles(handle: Any) -> list[Any]:
    """NVML's handles of the GPU's MIG devices. Raises DeviceFault."""
    found = []
    for index in range(optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:  # this index has no instance
                raise fault_of(error) from error
    return found


def instance_of(handle: Any) -> Instance:
    """The MIG device of the handle. Raises DeviceFault."""
    return Instance(
        uuid=str(call(pynvml.nvmlDeviceGetUUID, handle)),
        gpu_instance=call(pynvml.nvmlDeviceGetGpuInstanceId, handle),
        compute_instance=call(pynvml.nvmlDeviceGetComputeInstanceId, handle),
    )


def parent_handle(handle: Any) -> Any | None:
    """The whole GPU's handle for a MIG device's handle; None for a whole GPU.

    Raises DeviceFault if it is lost.
    """
    if not optional(pynvml.nvmlDeviceIsMigDeviceHandle, handle):
        return None
    return call(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)


def _read_gpu(handle: Any, index: int) -> Device:
    """Reads a whole GPU. Raises DeviceFault if it can't be leased; values that NVML lacks are None."""
    capability = optional(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    cores = optional(pynvml.nvmlDeviceGetNumGpuCores, handle)
    cores_per_sm = CORES_PER_SM.get(capability) if capability else None
    clock_mhz = optional(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM)
    return Device(
        uuid=str(call(pynvml.nvmlDeviceGetUUID, handle)),
        model=optional(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
        memory_bytes=_memory_bytes(handle),
        compute_capability=capability,
        sm_count=cores // cores_per_sm if cores and cores_per_sm else None,
        memory_bus_width_bits=optional(pynvml.nvmlDeviceGetMemoryBusWidth, handle) or None,
        memory_clock_hz=clock_mhz * 1_000_000 if clock_mhz else None,
        index=index,
    )


def _memory_bytes(handle: Any) -> int:
    memory = optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None or memory.total <= 0:
        raise DeviceFault("It does not report the size of its memory")
    return int(memory.total)


def _read_instances(parent: Any, index: int) -> Listing:
    """The MIG devices of a GPU. Raises DeviceFault if the GPU can't be read or has none.

    Compute instances of the same GPU instance share its memory without limits between them (NVIDIA MIG User
    Guide r580, "Compute Instance"): a quota would not be hard, so they are not listed.
    """
    handles = instance_handles(parent)
    if not handles:
        raise DeviceFault(
            "It is in MIG mode but has no instances, which a reboot removes: create some (`nvidia-smi mig "
            "-cgi <profiles> -C`), or switch MIG off"
        )
    instances = [(instance_of(handle), handle) for handle in handles]
    shared = Counter(instance.gpu_instance for instance, _ in instances)
    devices, left_out, found = [], [], {}
    for instance, handle in instances:
        try:
            if shared[instance.gpu_instance] > 1:
                raise DeviceFault(
                    f"It shares the memory of GPU instance {instance.gpu_instance} with other compute "
                    "instances: create one compute instance in each GPU instance"
                )
            devices.append(_read_instance(parent, index, instance, handle))
            found[instance.uuid] = Handle(handle, parent, is_instance=True)
        except DeviceFault as fault:
            left_out.append(_left_out(f"MIG instance {instance.uuid} of GPU {index}", fault))
    return Listing(tuple(devices), tuple(left_out), found)


def _read_instance(parent: Any, index: int, instance: Instance, handle: Any) -> Device:
    attributes = optional(pynvml.nvmlDeviceGetAttributes_v2, handle)
    name = optional(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU"
    profile, size_bytes = profile_of(name, attributes), _memory_bytes(handle)
    # NVML reports bus width and clock only for the whole GPU; an instance has a part of them: not available.
    return Device(
        uuid=instance.uuid,
        model=name if profile is None or _PROFILE.search(name) else f"{name} MIG {profile}",
        memory_bytes=size_bytes,
        compute_capability=optional(pynvml.nvmlDeviceGetCudaComputeCapability, parent),
        sm_count=attributes.multiprocessorCount or None if attributes is not None else None,
        index=index,
        parent_uuid=str(call(pynvml.nvmlDeviceGetUUID, parent)),
        mig_profile=profile,
        gpu_fraction=gpu_fraction(size_bytes, _gpu_bytes(parent), profile),
    )


def _gpu_bytes(parent: Any) -> int | None:
    """The memory of the whole GPU; None if NVML doesn't report it, as in MIG mode without root."""
    try:
        return _memory_bytes(parent)
    except DeviceFault:
        return None


def profile_of(name: str, attributes: Any | None) -> str | None:
    """The MIG profile ("1g.10gb"): the end of NVML's name of the instance, else computed from its slices.

    It is computed as nvidia-smi does: compute slices are shown only if they are fewer than the GPU
    instance's, and memory is rounded up to GiB.
    """
    match = _PROFILE.search(name)
    if match:
        return match[1]
    if attributes is None:
        return None
    compute, gpu = attributes.computeInstanceSliceCount, attributes.gpuInstanceSliceCount
    size = f"{gpu}g.{-(-attributes.memorySizeMB // 1024)}gb"
    return size if compute == gpu else f"{compute}c.{size}"
