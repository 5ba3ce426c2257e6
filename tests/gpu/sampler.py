"""What the containers use of a GPU, seen from outside and apart from the guard: twenty looks a second."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from types import TracebackType

import pynvml

INTERVAL_SECONDS = 0.05


class Sampler:
    """Between enter and exit: `peaks` (bytes) and `over_seconds` by container id, for one quota."""

    def __init__(self, device_uuid: str, quota_bytes: int) -> None:
        self.peaks: dict[str, int] = {}
        self.over_seconds: dict[str, float] = {}
        self._uuid = device_uuid
        self._quota = quota_bytes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(5)

    def _run(self) -> None:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
        last = time.monotonic()
        while not self._ended.wait(INTERVAL_SECONDS):
            sums: dict[str, int] = {}
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle):
                container = _container_of(process.pid)
                if container is not None:
                    sums[container] = sums.get(container, 0) + (process.usedGpuMemory or 0)
            now = time.monotonic()
            for container, used in sums.items():
                self.peaks[container] = max(used, self.peaks.get(container, 0))
                if used > self._quota:
                    self.over_seconds[container] = self.over_seconds.get(container, 0.0) + now - last
            last = now
        pynvml.nvmlShutdown()


def _container_of(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return None
    match = re.search(r"[0-9a-f]{64}", text)
    return match[0] if match else None
