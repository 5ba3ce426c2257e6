"""A hub whose broker is in a hurry (`quick_broker`): an idle GPU is warned of after 2 s."""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821
gpu = next(service for service in c.JupyterHub.services if service["name"] == "gpu")
root = Path(os.environ["GPUSPAWNER_TEST_MORE"]).resolve().parents[2]

c.GpuSite.idle = {"first_warning": 2, "second_warning": 4, "after": 6, "only_when_waiting": True}
gpu["command"] = [sys.executable, "-m", "tests.hub.quick_broker", *gpu["command"][3:]]
gpu["environment"] = {
    **gpu["environment"],
    "PYTHONPATH": os.pathsep.join([str(root), str(root / "spawner"), *sys.path]),
}
