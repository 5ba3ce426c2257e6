"""The project's own configuration for a hub on a Swarm: a test image, a token, no encryption."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).resolve().parents[2] / "jupyterhub_config.py"))  # noqa: F821

c.GpuSite.inventory = "simulated"
c.GpuSwarm.encrypted = False  # the kernel of a test machine may have no ESP
c.GpuSwarm.subnet = "10.214.32.0/24"
c.GpuSwarm.gateway_image = os.environ["GPUSPAWNER_TEST_GATEWAY"]
c.GpuDockerSpawner.pull_policy = "never"
c.GpuDockerSpawner.poll_interval = 2
# Nothing is pulled here.
c.JupyterHub.services = [
    *[service for service in c.JupyterHub.services if service["name"] != "images"],
    {"name": "tester", "api_token": os.environ["GPUSPAWNER_TEST_TOKEN"]},
]
c.JupyterHub.load_roles.append(
    {
        "name": "tester",
        "services": ["tester"],
        "scopes": ["admin:users", "admin:servers", "access:servers", "list:users", "read:hub"],
    }
)
