"""What the broker may ask of the hardware, and the answers: the seam between the two."""

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
    """One sentence for each device that can't be leased."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes or draws on a device. `memory_bytes` is None where NVML doesn't say.

    `through_mps`: whether it is a client of an MPS server; None where NVML can't tell.
    """

    pid: int
    memory_bytes: int | None
    through_mps: bool | None = False


class ComputeMode(IntEnum):
    """Who may make a CUDA context on a GPU; the values are NVML's (`nvmlComputeMode_t`)."""

    DEFAULT = 0
    EXCLUSIVE_THREAD = 1
    PROHIBITED = 2
    EXCLUSIVE_PROCESS = 3


class Inventory(Protocol):
    """The seam between the broker and the hardware. Everything blocks and may be called in any thread."""

    simulated: bool
    left_out: tuple[str, ...]
    """One sentence for each device that could not be listed the last time."""

    def devices(self) -> tuple[Device, ...]:
        """Every device that can be leased. Raises DeviceFault if nothing can be read."""

    def driver(self) -> DriverFacts | None:
        """Versions of the driver; None where devices are simulated. Raises DeviceFault."""

    def check(self, uuid: str) -> None:
        """Returns if the device answers; raises DeviceFault with a sentence if lost or unreadable."""

    def reset_pending(self, uuid: str) -> str:
        """Why a withdrawn device must stay so until it is reset; "" if it need not."""

    def wait_xid(self, timeout_seconds: float) -> XidEvent | None:
        """The next XID; None when none came in time. Raises DeviceFault if waiting failed."""

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """The processes on the device, by pid. Raises DeviceFault: then nothing is known."""

    def used_bytes(self, uuid: str) -> int:
        """Memory in use on the device, by whomever: one cheap call. Raises DeviceFault."""

    def utilization_percent(self, uuid: str) -> float | None:
        """How busy the device was lately; None where that isn't told, as for MIG. Raises DeviceFault."""

    def compute_mode(self, uuid: str) -> ComputeMode:
        """The GPU's compute mode. Raises DeviceFault."""

    def set_compute_mode(self, uuid: str, mode: ComputeMode) -> None:
        """Changes it until it is changed again or the driver is reloaded. Needs root; raises DeviceFault."""

    def close(self) -> None:
        """Ends the use of NVML; further calls fail."""


def modes_of(
    inventory: Inventory, devices: Iterable[Device], patience: Patience
) -> dict[str, ComputeMode | None]:
    """The compute modes of the whole GPUs, by UUID; None where it can't be read in time. Blocks."""
    whole = [device.uuid for device in devices if not device.is_mig]
    answers = patience.ask({uuid: partial(inventory.compute_mode, uuid) for uuid in whole})
    return {uuid: None if isinstance(mode, DeviceFault) else mode for uuid, mode in answers.items()}
