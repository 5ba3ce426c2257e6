"""Settings that can't be used keep the hub from starting: what is known when the config file has been read.

JupyterHub makes no spawner before the first user comes, so it would start with any setting of a spawner.
"""

from __future__ import annotations

from types import SimpleNamespace

from traitlets import TraitError
from traitlets.config import Config

from ..core.errors import ConfigError
from .network import gateway_of, has_address
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
        _check_address(config, spawner)
    except ConfigError as error:
        raise TraitError(str(error)) from error


def _check_address(config: Config, spawner: GpuDockerSpawner) -> None:
    """Raises ConfigError for a hub that is to listen in the labs' network while there is none.

    JupyterHub (6.1) would end with "Cannot assign requested address".
    """
    address = gateway_of(spawner.subnet)
    if config.get("JupyterHub", Config()).get("hub_ip") == address and not has_address(address):
        raise ConfigError(
            f"The hub can't listen on {address}, this machine's address in the labs' network "
            f"{spawner.network_name!r}, because Docker has no such network yet: run 'python -m "
            "gpuspawner.tools.make_network --config FILE' with the hub's own config file, then start the hub "
            "again"
        )
