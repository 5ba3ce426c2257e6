"""The project's own configuration for a hub on a Swarm: a test image, a token, no encryption."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).resolve().parents[2] / "jupyterhub_config.py"))  # noqa: F821

c.GpuSwarm.encrypted = False  # the kernel of a test machine may have no ESP
c.GpuSwarm.subnet = "10.214.32.0/24"
c.GpuSwarm.gateway_image = os.environ["GPUSPAWNER_TEST_GATEWAY"]
c.GpuDockerSpawner.pull_policy = "never"
c.GpuDockerSpawner.poll_interval = 2
if "GPUSPAWNER_TEST_SETTINGS" in os.environ:
    exec(os.environ["GPUSPAWNER_TEST_SETTINGS"])
else:
    c.GpuBroker.agents_address = os.environ["GPUSPAWNER_TEST_DOOR"]
if "GPUSPAWNER_TEST_NVML" in os.environ:
    c.GpuSite.tiers = [
        {"name": "cpu", "title": "CPU"},
        {"name": "on-a", "title": "H100", "devices": 1, "model": "H100"},
        {"name": "on-b", "title": "A100", "devices": 1, "model": "A100"},
        {"name": "on-c", "title": "L40S", "devices": 1, "model": "L40S"},
        {
            "name": "kernel-on-b",
            "title": "A100, with a kernel",
            "devices": 1,
            "model": "A100",
            "image": os.environ["GPUSPAWNER_TEST_LAB"],
        },
        {"name": "any", "title": "Any GPU", "devices": 1},
        {"name": "fresh", "title": "Any GPU, new image", "devices": 1, "image": "gpuspawner-hubtest/fresh"},
    ]
else:
    c.GpuSite.inventory = "simulated"
exec(os.environ.get("GPUSPAWNER_TEST_MORE", ""))
# Nothing is pulled here.
services = [service for service in c.JupyterHub.services if service["name"] != "images"]
for service in services:
    if service["name"] == "gpu" and "GPUSPAWNER_TEST_NVML" in os.environ:
        service["environment"]["LD_LIBRARY_PATH"] = os.environ["GPUSPAWNER_TEST_DRIVER"]
c.JupyterHub.services = [
    *services,
    {"name": "tester", "api_token": os.environ["GPUSPAWNER_TEST_TOKEN"]},
]
c.JupyterHub.load_roles.append(
    {
        "name": "tester",
        "services": ["tester"],
        "scopes": ["admin:users", "admin:servers", "access:servers", "list:users", "read:hub"],
    }
)
