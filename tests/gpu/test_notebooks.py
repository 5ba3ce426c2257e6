"""Every starter notebook, top to bottom, inside a container that holds a lease of a whole GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from running import System
from webclient import logged_in, serving

pytestmark = pytest.mark.gpu

NOTEBOOKS = sorted((Path(__file__).parents[2] / "images" / "notebooks").glob("*.ipynb"))
SERVER_ENVIRONMENT = """
import os, sys
pairs = open("/proc/1/environ").read().split("\\0")
environment = dict(pair.split("=", 1) for pair in pairs if pair)
os.execvpe(sys.executable, [sys.executable, *sys.argv[1:]], environment)
"""
"""CDI changes the environment of a container's first process only, not that of `docker exec`."""


async def test_every_notebook_runs_whole(system: System, record: Callable[[str, Any], None]) -> None:
    assert len(NOTEBOOKS) == 12
    engine = docker.from_env(timeout=600)
    labels = ["gpuspawner.user=gina", f"gpuspawner.hub={system.name}"]
    names = [f"/opt/course/notebooks/{path.name}" for path in NOTEBOOKS]
    script = ["/opt/course/tests/run.py", "--gpu", "--json", "/tmp/results.json", *names]
    async with logged_in(system, "gina") as gina, serving(gina, "gpu"):
        (container,) = engine.containers.list(filters={"label": labels})
        code, output = container.exec_run(["python3", "-c", SERVER_ENVIRONMENT, *script], user="1000:100")
        print(output.decode())
        result, kept = container.exec_run(["cat", "/tmp/results.json"], user="1000:100")
    engine.close()
    if result == 0:
        record("notebooks on the whole device", json.loads(kept))
    assert code == 0, output.decode()[-5000:]
