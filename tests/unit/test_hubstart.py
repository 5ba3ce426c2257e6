"""What is left when the tests end a hub: nothing."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from tests.hubstart import end_hub, start_hub

HUB = """
import os, subprocess, sys, time
service = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
with open("pids.new", "w") as file:
    file.write(str(service.pid))
os.rename("pids.new", "pids")
time.sleep(300)
"""
"""In place of JupyterHub: a service in a session of its own."""


def test_services_of_a_hub_that_was_killed_end_with_it(tmp_path: Path) -> None:
    (tmp_path / "jupyterhub.py").write_text(HUB)
    process = start_hub(
        tmp_path / "none", tmp_path, {"GPUSPAWNER_STATE_DIR": str(tmp_path)}, tmp_path / "hub.log"
    )
    while not (tmp_path / "pids").exists():
        assert process.poll() is None, (tmp_path / "hub.log").read_text()
        time.sleep(0.05)
    service = psutil.Process(int((tmp_path / "pids").read_text()))
    process.kill()
    process.wait()
    assert service.is_running()
    end_hub(process)
    psutil.wait_procs([service], timeout=30)
    assert not service.is_running() or service.status() == psutil.STATUS_ZOMBIE
