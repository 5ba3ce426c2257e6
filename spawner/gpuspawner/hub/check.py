"""Settings that can't be used keep the hub from starting: what is known when the config file has been read.

JupyterHub makes no spawner before the first user comes, so it would start with any setting of a spawner.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from traitlets import TraitError
from traitlets.config import Config

from ..core.errors import ConfigError
from .reach import check, drop_devices, ways
from .spawner import GpuDockerSpawner


def spawner_of(config: Config) -> GpuDockerSpawner:
    """A spawner without a server, for its settings. Raises ConfigError for one that can't be used."""
    try:
        # DockerSpawner makes a name for a server in any case.
        return GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))
    except TraitError as error:
        raise ConfigError(str(error)) from error


def check_spawner(config: Config) -> None:
    """Raises TraitError, with the remedy, for settings of spawner and site that can't be used.

    JupyterHub (6.1) prints its sentence and doesn't start.
    """
    try:
        spawner = spawner_of(config)
        spawner.tiers  # noqa: B018  (parsed here)
        if not callable(spawner.allowed_images):
            spawner.offered_images()
        _check_reach(spawner)
    except ConfigError as error:
        raise TraitError(str(error)) from error


def _check_reach(spawner: GpuDockerSpawner) -> None:
    """What a container could reach past its lease; a function is asked at each start. Raises ConfigError."""
    rules = spawner.lab_settings.rules(spawner.site.state_dir)
    create = {"user": spawner.container_user, **_known(spawner.extra_create_kwargs)}
    host = {"cap_drop": ["ALL"], **_known(spawner.extra_host_config)}
    drop_devices(create, host, rules.past_lease)
    check(ways(create, host, rules.private), rules.past_lease)


def _known(setting: Any) -> dict[str, Any]:
    return dict(setting) if isinstance(setting, Mapping) else {}
