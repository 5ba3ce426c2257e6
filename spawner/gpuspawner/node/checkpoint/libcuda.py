"""The CUDA driver itself, through `cuda-bindings`: the only file that imports `cuda`. Every call blocks.

The package is optional (`pip install gpuspawner[turns]`): it is imported when the helper starts, not before.
"""

from __future__ import annotations

import ctypes
import time
import uuid
from typing import Any

from ...core.errors import DeviceFault
from ..processes import ProcessTable
from .order import GONE, SUCCESS, Answer, GpuMap, Operation, Order, ProcessState

_STATES = tuple(ProcessState)
"""In the order of `CUprocessState`, which counts from running, 0, to restoring, 5."""

MISSING = "The Python package cuda-bindings is not installed: pip install 'gpuspawner[turns]'"


class CudaDriver:
    """Carries out orders on this machine's driver. May be used from several threads at once.

    The bindings release Python's lock in each call (cuda-bindings 13), so that calls run in parallel.
    """

    def __init__(self) -> None:
        """Attaches to the driver, which takes up to 3 s. Raises DeviceFault if that is not possible."""
        try:
            import cuda.bindings.driver as driver
        except ImportError as error:
            raise DeviceFault(MISSING) from error
        self._cuda: Any = driver
        try:
            (code,) = driver.cuInit(0)  # a restore needs it where persistence mode is off
        except (
            Exception
        ) as error:  # the bindings' own errors for a machine without a driver have no common base
            raise DeviceFault(f"The CUDA driver can't be loaded: {error}") from error
        if code.name != SUCCESS:
            raise DeviceFault(f"The CUDA driver can't be used: {code.name}")
        if not hasattr(driver, "cuCheckpointProcessLock"):
            raise DeviceFault("cuda-bindings is too old for CUDA checkpoint: install 12.8 or newer")

    def perform(self, order: Order) -> Answer:
        """Carries it out. Blocks: a lock up to its timeout, a checkpoint about 0.5 s a GiB."""
        process = ProcessTable().look(order.pid)
        if process is None or process.start_ticks != order.start_ticks:
            return Answer(GONE)
        began = time.monotonic()
        code, *rest = self._call(order)
        state = _STATES[int(rest[0])] if rest and code.name == SUCCESS else None
        return Answer(code.name, state, time.monotonic() - began)

    def _call(self, order: Order) -> tuple[Any, ...]:
        cuda, pid = self._cuda, order.pid
        match order.operation:
            case Operation.STATE:
                return tuple(cuda.cuCheckpointProcessGetState(pid))
            case Operation.LOCK:
                arguments = cuda.CUcheckpointLockArgs()
                arguments.timeoutMs = order.timeout_milliseconds
                return tuple(cuda.cuCheckpointProcessLock(pid, arguments))
            case Operation.CHECKPOINT:
                return tuple(cuda.cuCheckpointProcessCheckpoint(pid, None))
            case Operation.RESTORE:
                return tuple(cuda.cuCheckpointProcessRestore(pid, self._restore_arguments(order.gpu_map)))
            case Operation.UNLOCK:
                return tuple(cuda.cuCheckpointProcessUnlock(pid, None))

    def _restore_arguments(self, gpu_map: GpuMap) -> Any:
        if not gpu_map:
            return None
        pairs = []
        for old, new in gpu_map:
            pair = self._cuda.CUcheckpointGpuPair()
            pair.oldUuid, pair.newUuid = self._uuid(old), self._uuid(new)
            pairs.append(pair)
        arguments = self._cuda.CUcheckpointRestoreArgs()
        arguments.gpuPairs, arguments.gpuPairsCount = pairs, len(pairs)
        return arguments

    def _uuid(self, text: str) -> Any:
        """NVML's "GPU-6f3e…" as the driver's 16 bytes."""
        value = self._cuda.CUuuid()
        # The bindings let nobody write its field (cuda-bindings 13.5).
        ctypes.memmove(value.getPtr(), uuid.UUID(text.removeprefix("GPU-")).bytes, 16)
        return value


class DeviceMemory:
    """Memory on the first GPU that the process sees, in its own context, for the canary. Blocks."""

    def __init__(self, size_bytes: int) -> None:
        """Raises DeviceFault without the driver, the GPU or enough memory."""
        try:
            import cuda.bindings.driver as driver
        except ImportError as error:
            raise DeviceFault(MISSING) from error
        self._cuda: Any = driver
        self._ask(driver.cuInit(0))
        device = self._ask(driver.cuDeviceGet(0))
        context = self._ask(driver.cuDevicePrimaryCtxRetain(device))
        self._ask(driver.cuCtxSetCurrent(context))
        self._start = int(self._ask(driver.cuMemAlloc(size_bytes)))

    def fill(self, offset_bytes: int, size_bytes: int, word: int) -> None:
        """Sets it to repetitions of the 32-bit word."""
        self._ask(self._cuda.cuMemsetD32(self._start + offset_bytes, word, size_bytes // 4))

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """What is there."""
        copy = bytearray(size_bytes)
        self._ask(self._cuda.cuMemcpyDtoH(copy, self._start + offset_bytes, size_bytes))
        return bytes(copy)

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        code, *rest = answer
        if code.name != SUCCESS:
            raise DeviceFault(f"The CUDA driver refused: {code.name}")
        return rest[0] if rest else None
