"""Calls NVML and converts its errors to DeviceFault with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from ...core.errors import DeviceFault

T = TypeVar("T")

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
    pynvml.NVML_ERROR_NOT_FOUND: "The GPU no longer exists: see `nvidia-smi -L`",
}  # fmt: skip

NOT_THERE = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
"""Errors that mean: this GPU or driver doesn't have this feature."""
_ABSENT = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


def fault_of(error: pynvml.NVMLError) -> DeviceFault:
    """A sentence for NVML's error, with NVML's own text."""
    sentence = _SENTENCES.get(error.value, "The GPU can't be read: see `dmesg` and `nvidia-smi`")
    return DeviceFault(f"{sentence} (NVML: {error})")


def call(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)`; an NVML error becomes a DeviceFault."""
    try:
        return function(*args)
    except pynvml.NVMLError as error:
        raise fault_of(error) from error


def optional(function: Callable[..., T], *args: Any) -> T | None:
    """Like `call`, but None if this GPU or driver doesn't have this feature.

    Any other error is a fault: a value that can't be read is unknown, and must not count as "no".
    """
    try:
        return function(*args)
    except pynvml.NVMLError as error:
        if error.value in NOT_THERE:
            return None
        raise fault_of(error) from error


def is_not_there(fault: DeviceFault) -> bool:
    """Whether the fault means that this GPU or driver doesn't have this feature."""
    return isinstance(fault.__cause__, pynvml.NVMLError) and fault.__cause__.value in NOT_THERE


def is_empty(fault: DeviceFault) -> bool:
    """Whether the fault means that there is nothing to list.

    NVML answers NOT_FOUND where no process used the GPU (driver 580.159.04); pynvml 12 and 13 raise the code
    of success for an empty list.
    """
    empty = (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS)
    return isinstance(fault.__cause__, pynvml.NVMLError) and fault.__cause__.value in empty


def is_absent(fault: DeviceFault) -> bool:
    """Whether the fault means that there is no NVIDIA driver; False for a broken one."""
    return isinstance(fault.__cause__, pynvml.NVMLError) and fault.__cause__.value in _ABSENT


def is_not_loaded(fault: DeviceFault) -> bool:
    """Whether NVML's library is there, but the driver's kernel module is not loaded."""
    cause = fault.__cause__
    return isinstance(cause, pynvml.NVMLError) and cause.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED


def recovery_action(handle: Any) -> int:
    """NVML's recovery action of a GPU. Raises NVMLError, also for the answer of the field itself."""
    (found,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if found.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(found.nvmlReturn)
    return int(found.value.uiVal)
