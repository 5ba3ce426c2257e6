"""The project's own configuration for the tests of a real hub: small test images, odd tiers, one token."""

import json
import os
from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).resolve().parents[2] / "jupyterhub_config.py"))  # noqa: F821

IMAGE = os.environ["GPUSPAWNER_IMAGE"]

scripted = "GPUSPAWNER_TEST_NVML" in os.environ  # tests/nvml: real pynvml on GPUs that aren't there
c.GpuSite.inventory = "nvml" if scripted else "simulated"
c.GpuSite.quotas = json.loads(os.environ.get("GPUSPAWNER_TEST_QUOTAS", "[]"))
c.GpuSite.queue_timeout = float(os.environ.get("GPUSPAWNER_TEST_QUEUE_TIMEOUT", "900"))
c.GpuSite.tiers = [
    {"name": "cpu", "title": "CPU"},
    {"name": "gpu", "title": "One GPU", "devices": 1},
    {"name": "big", "title": "Three GPUs", "devices": 3},
    {"name": "crash", "title": "A server that ends at once", "image": "gpuspawner-hubtest/crash"},
    {"name": "mute", "title": "A server that never answers", "image": "gpuspawner-hubtest/mute"},
    {
        "name": "odd",
        "title": """<script>document.title = 'taken'</script> "quoted" 'single' \u202eright-to-left""",
        "description": "<img src=x onerror=\"document.title = 'taken'\">" + "w" * 255,
    },
    {"name": "noimage", "title": "An image that isn't here", "image": "gpuspawner-hubtest/none:1"},
    *([{"name": "torch", "title": "PyTorch", "devices": 1, "image": "gpuspawner-hubtest/torch"}] * scripted),
]

c.GpuDockerSpawner.http_timeout = 10
c.GpuDockerSpawner.poll_interval = 2
c.GpuDockerSpawner.environment = {
    "NVIDIA_VISIBLE_DEVICES": "all",
    "CUDA_VISIBLE_DEVICES": "0",
    "COURSE": "ml",
}
c.GpuDockerSpawner.extra_host_config = {"device_requests": [{"Count": -1, "Capabilities": [["gpu"]]}]}
c.GpuDockerSpawner.allowed_images = json.loads(
    os.environ.get(
        "GPUSPAWNER_TEST_ALLOWED", json.dumps({"usual": IMAGE, "other": "gpuspawner-hubtest/other"})
    )
)
c.GpuDockerSpawner.pull_silence = 5
c.JupyterHub.init_spawners_timeout = 1

gpu, network, images = map(dict, c.JupyterHub.services)
gpu["environment"] = {
    **gpu["environment"],
    "DOCKER_HOST": os.environ["GPUSPAWNER_TEST_BROKER_DOCKER"],
    **({"LD_LIBRARY_PATH": os.environ["GPUSPAWNER_TEST_LIBRARIES"]} if scripted else {}),
}
broker = [] if os.environ.get("GPUSPAWNER_TEST_NO_BROKER") else [gpu]
puller = [images] if os.environ.get("GPUSPAWNER_TEST_PULL_AT_START") else []

c.JupyterHub.services = [
    *broker,
    network,
    *puller,
    {"name": "tester", "api_token": os.environ["GPUSPAWNER_TEST_TOKEN"]},
]
names = {service["name"] for service in c.JupyterHub.services}
c.JupyterHub.load_roles = [
    *(role for role in c.JupyterHub.load_roles if set(role.get("services", ())) <= names),
    {
        "name": "tester",
        "services": ["tester"],
        "scopes": [
            "admin:users",
            "admin:servers",
            "admin:server_state",
            "admin:groups",
            "tokens",
            "read:hub",
            "custom:gpu:admin",
            "access:services!service=gpu",
            "read:metrics",
        ],
    },
]

if more := os.environ.get(
    "GPUSPAWNER_TEST_MORE"
):  # a recipe of the documents, below the rest of a site's file
    exec(compile(Path(more).read_text(), more, "exec"))
