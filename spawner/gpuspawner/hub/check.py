"""Stops the hub from starting with invalid settings: checks them when the config file has been read.

JupyterHub creates the first spawner for the first user, so by itself it starts with any spawner settings.
"""

from __future__ import annotations

from types import SimpleNamespace

from traitlets import TraitError
from traitlets.config import Config

from ..core.errors import ConfigError
from .spawner import GpuDockerSpawner


def spawner_of(config: Config) -> GpuDockerSpawner:
    """A spawner without a server, to read its settings. Raises ConfigError for an invalid setting."""
    try:
        # DockerSpawner needs a server's name in any case.
        return GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))
    except TraitError as error:
        raise ConfigError(str(error)) from error


def check_spawner(config: Config) -> None:
    """Raises TraitError, with the remedy, for invalid settings of spawner and site.

    JupyterHub (6.1) prints its message and doesn't start.
    """
    try:
        spawner = spawner_of(config)
        spawner.tiers  # noqa: B018  (parsed here)
        if not callable(spawner.allowed_images):
            spawner.offered_images()
    except ConfigError as error:
        raise TraitError(str(error)) from error
