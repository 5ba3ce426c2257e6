"""gpuspawner: a GPU quota that holds, for every notebook user of a JupyterHub on plain Docker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hub.spawner import GpuDockerSpawner

__all__ = ["GpuDockerSpawner", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use: broker and CLI need no hub in their process.
    if name == "GpuDockerSpawner":
        from .hub.spawner import GpuDockerSpawner

        return GpuDockerSpawner
    raise AttributeError(name)
