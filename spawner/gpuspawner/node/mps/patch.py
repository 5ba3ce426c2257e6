"""What a container needs to compute through a GPU's MPS daemon. Pure."""

from __future__ import annotations

from pathlib import PurePath

from ...core.model import ContainerPatch
from .control import MpsLimits

MPS_MOUNT = "/run/gpuspawner-mps"
"""The pipe folder in the container, read-only, which is enough to connect (measured, driver 580)."""


def patch_for(pipe: PurePath | str, share: MpsLimits | None = None) -> ContainerPatch:
    """Mount and environment for the daemon with that pipe folder: one GPU only, because MPS has one pipe.

    `share` is for a lease that is smaller than the daemon's limits. Its user can raise these two client
    settings up to the daemon's: then the percentage is not enforced, but the guard still enforces the memory.
    """
    env = {"CUDA_MPS_PIPE_DIRECTORY": MPS_MOUNT}
    if share is not None:
        env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{share.percent:g}"
        if share.size is not None:
            env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={share.size}"
    mount = {"source": str(pipe), "target": MPS_MOUNT, "type": "bind", "read_only": True}
    return ContainerPatch(env=env, mounts=(mount,))
