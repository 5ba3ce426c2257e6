"""The project's own settings on a machine with real GPUs.

Where the lab images can't be built (a bare machine without network), GPUSPAWNER_GPU_LAB names the command of
an image that has everything else bound from the host: GPUSPAWNER_GPU_BINDS is a colon-separated list of
folders, read-only and under their own names. Homes are then in memory.
"""

import json
import os
import shutil
from pathlib import Path

c = get_config()  # noqa: F821
this_file = Path(__file__).resolve()
load_subconfig(str(this_file.parents[2] / "jupyterhub_config.py"))  # noqa: F821

c.GpuSite.inventory = "nvml"
if "GPUSPAWNER_GPU_SITE" in os.environ:  # pools and tiers of one test
    for name, value in json.loads(Path(os.environ["GPUSPAWNER_GPU_SITE"]).read_text()).items():
        c.GpuSite[name] = value
service = c.JupyterHub.services[0]
service["command"][service["command"].index("--config") + 1] = str(this_file)
service["environment"] = {
    **service["environment"],
    **{key: os.environ[key] for key in ("LD_LIBRARY_PATH", "PYTHONPATH", "PATH") if key in os.environ},
}

root = this_file.parents[2]
c.GpuDockerSpawner.read_only_volumes = {
    str(root / "images" / "notebooks"): "/opt/course/notebooks",
    str(root / "tests" / "notebooks"): "/opt/course/tests",
}
if "GPUSPAWNER_GPU_LAB" in os.environ:
    c.GpuDockerSpawner.cmd = os.environ["GPUSPAWNER_GPU_LAB"].split()
    c.GpuDockerSpawner.volumes = {}
    c.GpuDockerSpawner.read_only_volumes |= {
        folder: folder for folder in os.environ["GPUSPAWNER_GPU_BINDS"].split(":")
    }
    packages = os.environ["GPUSPAWNER_GPU_PACKAGES"]  # JupyterLab's files, installed there with --target
    c.GpuDockerSpawner.environment = {
        "HOME": "/home/jovyan",
        "JUPYTERLAB_DIR": f"{packages}/share/jupyter/lab",
        "JUPYTER_PATH": f"{packages}/share/jupyter",
        "JUPYTER_CONFIG_PATH": f"{packages}/etc/jupyter",
    }
    c.GpuDockerSpawner.extra_host_config = {  # exec: torch.compile loads what it compiled there
        "tmpfs": {"/tmp": "mode=1777,exec", "/home/jovyan": "uid=1000,gid=100,mode=755,exec"},
        **({} if shutil.which("docker-init") else {"init": False}),
    }
