"""What a container needs to compute through a GPU's MPS daemon. Pure."""

from __future__ import annotations

from pathlib import PurePath

from ...core.model import ContainerPatch
from .control import MpsLimits

MPS_MOUNT = "/run/gpuspawner-mps"
"""Where the pipe folder is in the container, read-only: enough to connect (measured, driver 580)."""


def patch_for(pipe: PurePath | str, share: MpsLimits | None = None) -> ContainerPatch:
    """Mount and environment for the daemon with that pipe folder: one GPU only, as MPS has one pipe.

    `share` is for a lease that is smaller than the daemon's limits. Its user can undo these two settings of
    a client, up to the daemon's: the percentage is then not held, the memory is, by the guard.
    """
    env = {"CUDA_MPS_PIPE_DIRECTORY": MPS_MOUNT}
    if share is not None:
        env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{share.percent:g}"
        if share.size is not None:
            env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={share.size}"
    mount = {"source": str(pipe), "target": MPS_MOUNT, "type": "bind", "read_only": True}
    return ContainerPatch(env=env, mounts=(mount,))
