"""Simulated GPUs: the same tiers, leases and pages on a machine without a GPU.

A simulated device's UUID starts with `GPU-facade00-`: a valid UUID that shows that the device is simulated.
"""

from __future__ import annotations

import queue
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from ...config.site import GpuSite
from ...core.errors import ConfigError, DeviceFault
from ...core.model import Device
from ...core.units import parse_bytes
from . import Climate, ComputeMode, DriverFacts, GpuProcess, ProcessUse, XidEvent
from .mig import gpu_fraction

SETTING = "c.GpuSite.simulated_devices"
FAULTS_FILE = "simulated_faults"
"""A file in the state folder with one line per broken simulated device: its index or UUID, then the
reason. Of several machines, a machine's name in place of a device: it can't be reached."""

_KIND = re.compile(
    r"^\s*(\d+)\s*[x×]\s*(\S.*?)\s+(\d+(?:\.\d+)?\s*[MGT]i?B?)(?:\s+MIG\s+(\S+))?\s*$", re.IGNORECASE
)
_MACHINE = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9.-]*)\s*:(.*)$", re.DOTALL)
_PROFILE = re.compile(r"^\d+g\.(\d+)gb$")
_NO_MACHINE = "-0000-4000-"
"""The part of a UUID that says which machine has it."""
_MOST = 4096


@dataclass(frozen=True, slots=True)
class _Known:
    capability: tuple[int, int]
    sm_count: int
    bus_width_bits: int
    memory_clock_hz: int


_KNOWN = {
    ("H100", 80): _Known((9, 0), 132, 5120, 2_619_000_000),
    ("A100", 40): _Known((8, 0), 108, 5120, 1_215_000_000),
    ("A100", 80): _Known((8, 0), 108, 5120, 1_593_000_000),
    ("V100", 16): _Known((7, 0), 80, 4096, 877_000_000),
    ("V100", 32): _Known((7, 0), 80, 4096, 877_000_000),
    ("L40S", 48): _Known((8, 9), 142, 384, 9_001_000_000),
    ("L4", 24): _Known((8, 9), 58, 192, 6_251_000_000),
    ("T4", 16): _Known((7, 5), 40, 256, 5_001_000_000),
}
"""SMs, bus width and memory clock from NVIDIA's data sheets of the SXM (H100, A100, V100) and PCIe
(L40S, L4, T4) boards: 2 x clock x width gives the sheet's bandwidth (3.35, 1.56, 2.04, 0.90, 0.86,
0.30 and 0.32 TB/s). For other models, all of them are None."""


def parse_simulated(text: str, setting: str = SETTING) -> tuple[Device, ...]:
    """The devices of "2 x H100 80GB, 1 x A100 40GB", or of several machines, "a: 2 x H100 80GB; b: …".

    Raises ConfigError with the remedy, naming `setting`.
    """
    devices: list[Device] = []
    for machine, kinds in _by_machine(text, setting).items():
        devices += _devices(machine, kinds, len(devices), setting)
    return tuple(devices)


def machine_names(text: str) -> tuple[str, ...]:
    """The machines that the setting names; one without a name is "". Raises ConfigError."""
    return tuple(_by_machine(text))


def _by_machine(text: str, setting: str = SETTING) -> dict[str, str]:
    """What each machine has, as it is written."""
    found: dict[str, str] = {}
    parts = text.split(";")
    for part in parts:
        match = _MACHINE.match(part)
        if match is None and len(parts) == 1:
            return {"": text}
        if match is None or match[1] in found:
            raise ConfigError(
                f"{setting}: {part.strip()!r} needs a name of its own for the machine, as "
                'in "a: 2 x H100 80GB; b: 1 x A100 40GB"'
            )
        found[match[1]] = match[2]
    return found


def _devices(machine: str, kinds: str, before: int, setting: str) -> list[Device]:
    """A machine's devices; `before`: how many the machines before it have."""
    devices: list[Device] = []
    for part in kinds.split(","):
        match = _KIND.match(part)
        count = int(match[1]) if match else 0
        if match is None or count < 1 or before + len(devices) + count > _MOST:
            raise ConfigError(
                f"{setting}: {part.strip()!r} can't be read: write a count from 1 to "
                f'{_MOST}, a model and its memory, like "2 x H100 80GB, 1 x A100 40GB"'
            )
        memory_bytes = parse_bytes(match[3].replace(" ", ""), f"{setting}: memory")
        for _ in range(count):
            device = _device(before + len(devices), match[2], match[3].replace(" ", ""), memory_bytes)
            device = replace(device, index=len(devices), node=machine)
            devices.append(device if match[4] is None else _instance(device, match[4].lower(), setting))
    return devices


def _instance(gpu: Device, profile: str, setting: str) -> Device:
    """A MIG instance of a simulated GPU, one per GPU; like NVML, without a bandwidth."""
    size = _PROFILE.search(profile)
    if size is None or int(size[1]) << 30 > gpu.memory_bytes:
        raise ConfigError(
            f"{setting}: {profile!r} is not a MIG profile of a {gpu.model}: write it like "
            '"7 x H100 80GB MIG 1g.10gb"'
        )
    return replace(
        gpu,
        uuid=gpu.uuid.replace("GPU-", "MIG-"),
        model=f"{gpu.model} MIG {profile}",
        memory_bytes=int(size[1]) << 30,
        sm_count=None,
        memory_bus_width_bits=None,
        memory_clock_hz=None,
        parent_uuid=gpu.uuid,
        mig_profile=profile,
        gpu_fraction=gpu_fraction(int(size[1]) << 30, gpu.memory_bytes, profile),
    )


