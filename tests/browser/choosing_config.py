"""The project's own configuration under a base URL, with every kind of tier, for the hub's pages."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).resolve().parents[2] / "jupyterhub_config.py"))  # noqa: F821

STUB = "gpuspawner-hubtest"
c.JupyterHub.bind_url += "/jupyter/"
c.GpuSite.inventory = "simulated"
c.GpuSite.simulated_devices = "3 x H100 80GB, 4 x A100 40GB MIG 1g.5gb"
c.GpuSite.queue_timeout = float(os.environ.get("GPUSPAWNER_TEST_QUEUE_TIMEOUT", "900"))
c.GpuSite.pools = [
    {"name": "class", "mode": "slice", "devices": {"model": "H100", "count": 1}, "slices": 8},
    {"name": "mig", "mode": "mig"},
    {"name": "whole"},
]
c.GpuSite.tiers = [
    {"name": "cpu", "title": "CPU", "description": "Write and test code. No GPU."},
    {
        "name": "slice",
        "title": "A slice of a GPU",
        "description": "Exercises and small models.",
        "mode": "slice",
        "default": True,
    },
    {"name": "mig", "title": "A small GPU", "description": "Inference.", "mode": "mig"},
    {"name": "gpu", "title": "One GPU", "description": "Training. Only you use it.", "devices": 1},
    {"name": "eight", "title": "Eight GPUs", "description": "For the whole lab.", "devices": 8},
]
c.GpuSite.quotas = [
    {"gpu_hours": 10, "period": "week", "session_hours": 4},
    {"user": "limited", "tiers": ["cpu"]},
]
c.GpuDockerSpawner.allowed_images = {
    "PyTorch": f"{STUB}/lab",
    "R": f"{STUB}/other",
    "Julia": f"{STUB}/none:1",
    "any": "quay.io/jupyter/*:2026-*",
}
c.GpuDockerSpawner.pull_at_start = False
c.GpuDockerSpawner.http_timeout = 10
c.GpuDockerSpawner.poll_interval = 2
