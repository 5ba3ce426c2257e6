"""The project's own configuration on a scripted GPU that is shared: its slices are guarded as on a real one.

Read by hub and broker. Only the way into the container is left out, as there is nothing to inject.
"""

import os
from pathlib import Path

from gpuspawner.node.injection import Access, Injection
from gpuspawner.node.local import LocalNode

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).resolve().parents[2] / "jupyterhub_config.py"))  # noqa: F821


async def no_way(*_: object) -> Access:
    """Instead of asking the engine."""
    return Access(Injection.NONE)


LocalNode.way_in = no_way  # type: ignore[method-assign,assignment]
c.GpuSite.inventory = "nvml"
c.GpuSite.pools = [{"name": "class", "mode": "slice", "slices": 8}]
c.GpuSite.tiers = [
    {"name": "cpu", "title": "CPU"},
    {"name": "slice", "title": "A slice of a GPU", "mode": "slice", "memory": "8G"},
]
c.JupyterHub.services[0]["environment"]["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