def _device(number: int, kind: str, size: str, memory_bytes: int) -> Device:
    known = _KNOWN.get((kind.upper().removeprefix("NVIDIA "), memory_bytes >> 30))
    return Device(
        uuid=f"GPU-facade00{_NO_MACHINE}8000-{number:012x}",
        model=f"{kind} {size}",
        memory_bytes=memory_bytes,
        compute_capability=known.capability if known else None,
        sm_count=known.sm_count if known else None,
        memory_bus_width_bits=known.bus_width_bits if known else None,
        memory_clock_hz=known.memory_clock_hz if known else None,
        simulated=True,
    )


def _of_machine(device: Device, machine: str) -> Device:
    """The device with a UUID that no other machine's has, but for one in 65,536."""
    mark = f"-{zlib.crc32(machine.encode()) & 0xFFFF:04x}-4000-"
    parent = None if device.parent_uuid is None else device.parent_uuid.replace(_NO_MACHINE, mark)
    return replace(device, uuid=device.uuid.replace(_NO_MACHINE, mark), parent_uuid=parent)


def read_faults(file: Path) -> dict[str, str]:
    """What the faults file says of each device or machine. Raises DeviceFault if it can't be read."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DeviceFault(f"{file} can't be read: {error.strerror}") from error
    parts = (line.strip().partition(" ") for line in lines)
    return {name: reason.strip() or "Broken on purpose" for name, _, reason in reversed([*parts])}


class SimulatedInventory:
    """Devices from a line of text; a file or the methods below can break them."""

    simulated = True
    left_out: tuple[str, ...] = ()

    def __init__(self, devices: tuple[Device, ...], faults_file: Path | None = None) -> None:
        self._devices = devices
        self._faults_file = faults_file
        self._faults: dict[str, str] = {}
        self._pending: dict[str, str] = {}
        self._modes: dict[str, ComputeMode] = {}
        self._xids: queue.Queue[XidEvent] = queue.Queue()

    @classmethod
    def from_site(cls, site: GpuSite, machine: str | None = None, joined_as: str = "") -> SimulatedInventory:
        """What a machine of `c.GpuSite.simulated_devices` has, by default the first one.

        `joined_as` makes its UUIDs differ from those of other machines with the same setting. Raises
        ConfigError with the remedy.
        """
        name = machine_names(site.simulated_devices)[0] if machine is None else machine
        devices = tuple(each for each in parse_simulated(site.simulated_devices) if each.node == name)
        if joined_as:
            devices = tuple(_of_machine(each, joined_as) for each in devices)
        return cls(devices, Path(site.state_dir) / FAULTS_FILE)

    def devices(self) -> tuple[Device, ...]:
        """All simulated devices, also broken ones."""
        return self._devices

    def driver(self) -> DriverFacts | None:
        """None: there is no driver."""
        return None

    def check(self, uuid: str) -> None:
        """Raises DeviceFault if `break_device` or the faults file broke the device."""
        device = next((device for device in self._devices if device.uuid == uuid), None)
        if device is None:
            raise DeviceFault("There is no such simulated GPU")
        reason = self._faults.get(uuid) or self._file_fault(device)
        if reason:
            raise DeviceFault(reason)

    def _file_fault(self, device: Device) -> str:
        faults = {} if self._faults_file is None else read_faults(self._faults_file)
        return faults.get(device.uuid) or faults.get(str(device.index), "")

    def reset_pending(self, uuid: str) -> str:
        """The reason given to `hold_for_reset`."""
        return self._pending.get(uuid, "")

    def wait_xid(self, timeout_seconds: float) -> XidEvent | None:
        """The next event of `send_xid`."""
        try:
            return self._xids.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """An empty dict: programs in the containers compute on the CPU."""
        self.check(uuid)
        return ()

    def used_bytes(self, uuid: str) -> int:
        """Always 0."""
        self.check(uuid)
        return 0

    def utilization_percent(self, uuid: str) -> float | None:
        """Always None: a simulated device has no utilization."""
        self.check(uuid)
        return None

    def climate(self, uuid: str) -> Climate:
        """Nothing is known: a simulated device is neither warm nor cold."""
        self.check(uuid)
        return Climate()

    def process_use(self, uuid: str, since_us: int) -> ProcessUse | None:
        """Always None: programs in the containers compute on the CPU."""
        self.check(uuid)
        return None

    def compute_mode(self, uuid: str) -> ComputeMode:
        """The mode that was set; the default at first."""
        self.check(uuid)
        return self._modes.get(uuid, ComputeMode.DEFAULT)

    def set_compute_mode(self, uuid: str, mode: ComputeMode) -> None:
        """Stores the mode; it has no effect."""
        self.check(uuid)
        self._modes[uuid] = mode

    def close(self) -> None:
        """Does nothing: no library was opened."""

    def break_device(self, uuid: str, reason: str) -> None:
        """Makes `check` fail with `reason`; "" makes it pass again."""
        self._faults[uuid] = reason

    def hold_for_reset(self, uuid: str, reason: str) -> None:
        """Makes `reset_pending` return `reason`."""
        self._pending[uuid] = reason

    def send_xid(self, uuid: str | None, xid: int) -> None:
        """Delivers an XID, as the driver would."""
        self._xids.put(XidEvent(uuid, xid))
