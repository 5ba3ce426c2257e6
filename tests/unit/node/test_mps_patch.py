"""What a container gets to compute through MPS."""

from __future__ import annotations

from gpuspawner.core.model import ContainerPatch
from gpuspawner.node.mps.control import MpsLimits
from gpuspawner.node.mps.patch import patch_for

MOUNT = {"source": "/run/gs/GPU-1", "target": "/run/gpuspawner-mps", "type": "bind", "read_only": True}
PIPE = {"CUDA_MPS_PIPE_DIRECTORY": "/run/gpuspawner-mps"}


def test_the_pipe_folder_and_where_it_is_smaller_the_lease_s_own_limits() -> None:
    assert patch_for("/run/gs/GPU-1") == ContainerPatch(env=PIPE, mounts=(MOUNT,))
    limits = {
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "12.5",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=4096M",
    }
    found = patch_for("/run/gs/GPU-1", MpsLimits(12.5, 4 << 30))
    assert found == ContainerPatch(env={**PIPE, **limits}, mounts=(MOUNT,))
    alone = patch_for("/run/gs/GPU-1", MpsLimits(10.0))
    assert alone.env == {**PIPE, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "10"}
