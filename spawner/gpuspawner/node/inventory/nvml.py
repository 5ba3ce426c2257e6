"""The GPUs and MIG instances of this machine, read from NVML."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from ...core.errors import DeviceFault
from ...core.model import Device
from .calls import call, fault_of, is_empty, is_not_there, optional, recovery_action
from .listing import Handle, find_handle, instance_handles, instance_of, mig_is_on, read_all
from .patience import Patience
from .protocol import Climate, ComputeMode, DriverFacts, GpuProcess, ProcessUse, XidEvent

_log = logging.getLogger(__name__)

_RESET = "NVML says that the GPU needs a reset: run `nvidia-smi --gpu-reset`"
_RESTART = "NVML says that the machine has to be restarted"
_RECOVERY = {
    pynvml.NVML_GPU_RECOVERY_ACTION_NONE: "",
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: _RESET,
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: _RESTART,
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: "NVML says that programs which use this GPU together with "
    "others have to end first",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: _RESET,
}
"""NVML API Reference (r580), nvmlDeviceGpuRecoveryAction."""
_NO_INSTANCE = 0xFFFFFFFF
"""NVML's instance id of an event or process without an instance."""


class NvmlInventory:
    """The devices that NVML lists. Raises DeviceFault if NVML can't be used.

    A GPU that is lost or can't be read is not listed, and the log says why; the others stay usable.
    """

    simulated = False

    def __init__(self, patience: Patience | None = None) -> None:
        call(pynvml.nvmlInit)
        self._devices: tuple[Device, ...] = ()
        self.left_out: tuple[str, ...] = ()
        """One sentence for each device that the last listing could not read."""
        self._patience = patience or Patience()
        self._handles: dict[str, Handle] = {}
        self._events: Any = None
        self._event_uuids: dict[int, str] = {}
        self._waiting: deque[XidEvent] = deque()
        self._not_registered: set[str] = set()
        self._event_lock = threading.Lock()
        self._stale = threading.Event()
        self._closed = threading.Event()

    def devices(self) -> tuple[Device, ...]:
        """By NVML's index: whole GPUs, or the instances of a GPU in MIG mode.

        Raises DeviceFault if NVML lists GPUs but none can be leased.
        """
        found = read_all(self._patience)
        self.left_out = found.left_out
        self._handles.update(found.handles)
        if found.left_out and not found.devices:
            raise DeviceFault(f"No GPU can be leased. {' '.join(found.left_out)}")
        listed = {device.uuid for device in found.devices}
        before = {device.uuid for device in self._devices}
        # A GPU that can't be read now stays known, so that its events are still reported.
        self._devices = (*found.devices, *(each for each in self._devices if each.uuid not in listed))
        if before and listed - before:
            self._stale.set()  # register for the new devices' events, too
        return found.devices

    def driver(self) -> DriverFacts:
        """Versions, and the devices missing from the last listing, for `doctor`. Raises DeviceFault."""
        cuda = optional(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return DriverFacts(
            driver_version=optional(pynvml.nvmlSystemGetDriverVersion),
            cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            gpu_count=call(pynvml.nvmlDeviceGetCount),
            left_out=self.left_out,
        )

    # ---- health

    def check(self, uuid: str) -> None:
        """Reads the device's memory and whether a row remapping of its GPU failed. Raises DeviceFault.

        After a failed remapping, the GPU must be replaced (NVIDIA GPU Memory Error Management r580, RMA
        policy).
        """
        with self._handle(uuid) as handle:
            call(pynvml.nvmlDeviceGetMemoryInfo, handle.own)
            rows = optional(pynvml.nvmlDeviceGetRemappedRows, handle.whole)
            if rows is not None and rows[3]:
                raise DeviceFault("A bad memory row could not be remapped: the GPU must be replaced")
            if not handle.is_instance and mig_is_on(handle.own):
                raise DeviceFault("The GPU was switched to MIG mode: switch it back, or restart the broker")
        if uuid in self._not_registered:
            self._stale.set()

    def reset_pending(self, uuid: str) -> str:
        """Why the GPU must be reset first. Raises DeviceFault.

        Remapped rows or retired pages are pending, or NVML names an action (since r570; older drivers and
        GPUs have none).
        """
        with self._handle(uuid) as handle:
            rows = optional(pynvml.nvmlDeviceGetRemappedRows, handle.whole)
            if rows is not None and rows[2]:
                return "Remapped memory rows wait for a reset: run `nvidia-smi --gpu-reset`"
            if optional(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle.whole):
                return "Retired memory pages wait for a reset: run `nvidia-smi --gpu-reset`"
            return _recovery(optional(recovery_action, handle.whole) or pynvml.NVML_GPU_RECOVERY_ACTION_NONE)

    @contextmanager
    def _handle(self, uuid: str) -> Iterator[Handle]:
        """The device's handles: cached, and looked up again after a fault. Raises DeviceFault."""
        try:
            handle = self._handles.get(uuid)
            if handle is None:
                device = next((each for each in self._devices if each.uuid == uuid), None)
                handle = self._handles[uuid] = find_handle(uuid, device)
            yield handle
        except DeviceFault:
            self._handles.pop(uuid, None)
            raise

    # ---- use of a device

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """By pid. With driver 580, an MPS client is in two of NVML's lists: compute processes and MPS
        clients.

        Memory used by Vulkan or OpenGL is only in a third list, of graphics processes: without it, that
        memory would not count towards the quota. The compute list is read first, so that a client that starts
        between the calls is recognised as an MPS client. One that ends between them looks as if it bypassed
        MPS: believe that only if it is seen again.
        """
        with self._handle(uuid) as handle:
            own = handle.own
            listed = {each.pid: each for each in call(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, own)}
            drawing = _listed(pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, own) or {}
            clients = _listed(pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, own)
        through = clients or {}
        return tuple(
            GpuProcess(pid, info.usedGpuMemory, None if clients is None else pid in through)
            for pid, info in sorted({**drawing, **through, **listed}.items())
        )

    def used_bytes(self, uuid: str) -> int:
        """What programs and the driver use, with what the driver reserves (nvidia-smi's `memory.used` and
        `memory.reserved` together; 615 MiB reserved on an H200, driver 580)."""
        with self._handle(uuid) as handle:
            return int(call(pynvml.nvmlDeviceGetMemoryInfo, handle.own).used)

    def utilization_percent(self, uuid: str) -> float | None:
        """Time with a kernel running, over NVML's last sample (`utilization.gpu`). None for MIG."""
        with self._handle(uuid) as handle:
            rates = optional(pynvml.nvmlDeviceGetUtilizationRates, handle.own)
        return None if rates is None else float(rates.gpu)

    def climate(self, uuid: str) -> Climate:
        """NVML's GPU sensor and the limit that is enforced (`temperature.gpu`, `enforced.power.limit`)."""
        with self._handle(uuid) as handle:
            whole = handle.whole
            celsius = optional(pynvml.nvmlDeviceGetTemperature, whole, pynvml.NVML_TEMPERATURE_GPU)
            draw_mw = optional(pynvml.nvmlDeviceGetPowerUsage, whole)
            limit_mw = optional(pynvml.nvmlDeviceGetEnforcedPowerLimit, whole)
        return Climate(
            temperature_celsius=None if celsius is None else float(celsius),
            power_watts=None if draw_mw is None else draw_mw / 1000,
            power_limit_watts=None if limit_mw is None else limit_mw / 1000,
        )

    def process_use(self, uuid: str, since_us: int) -> ProcessUse | None:
        """By NVML's samples, taken about six times a second. Not offered for a GPU in MIG mode.

        Any use counts: of the SMs, of the memory's bandwidth, of the encoder, of the decoder. Samples of more
        than 100 % are leftovers in NVML's buffer. A kernel of 2 ms every 2 s was not seen (H100, 580.159.04).
        """
        with self._handle(uuid) as handle:
            if handle.is_instance:
                return None
            try:
                samples = optional(pynvml.nvmlDeviceGetProcessUtilization, handle.own, since_us)
            except DeviceFault as fault:
                if not is_empty(fault):
                    raise
                samples = []
        if samples is None:
            return None
        fresh = [each for each in samples if each.timeStamp > since_us and max(_rates(each)) <= 100]
        used = frozenset(each.pid for each in fresh if any(_rates(each)))
        return ProcessUse(used, max((each.timeStamp for each in fresh), default=since_us))

    def compute_mode(self, uuid: str) -> ComputeMode:
        """As `nvidia-smi -q -d COMPUTE` shows it."""
        with self._handle(uuid) as handle:
            return ComputeMode(call(pynvml.nvmlDeviceGetComputeMode, handle.own))

    def set_compute_mode(self, uuid: str, mode: ComputeMode) -> None:
        """Needs root. Lasts until it is changed or the driver is reloaded."""
        with self._handle(uuid) as handle:
            call(pynvml.nvmlDeviceSetComputeMode, handle.own, int(mode))

    # ---- events

    def wait_xid(self, timeout_seconds: float) -> XidEvent | None:
        """Waits in NVML's event set. A GPU without events is only polled (`check`).

        For a GPU in MIG mode, it returns an event for the instance that NVML names, or one for each instance.
        After an error, it recreates the set from the GPUs that still answer. Only one thread may call it at a
        time.
        """
        with self._event_lock:
            if self._waiting:
                return self._waiting.popleft()
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
                raise fault_of(error) from error
            uuid, xid = self._uuid_of(data.device), int(data.eventData)
            hit = self._instances_hit(uuid, data.gpuInstanceId) or (uuid,)
            self._waiting.extend(XidEvent(each, xid) for each in hit)
            return self._waiting.popleft()

    def _instances_hit(self, uuid: str | None, gpu_instance: int) -> tuple[str, ...]:
        """The listed instances of that GPU that an event affects; none for a whole GPU."""
        instances = tuple(device.uuid for device in self._devices if uuid and device.parent_uuid == uuid)
        if not instances or gpu_instance == _NO_INSTANCE:
            return instances
        try:
            with self._handle(instances[0]) as handle:
                handles = instance_handles(handle.whole)
            named = {each.uuid for each in map(instance_of, handles) if each.gpu_instance == gpu_instance}
        except DeviceFault:
            return instances  # the instance is unknown: all of them
        return tuple(each for each in instances if each in named) or instances

    def _uuid_of(self, handle: Any) -> str | None:
        # By the registered handle: a GPU that fell off the bus no longer reports its UUID.
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
        events = call(pynvml.nvmlEventSetCreate)
        wanted = pynvml.nvmlEventTypeXidCriticalError
        for device in self._devices or self.devices():
            uuid = device.parent_uuid or device.uuid  # events come from whole GPUs
            if uuid in self._event_uuids.values():
                continue
            try:
                with self._handle(device.uuid) as handle:
                    whole = handle.whole
                    types = optional(pynvml.nvmlDeviceGetSupportedEventTypes, whole)
                    if not types or not types & wanted:
                        _log.warning("%s is only polled: it has no XID events", uuid)
                        continue
                    call(pynvml.nvmlDeviceRegisterEvents, whole, wanted, events)
            except DeviceFault as fault:
                if not is_not_there(fault):
                    self._not_registered.add(device.uuid)
                _log.warning("%s is only polled, without XID events: %s", uuid, fault)
                continue
            self._event_uuids[ctypes.cast(whole, ctypes.c_void_p).value or 0] = uuid
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
        """Frees the event set and shuts NVML down, but not if a call hangs in it."""
        self._closed.set()
        if not self._event_lock.acquire(timeout=2.0):
            _log.warning("NVML was not shut down: a call still hangs in it")
            return
        try:
            self._drop_events()
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            _log.warning("NVML did not shut down: %s", error)
        finally:
            self._event_lock.release()


def _rates(sample: Any) -> tuple[int, int, int, int]:
    """In percent: SMs, memory bandwidth, encoder, decoder."""
    return sample.smUtil, sample.memUtil, sample.encUtil, sample.decUtil


def _listed(ask: Callable[[Any], list[Any]], handle: Any) -> dict[int, Any] | None:
    """The processes of one of NVML's lists, by pid; None if GPU or driver has no such list.

    Raises DeviceFault.
    """
    processes = optional(ask, handle)
    return None if processes is None else {each.pid: each for each in processes}


def _recovery(action: int) -> str:
    """What must be done before the GPU may be leased again, as NVML says; "" if nothing."""
    unknown = (
        f"NVML asks for recovery action {action}: see nvmlDeviceGpuRecoveryAction in NVIDIA's NVML manual"
    )
    return _RECOVERY.get(action, unknown)
