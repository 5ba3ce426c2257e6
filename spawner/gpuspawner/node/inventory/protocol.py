"""The interface to the hardware: its calls and their results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Protocol

from ...core.errors import DeviceFault
from ...core.model import Device
from .patience import Patience


@dataclass(frozen=True, slots=True)
class XidEvent:
    """An error that the driver reported. `uuid` is None if it names no device: then all are affected."""

    uuid: str | None
    xid: int


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """The driver for `doctor`: versions as text ("580.159.04", "13.0"), None if not available."""

    driver_version: str | None
    cuda_version: str | None
    gpu_count: int
    left_out: tuple[str, ...]
    """One sentence for each device that can't be leased."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A compute or graphics process on a device. `memory_bytes` is None if NVML doesn't report it.

    `through_mps`: whether it is a client of an MPS server; None if NVML can't tell.
    """

    pid: int
    memory_bytes: int | None
    through_mps: bool | None = False


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """Which processes used a device since an earlier call.

    `until_us` is NVML's time of the newest sample in microseconds, for the next call. A client of MPS is not
    in `pids`: NVML counts its use for the MPS server (seen with driver 580.159.04 on an H100).
    """

    pids: frozenset[int]
    until_us: int


@dataclass(frozen=True, slots=True)
class Climate:
    """How warm a GPU is and what it draws. None: this GPU or driver doesn't tell."""

    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None


class ComputeMode(IntEnum):
    """Which processes may create a CUDA context on a GPU; the values are NVML's (`nvmlComputeMode_t`)."""

    DEFAULT = 0
    EXCLUSIVE_THREAD = 1
    PROHIBITED = 2
    EXCLUSIVE_PROCESS = 3


class Inventory(Protocol):
    """The interface to the hardware. All methods block and may be called from any thread."""

    simulated: bool
    left_out: tuple[str, ...]
    """One sentence for each device that the last listing could not read."""

    def devices(self) -> tuple[Device, ...]:
        """All devices that can be leased. Raises DeviceFault if nothing can be read."""

    def driver(self) -> DriverFacts | None:
        """Versions of the driver; None if devices are simulated. Raises DeviceFault."""

    def check(self, uuid: str) -> None:
        """Returns if the device answers; raises DeviceFault with a sentence if lost or unreadable."""

    def reset_pending(self, uuid: str) -> str:
        """Why a device must stay out of service until it is reset; "" if no reset is needed."""

    def wait_xid(self, timeout_seconds: float) -> XidEvent | None:
        """The next XID; None if none came in time. Raises DeviceFault if waiting failed."""

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """The processes on the device, by pid. Raises DeviceFault: then the processes are unknown."""

    def used_bytes(self, uuid: str) -> int:
        """Memory in use on the device by all processes, with one cheap call. Raises DeviceFault."""

    def utilization_percent(self, uuid: str) -> float | None:
        """The device's recent utilization; None if it isn't available, as for MIG. Raises DeviceFault."""

    def climate(self, uuid: str) -> Climate:
        """Temperature and power; of a MIG instance, those of its GPU. Raises DeviceFault."""

    def process_use(self, uuid: str, since_us: int) -> ProcessUse | None:
        """Who used the device since `ProcessUse.until_us` of the call before, 0 at first.

        None if that isn't available, as for MIG. Raises DeviceFault.
        """

    def compute_mode(self, uuid: str) -> ComputeMode:
        """The GPU's compute mode. Raises DeviceFault."""

    def set_compute_mode(self, uuid: str, mode: ComputeMode) -> None:
        """Sets it until the next change or until the driver is reloaded. Needs root. Raises DeviceFault."""

    def close(self) -> None:
        """Ends the use of NVML; further calls fail."""


def modes_of(
    inventory: Inventory, devices: Iterable[Device], patience: Patience
) -> dict[str, ComputeMode | None]:
    """The compute modes of the whole GPUs, by UUID; None if one can't be read in time. Blocks."""
    whole = [device.uuid for device in devices if not device.is_mig]
    answers = patience.ask({uuid: partial(inventory.compute_mode, uuid) for uuid in whole})
    return {uuid: None if isinstance(mode, DeviceFault) else mode for uuid, mode in answers.items()}
