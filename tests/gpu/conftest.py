"""A system on real GPUs. Nothing here falls back to the CPU or to simulated devices."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.config.site import GpuSite
from gpuspawner.core.errors import GpuSpawnerError
from gpuspawner.node.inventory import open_inventory

from images.table import read_table

sys.path.insert(0, str(Path(__file__).parent))  # this folder's own helpers
from machine import write_site

from tests.running import System, running_system

HERE = Path(__file__).resolve().parent
REQUIRED = "GPUSPAWNER_REQUIRE_GPU"
"""Set by `make test-gpu`: then a missing GPU is a failure and not a skip."""


@pytest.fixture(scope="session", autouse=True)
def _real_gpu() -> None:
    """Skips, or fails where a GPU is required, on a machine without one."""
    try:
        inventory = open_inventory(GpuSite(inventory="nvml"))
    except GpuSpawnerError as error:
        if REQUIRED in os.environ:
            pytest.fail(f"this run needs a real GPU: {error}")
        pytest.skip(f"needs a real NVIDIA GPU: {error}")
    inventory.close()


@contextmanager
def _system(folder: Path, site: dict[str, Any]) -> Iterator[System]:
    image = os.environ.get("GPUSPAWNER_IMAGE") or read_table().default_image.reference
    settings = {"GPUSPAWNER_IMAGE": image, "GPUSPAWNER_GPU_SITE": str(write_site(folder, site))}
    with running_system(folder, config=HERE / "gpu_config.py", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Hub, proxy and broker on this machine's GPUs, with the pools and tiers of the module's `SITE`."""
    with _system(tmp_path_factory.mktemp("g"), getattr(request.module, "SITE", {})) as running:
        yield running


@pytest.fixture
def start_system(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Any]:
    """Starts one with other pools and tiers; a context manager."""
    return lambda site: _system(tmp_path_factory.mktemp("g"), site)


@pytest.fixture(scope="session")
def record() -> Iterator[Callable[[str, Any], None]]:
    """Notes a measured value; all of them are printed at the end, for docs/measurements.md.

    The file of results has each value at once, so that a run that is cut off leaves what it had.
    """
    values: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        values[name] = value
        if "GPUSPAWNER_RESULTS" in os.environ:
            Path(os.environ["GPUSPAWNER_RESULTS"]).write_text(json.dumps(values, indent=1))

    yield note
    print("\nmeasured on this machine:")
    for name, value in values.items():
        print(f"  {name}: {json.dumps(value)}")
