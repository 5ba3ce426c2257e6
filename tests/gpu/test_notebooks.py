"""Every starter notebook, top to bottom, in a container with a lease: of a whole GPU, and of a slice."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest
from lab import EIGHT_SLICES, container_of

from tests.webclient import logged_in, serving

pytestmark = pytest.mark.gpu

NOTEBOOKS = sorted((Path(__file__).parents[2] / "images" / "notebooks").glob("*.ipynb"))
LIMIT_SECONDS = 180
"""What a student may have to wait for one notebook, on the smallest share there is."""
SERVER_ENVIRONMENT = """
import os, sys
pairs = open("/proc/1/environ").read().split("\\0")
environment = dict(pair.split("=", 1) for pair in pairs if pair)
os.execvpe(sys.executable, [sys.executable, *sys.argv[1:]], environment)
"""
"""CDI changes the environment of a container's first process only, not that of `docker exec`."""


@pytest.mark.parametrize(
    ("share", "site", "tier"), [("the whole device", {}, "gpu"), ("a slice of 8 GiB", EIGHT_SLICES, "slice")]
)
async def test_every_notebook_runs_whole(
    share: str, site: dict[str, Any], tier: str, start_system: Callable[[dict[str, Any]], Any],
    record: Callable[[str, Any], None],
) -> None:  # fmt: skip
    assert len(NOTEBOOKS) == 12
    names = [f"/opt/course/notebooks/{path.name}" for path in NOTEBOOKS]
    script = ["/opt/course/tests/run.py", "--gpu", "--json", "/tmp/results.json", *names]
    with start_system(site) as system, closing(docker.from_env(timeout=600)) as engine:
        async with logged_in(system, "gina") as gina, serving(gina, tier):
            container = engine.containers.get(container_of(system, "gina"))
            code, output = container.exec_run(["python3", "-c", SERVER_ENVIRONMENT, *script], user="1000:100")
            print(output.decode())
            result, kept = container.exec_run(["cat", "/tmp/results.json"], user="1000:100")
    assert result == 0, output.decode()[-5000:]
    report = json.loads(kept)
    record(f"notebooks on {share}", report)
    assert code == 0, output.decode()[-5000:]
    assert [one["notebook"] for one in report["notebooks"] if one["seconds"] >= LIMIT_SECONDS] == []
