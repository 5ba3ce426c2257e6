"""Which device to compute on, and what this machine has."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch


def cpu_cores() -> int:
    """CPU cores that this server may keep busy: its cgroup's limit, not what the machine has."""
    cores = len(os.sched_getaffinity(0))
    try:  # cgroup v2, then v1; "max" or -1 mean no limit
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return cores
    if limit in {"max", "-1"}:
        return cores
    return max(1, min(cores, round(int(limit) / int(period))))


def choose_device() -> torch.device:
    """The first GPU if PyTorch sees one, else the CPU; and as many CPU threads as this server has cores."""
    torch.set_num_threads(cpu_cores())
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick(gpu, cpu):
    """One value for the GPU and another for the CPU, mostly sizes: `pick(gpu=4096, cpu=512)`."""
    return gpu if torch.cuda.is_available() else cpu


def available() -> set[str]:
    """The words of `%%needs` that hold here: gpu, multi-gpu, fp8, compiler, tensorrt."""
    words = set()
    if torch.cuda.is_available():
        words.add("gpu")
        if torch.cuda.device_count() > 1:
            words.add("multi-gpu")
        if torch.cuda.get_device_capability() >= (8, 9):
            words.add("fp8")
    # PyTorch compiles C++ for the CPU; for the GPU, Triton compiles C. Both include Python.h.
    compilers = ("g++", "c++", "clang++") + (("gcc", "cc", "clang") if "gpu" in words else ())
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if any(map(shutil.which, compilers)) and headers.exists():
        words.add("compiler")
    if find_spec("torch_tensorrt"):
        words.add("tensorrt")
    return words
