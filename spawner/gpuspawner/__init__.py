"""gpuspawner: a GPU quota that holds, for every notebook user of a JupyterHub on plain Docker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traitlets.config import Config

    from .hub.spawner import GpuDockerSpawner

__all__ = ["GPU_SCOPES", "HUB_TEMPLATES", "GpuDockerSpawner", "__version__", "check_settings"]
__version__ = "0.1.0"
HUB_TEMPLATES = str(Path(__file__).parent / "hub" / "templates" / "pages")
"""Our versions of JupyterHub's pages, for `c.JupyterHub.template_paths`."""
GPU_SCOPES: dict[str, dict[str, Any]] = {
    "custom:gpu:read": {"description": "See who holds which GPU and who waits"},
    "custom:gpu:reserve": {
        "description": "Keep GPUs for lab sessions, extend servers, send notices",
        "subscopes": ["custom:gpu:read"],
    },
    "custom:gpu:admin": {
        "description": "Change quotas and GPU-hours, take GPUs out of service",
        "subscopes": ["custom:gpu:reserve"],
    },
}
"""The scopes of the GPU pages and their API, for `c.JupyterHub.custom_scopes`."""


def check_settings(config: Config) -> None:
    """Checks all settings; call it in the last line of `jupyterhub_config.py`.

    Raises TraitError, with the remedy, for an invalid setting if JupyterHub reads the file: then the hub
    doesn't start. What a file of yours sets after it has loaded this one is checked before the hub listens.
    Broker and commands read the same file, but check only the settings that they use.
    """
    app = sys.modules.get("jupyterhub.app")
    if app is None or not app.JupyterHub.initialized():
        return
    from .hub.check import check_spawner, watch_settings

    check_spawner(config)
    watch_settings(app.JupyterHub.instance())


def __getattr__(name: str) -> Any:
    # Imported on first use: broker and CLI need no hub in their process.
    if name == "GpuDockerSpawner":
        from .hub.spawner import GpuDockerSpawner

        return GpuDockerSpawner
    raise AttributeError(name)
