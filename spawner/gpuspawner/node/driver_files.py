"""The NVIDIA driver's files on this machine: kernel module, library and device nodes, and what they need."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

GENERATE = "run `nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml`"
"""Writes a CDI spec with UUIDs (nvidia-container-toolkit 1.17)."""
CONTROL, UVM = "/dev/nvidiactl", "/dev/nvidia-uvm"
_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
)
_VERSIONED = re.compile(r"/lib(?:cuda|nvidia-ml)\.so\.(\d+(?:\.\d+)+)$")
"""The driver's libraries have its version in their name (driver 580: libcuda.so.580.159.04)."""
_NODE_COMMANDS = (
    ("/dev/nvidia-uvm", "run `nvidia-modprobe -u -c=0`"),
    ("/dev/nvidia-modeset", "run `nvidia-modprobe -m`"),
    ("/dev/nvidia-caps/", "create the MIG instances again (`nvidia-smi mig -cgi <profiles> -C`)"),
    ("/dev/nvidia", "run `nvidia-modprobe` and `nvidia-smi -L`, and see `dmesg`"),
)
"""What creates a missing device node, by the start of its path: the first match (nvidia-modprobe 580)."""


@dataclass(frozen=True, slots=True)
class DriverFiles:
    """Versions of the loaded kernel module and of the library on disk; None: not there, or not known."""

    module_version: str | None = None
    library_version: str | None = None

    def obstacle(self) -> str:
        """Why no new container can use a GPU: module and library differ, as after an upgrade; "" if not.

        Programs that run keep the library that they loaded, so they go on.
        """
        module, library = self.module_version, self.library_version
        if module is None or library is None or module == library:
            return ""
        return (
            f"The NVIDIA kernel module has version {module}, but its libraries have {library}, as after an "
            "upgrade: restart the machine when no lab needs its GPU any more"
        )


def read_driver_files(root: Path = Path("/")) -> DriverFiles:
    """Reads both versions below `root`. Blocks."""
    try:
        module = (root / "sys/module/nvidia/version").read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        module = None
    return DriverFiles(module, _library_version(root))


def _library_version(root: Path) -> str | None:
    """From the file that the library's usual name points to."""
    for folder in _LIBRARY_FOLDERS:
        link = root / folder / "libnvidia-ml.so.1"
        if link.is_symlink() and (found := _VERSIONED.search(f"/{link.readlink().name}")):
            return found[1]
    return None


def spec_obstacle(spec: str, paths: Iterable[str], module_version: str | None, root: Path = Path("/")) -> str:
    """Why a container can't start, or can't compute, with these paths of a CDI spec; "" if it can. Blocks.

    `paths` are the device nodes, mounts and hooks that the spec takes from this machine. The engine refuses
    a container if one is missing. A spec that was written before the driver was up lacks nodes.
    """
    paths = tuple(dict.fromkeys(paths))
    for path in paths:
        version = _VERSIONED.search(path)
        if version and module_version is not None and version[1] != module_version:
            return f"{spec} is for driver {version[1]}, but driver {module_version} is loaded: {GENERATE}"
    for path in paths:
        if not (root / path.lstrip("/")).exists():
            return f"{spec} needs {path}, which this machine doesn't have: {_command_for(path)}"
    if CONTROL in paths and UVM not in paths:
        return (
            f"{spec} doesn't name {UVM}, so CUDA can't start: it was probably written before the driver was "
            f"ready. Run `nvidia-modprobe -u -c=0`, then {GENERATE}"
        )
    return ""


def _command_for(path: str) -> str:
    return next((command for start, command in _NODE_COMMANDS if path.startswith(start)), GENERATE)
