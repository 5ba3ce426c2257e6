"""The GPUs and MIG instances of this machine, as NVML tells them."""

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
from .calls import call, fault_of, is_not_there, optional
from .listing import Handle, find_handle, instance_handles, instance_of, mig_is_on, read_all
from .patience import Patience
from .protocol import ComputeMode, DriverFacts, GpuProcess, XidEvent

_log = logging.getLogger(__name__)

_NO_INSTANCE = 0xFFFFFFFF
"""NVML's instance id of an event or process that belongs to none."""


class NvmlInventory:
    """What NVML lists. Raises DeviceFault where there is no usable NVML.

    One GPU that is lost or can't be read is left out with a logged sentence; the others stay usable.
    """

    simulated = False

    def __init__(self, patience: Patience | None = None) -> None:
        call(pynvml.nvmlInit)
        self._devices: tuple[Device, ...] = ()
        self.left_out: tuple[str, ...] = ()
        """One sentence for each device that could not be listed the last time."""
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
        """By NVML's index: whole GPUs, and of a GPU in MIG mode its instances.

        Raises DeviceFault if NVML lists some and none can be leased.
        """
        found = read_all(self._patience)
        self.left_out = found.left_out
        self._handles.update(found.handles)
        if found.left_out and not found.devices:
            raise DeviceFault(f"No GPU can be leased. {' '.join(found.left_out)}")
        listed = {device.uuid for device in found.devices}
        before = {device.uuid for device in self._devices}
        # One that can't be read at the moment is not forgotten: its events still tell of it.
        self._devices = (*found.devices, *(each for each in self._devices if each.uuid not in listed))
        if before and listed - before:
            self._stale.set()  # the new ones' events are wanted too
        return found.devices

    def driver(self) -> DriverFacts:
        """Versions and what was left out of the last list of devices, for `doctor`. Raises DeviceFault."""
        cuda = optional(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return DriverFacts(
            driver_version=optional(pynvml.nvmlSystemGetDriverVersion),
            cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            gpu_count=call(pynvml.nvmlDeviceGetCount),
            left_out=self.left_out,
        )

    # ---- health

    def check(self, uuid: str) -> None:
        """Asks the device for its memory and its GPU for rows that could not be remapped. Raises DeviceFault.

        A failed remap means replacing the GPU (NVIDIA GPU Memory Error Management r580, RMA policy).
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
        """Why the GPU must be reset first: remapped rows or retired pages wait for it. Raises DeviceFault."""
        with self._handle(uuid) as handle:
            rows = optional(pynvml.nvmlDeviceGetRemappedRows, handle.whole)
            if rows is not None and rows[2]:
                return "Remapped memory rows wait for a reset: run `nvidia-smi --gpu-reset`"
            if optional(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle.whole):
                return "Retired memory pages wait for a reset: run `nvidia-smi --gpu-reset`"
            return ""

    @contextmanager
    def _handle(self, uuid: str) -> Iterator[Handle]:
        """The device's handles: kept, and found again after any fault. Raises DeviceFault."""
        try:
            handle = self._handles.get(uuid)
            if handle is None:
                device = next((each for each in self._devices if each.uuid == uuid), None)
                handle = self._handles[uuid] = find_handle(uuid, device)
            yield handle
        except DeviceFault:
            self._handles.pop(uuid, None)
            raise

    # ---- what goes on on a device

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """By pid. Driver 580 has an MPS client in two of NVML's lists, of compute and of MPS clients.

        Memory that Vulkan or OpenGL took is in a third list alone, of graphics: without it, they would be
        outside the quota. The compute list is read first: a client that comes between the calls then
        is known as one. One that goes between them looks as if it bypassed MPS: believe that only when
        it is seen again.
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
        """As `nvidia-smi` shows it: with what the driver itself uses."""
        with self._handle(uuid) as handle:
            return int(call(pynvml.nvmlDeviceGetMemoryInfo, handle.own).used)

    def utilization_percent(self, uuid: str) -> float | None:
        """Time with a kernel running, over NVML's last sample (`utilization.gpu`). None for MIG."""
        with self._handle(uuid) as handle:
            rates = optional(pynvml.nvmlDeviceGetUtilizationRates, handle.own)
        return None if rates is None else float(rates.gpu)

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
        """Waits in NVML's event set. A GPU without events is polled only (`check`).

        An error of a GPU in MIG mode is one event for the instance that NVML names, or one for each.
        After an error the set is recreated from the GPUs that still answer. One thread at a time.
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
        """The leased instances of that GPU which an event hits; none for a whole GPU."""
        instances = tuple(device.uuid for device in self._devices if uuid and device.parent_uuid == uuid)
        if not instances or gpu_instance == _NO_INSTANCE:
            return instances
        try:
            with self._handle(instances[0]) as handle:
                handles = instance_handles(handle.whole)
            named = {each.uuid for each in map(instance_of, handles) if each.gpu_instance == gpu_instance}
        except DeviceFault:
            return instances  # it can't be told which: all of them
        return tuple(each for each in instances if each in named) or instances

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
                        _log.warning("No XID events from %s, it is only polled: it has none", uuid)
                        continue
                    call(pynvml.nvmlDeviceRegisterEvents, whole, wanted, events)
            except DeviceFault as fault:
                if not is_not_there(fault):
                    self._not_registered.add(device.uuid)
                _log.warning("No XID events from %s, it is only polled: %s", uuid, fault)
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


def _listed(ask: Callable[[Any], list[Any]], handle: Any) -> dict[int, Any] | None:
    """The processes of one of NVML's lists, by pid; None where GPU or driver has none. Raises DeviceFault."""
    processes = optional(ask, handle)
    return None if processes is None else {each.pid: each for each in processes}
