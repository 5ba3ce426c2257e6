"""A site with shared folders beside the homes, and names that follow the image and the server."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
folder = Path(os.environ["GPUSPAWNER_TEST_FOLDER"])

c.GpuDockerSpawner.volumes = {
    str(folder / "shared"): "/srv/shared",
    "{prefix}-home-{username}": "/home/jovyan",
    "{prefix}-home-{username}-{imagename}": "/srv/cache",
}
c.GpuDockerSpawner.read_only_volumes = {str(folder / "data"): "/srv/data"}
c.GpuDockerSpawner.name_template = "{prefix}-{username}-{servername}-in-{imagename}"
exec(compile((folder / "hook.py").read_text(), "hook.py", "exec"))
