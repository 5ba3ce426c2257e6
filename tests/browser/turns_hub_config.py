"""The project's own configuration with a pool in turns: a scripted GPU, a stand-in for CUDA's checkpoints.

Read by hub and broker. There is nothing to inject into a container.
"""

import os
import sys
from functools import partial
from pathlib import Path

from gpuspawner.node import turning
from gpuspawner.node.checkpoint.client import HelperDriver
from gpuspawner.node.injection import Access, Injection
from gpuspawner.node.local import LocalNode

c = get_config()  # noqa: F821
ROOT = Path(__file__).resolve().parents[2]
load_subconfig(str(ROOT / "jupyterhub_config.py"))  # noqa: F821


async def no_way(*_: object) -> Access:
    """Instead of asking the engine."""
    return Access(Injection.NONE)


LocalNode.way_in = no_way  # type: ignore[method-assign,assignment]
helper = (sys.executable, "-m", "tests.checkpoint.standin")
turning.HelperDriver = partial(HelperDriver, command=helper)  # type: ignore[misc,assignment]
c.GpuSite.inventory = "nvml"
c.GpuSite.pools = [{"name": "turns", "mode": "turns", "seats": 2, "sleep_memory": "1G"}]
c.GpuSite.tiers = [
    {"name": "cpu", "title": "CPU"},
    {"name": "turns", "title": "A GPU in turns", "mode": "turns", "memory": "1G"},
]
c.JupyterHub.services[0]["environment"] |= {
    "LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"],
    "GPUSPAWNER_STANDIN": os.environ["GPUSPAWNER_STANDIN"],
    "PYTHONPATH": str(ROOT),
}
