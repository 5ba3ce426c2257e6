"""The settings of tests/gpu for two machines of a Swarm, each with a GPU: a tier for each machine."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
here = Path(__file__).resolve()
load_subconfig(str(here.with_name("gpu_config.py")))  # noqa: F821
service = c.JupyterHub.services[0]
service["command"][service["command"].index("--config") + 1] = str(here)

c.GpuSwarm.encrypted = os.environ["GPUSPAWNER_TEST_ENCRYPTED"] == "1"
c.GpuSwarm.subnet = "10.214.32.0/24"
c.GpuSwarm.gateway_image = os.environ["GPUSPAWNER_IMAGE"]
c.GpuBroker.agents_address = os.environ["GPUSPAWNER_TEST_DOOR"]
c.GpuDockerSpawner.pull_policy = "never"
c.GpuDockerSpawner.poll_interval = 2
c.GpuSite.node_labels = {"a": ["on-a"], "b": ["on-b"]}
c.GpuSite.tiers = [
    {"name": "cpu", "title": "CPU"},
    {"name": "any", "title": "Any GPU", "devices": 1},
    {"name": "on-a", "title": "The GPU of a", "devices": 1, "node_label": "on-a"},
    {"name": "on-b", "title": "The GPU of b", "devices": 1, "node_label": "on-b"},
]
c.JupyterHub.services = [
    *[each for each in c.JupyterHub.services if each["name"] != "images"],
    {"name": "tester", "api_token": os.environ["GPUSPAWNER_TEST_TOKEN"]},
]
c.JupyterHub.load_roles.append(
    {
        "name": "tester",
        "services": ["tester"],
        "scopes": ["admin:users", "admin:servers", "access:servers", "list:users", "read:hub"],
    }
)
