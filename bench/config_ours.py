"""gpuspawner with the project's own settings, and enough simulated devices for everybody."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).resolve().parent.parent / "jupyterhub_config.py"))  # noqa: F821

c.GpuSite.inventory = "simulated"
c.GpuSite.simulated_devices = "64 x H100 80GB"
c.GpuDockerSpawner.image = os.environ["BENCH_IMAGE"]

c.JupyterHub.services = [
    *c.JupyterHub.services,
    {"name": "bench", "api_token": os.environ["BENCH_TOKEN"]},
]
c.JupyterHub.load_roles = [
    *c.JupyterHub.load_roles,
    {"name": "bench", "services": ["bench"], "scopes": ["admin:users", "admin:servers"]},
]
