"""One broker for the real GPUs of a machine: the lock, who holds it, and machines that can't be locked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.node.claim import DeviceClaim

HOLD = """
import sys
from pathlib import Path
from gpuspawner.node.claim import DeviceClaim
DeviceClaim(Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    driver_file = tmp_path / "nvidiactl"
    driver_file.touch()
    claim = DeviceClaim(driver_file, wait_seconds=0.0)
    command = [sys.executable, "-c", HOLD, str(driver_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as error:
            claim.take()
        other.kill()
    assert str(error.value) == (
        f"Another broker or agent leases the GPUs of this machine (process {other.pid}): stop it, or use its "
        "hub for all courses, with groups, quotas and tiers. A second hub beside it can only have simulated "
        'GPUs (c.GpuSite.inventory = "simulated")'
    )
    claim.take()
    claim.take()  # its own lock is no obstacle
    with pytest.raises(ConfigError, match="Another broker"):
        DeviceClaim(driver_file, wait_seconds=0.0).take()
    claim.release()
    claim.release()
    DeviceClaim(driver_file, wait_seconds=0.0).take()


def test_a_broker_that_ends_meanwhile_is_waited_for(tmp_path: Path) -> None:
    driver_file = tmp_path / "nvidiactl"
    driver_file.touch()
    command = [sys.executable, "-c", f"{HOLD}", str(driver_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.terminate()
        claim = DeviceClaim(driver_file, wait_seconds=30.0)
        claim.take()
        claim.release()


def test_a_machine_without_a_driver_has_nothing_to_lock(tmp_path: Path) -> None:
    DeviceClaim(tmp_path / "none", wait_seconds=0.0).take()
