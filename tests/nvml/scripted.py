"""Builds the scripted libnvidia-ml.so.1 and writes its script: real `pynvml` on GPUs that aren't there."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

SOURCE = Path(__file__).with_name("libnvidia-ml.c")
ENVIRONMENT = "GPUSPAWNER_TEST_NVML"


def build() -> Path:
    """The built library; made once for each version of its source. Needs gcc."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"gpuspawner-nvml-{os.getuid()}-{digest}"
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        fresh = folder / f"building-{os.getpid()}"
        # No soname: a process with this library still finds the real one by its name.
        flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-pthread"]
        subprocess.run(["gcc", *flags, "-o", str(fresh), str(SOURCE)], check=True)
        os.replace(fresh, library)
    return library


@dataclass(frozen=True)
class Gpu:
    """One scripted GPU; the default is an H100 as driver 580.159.04 describes it."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    memory: int = 85_520_809_984
    used: int = 0
    cc: str = "9.0"
    cores: int = 16_896
    bus: int = 5_120
    clock: int = 2_619
    events: int = 1
    mig: int = 0
    lost: int = 0
    remap_pending: int = 0
    remap_failure: int = 0
    retired: int = 0
    recovery: int = 0
    util: int = 0
    mode: int = 0
    celsius: int = 0
    draw_mw: int = 0
    limit_mw: int = 0

    def line(self) -> str:
        """Its record in the script."""
        values = {**vars(self), "name": self.name.replace(" ", "_")}
        return "gpu " + " ".join(f"{key}={value}" for key, value in values.items())


@dataclass(frozen=True)
class Mig:
    """One scripted MIG instance; the default is an H100's 1g.10gb as driver 580 names it."""

    uuid: str
    gpu: int = 0
    gi: int = 1
    ci: int = 0
    memory: int = 10_468_982_784
    sms: int = 16
    slices: int = 1
    compute: int = 1
    name: str = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"

    def line(self) -> str:
        """Its record in the script."""
        values = {**vars(self), "name": self.name.replace(" ", "_")}
        return "mig " + " ".join(f"{key}={value}" for key, value in values.items())


@dataclass
class Script:
    """What the library answers. Each change is written at once and seen by its next call."""

    path: Path
    gpus: list[Gpu] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    driver: str = "580.159.04"
    cuda: int = 13_000
    init: int = 0
    sent: int = 0

    def write(self) -> None:
        """Replaces the script as a whole."""
        head = [f"driver {self.driver}", f"cuda {self.cuda}", f"init {self.init}"]
        fresh = self.path.with_suffix(".new")
        fresh.write_text("\n".join([*head, *(gpu.line() for gpu in self.gpus), *self.lines]) + "\n")
        os.replace(fresh, self.path)

    def change(self, index: int, **values: int | str) -> None:
        """Changes values of one GPU: `change(0, lost=15)`."""
        self.gpus[index] = replace(self.gpus[index], **values)  # type: ignore[arg-type]
        self.write()

    def fault(self, function: str, code: int, gpu: int = -1) -> str:
        """From now on `function` answers `code`; returns the line, for `drop`."""
        return self.add(f"fault function={function} gpu={gpu} code={code}")

    def hang(self, function: str, gpu: int = -1) -> str:
        """From now on `function` doesn't return; returns the line, for `drop`."""
        return self.add(f"hang function={function} gpu={gpu}")

    def xid(self, gpu: int, code: int, gi: int = -1) -> None:
        """Delivers an XID once; `gpu` -1 is an event without a device, `gi` -1 one of the whole GPU."""
        self.sent += 1
        self.add(f"xid seq={self.sent} gpu={gpu} code={code} gi={gi}")

    def process(self, pid: int, memory: int = 0, *, gpu: int = 0, mps: int = 0, draws: int = 0) -> str:
        """A process on a GPU; `memory` -1: NVML doesn't say. Returns the line, for `drop`."""
        return self.add(f"process gpu={gpu} pid={pid} memory={memory} mps={mps} draws={draws}")

    def use(self, pid: int, sm: int = 50, *, gpu: int = 0, mem: int = 0) -> str:
        """From now on NVML says that this process uses the GPU, in percent. Returns the line, for `drop`."""
        return self.add(f"use gpu={gpu} pid={pid} sm={sm} mem={mem}")

    def add(self, line: str) -> str:
        """Adds a line of the script."""
        self.lines.append(line)
        self.write()
        return line

    def drop(self, line: str) -> None:
        """Takes a line back."""
        self.lines.remove(line)
        self.write()

    def environment(self) -> dict[str, str]:
        """The environment in which a process finds the scripted library by its name."""
        return {**os.environ, "LD_LIBRARY_PATH": str(build().parent), ENVIRONMENT: str(self.path)}


@contextmanager
def loaded(path: Path) -> Iterator[Script]:
    """This process's `pynvml` on the scripted library; afterwards as before. `path` is the script.

    Set in `pynvml` itself rather than by the loader: the real library stays what its name finds.
    Whoever opened NVML meanwhile must have closed it, and no hang may be left.
    """
    import pynvml

    script = Script(path)
    script.write()
    before = os.environ.get(ENVIRONMENT), pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache)
    os.environ[ENVIRONMENT] = str(path)
    pynvml.nvmlLib = ctypes.CDLL(str(build()))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        yield script
    finally:
        script.lines = [line for line in script.lines if not line.startswith("hang ")]
        script.write()
        pynvml.nvmlLib = before[1]
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml._nvmlGetFunctionPointer_cache.update(before[2])
        if before[0] is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before[0]
