"""Creates the labs' own Docker network before the hub starts.

`python -m gpuspawner.tools.make_network --config FILE`

The hub listens on the host's address in that network, so the network must exist first. The config file
can't create it: it contains only settings, and the broker reads it too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..config.loading import load_settings
from ..core.errors import EngineFault, GpuSpawnerError
from ..hub.check import spawner_of
from ..hub.docker import DockerEngine
from ..hub.network import ensure_network
from ..hub.spawner import GpuDockerSpawner


def spawner_of_file(config_file: Path) -> GpuDockerSpawner:
    """A spawner without a server, for its settings. Raises ConfigError if the file fails."""
    return spawner_of(load_settings(config_file))


def prepare_network(config_file: Path) -> str:
    """Creates the network of `config_file` if it is missing; returns the host's address on it.

    Blocks on Docker. Raises ConfigError with the remedy, EngineFault if Docker doesn't answer.
    """
    spawner = spawner_of_file(config_file)
    engine = DockerEngine(spawner.client_kwargs, spawner.tls_config)
    try:
        return ensure_network(engine.call_here, spawner.network_name, spawner.subnet)
    finally:
        engine.close()


def main(arguments: list[str] | None = None) -> int:
    """The command; prints the address. Exit status 1, with a sentence, if the network can't be created."""
    parser = argparse.ArgumentParser(
        prog="python -m gpuspawner.tools.make_network", description=prepare_network.__doc__
    )
    parser.add_argument("--config", type=Path, default=Path("jupyterhub_config.py"), help="the hub's own")
    options = parser.parse_args(arguments)
    try:
        print(prepare_network(options.config))
    except EngineFault as fault:
        print(f"{fault}\nStart Docker, then try again.", file=sys.stderr)
        return 1
    except GpuSpawnerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
