"""The file systems of this machine that labs and broker fill."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..core.disk import Disk

LABS, BROKER = "images, homes and logs", "the broker's state"


def read_disks(docker_root: str, state_dir: str) -> tuple[Disk, ...]:
    """Each file system once. If Docker runs on another machine, its folder isn't here. Blocks."""
    found: dict[int, Disk] = {}
    for holds, folder in ((LABS, docker_root), (BROKER, state_dir)):
        path = Path(folder)
        while folder and not path.exists() and path != path.parent and holds != LABS:
            path = path.parent  # the broker creates its folder at its first start
        try:
            usage, number = shutil.disk_usage(path), path.stat().st_dev
        except OSError:
            continue
        if folder and number not in found:
            found[number] = Disk(holds, folder, usage.free, usage.total)
    return tuple(found.values())
