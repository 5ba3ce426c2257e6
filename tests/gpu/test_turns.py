"""CUDA checkpoint on this machine's GPUs: every check of `turns_hardware.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

PYTHON = "GPUSPAWNER_TORCH_PYTHON"
"""The Python that has PyTorch; default: that of the GPU machine."""


def test_pauses_sleeps_moves_and_kills() -> None:
    if os.geteuid() != 0:
        pytest.fail("moving other users' GPU memory takes root")
    torch = os.environ.get(PYTHON, "/opt/torch/.venv/bin/python3")
    script = Path(__file__).with_name("turns_hardware.py")
    done = subprocess.run([sys.executable, str(script), "--student-python", torch], timeout=480, check=False)
    assert done.returncode == 0
