"""The project's own configuration with small labs, whose limits are met soon. Read by hub and broker."""

from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).resolve().parents[2] / "jupyterhub_config.py"))  # noqa: F821

c.GpuSite.tiers = [
    {"name": "cpu", "title": "CPU"},
    {"name": "gpu", "title": "Little memory", "devices": 1, "mem_limit": "700M"},
    {"name": "few", "title": "Few processes", "devices": 1, "mem_limit": "3G", "pids": 160},
]
