"""Keeps labs from the cloud's metadata service (169.254.169.254). Run it as root, after each boot.

`python -m gpuspawner.tools.block_metadata --config FILE` for the labs' network of one machine, and
`python -m gpuspawner.tools.block_metadata --swarm`, on each machine of a Swarm, for labs that are services.

The hub's service `network`, and the agents of other machines, do the same by themselves if they are root.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..core.errors import ConfigError, GpuSpawnerError
from ..hub.docker import DockerEngine
from ..hub.metadata import MetadataWall
from .doctor.swarm_network import BRIDGE, wall_of
from .make_network import spawner_of_file


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit status 1, with a sentence, if the firewall can't be changed."""
    parser = argparse.ArgumentParser(prog="python -m gpuspawner.tools.block_metadata", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("jupyterhub_config.py"), help="the hub's own")
    parser.add_argument("--swarm", action="store_true", help="for labs that are services of a Swarm")
    options = parser.parse_args(arguments)
    try:
        wall = swarm_wall() if options.swarm else MetadataWall(spawner_of_file(options.config).subnet)
        added = wall.build()
    except GpuSpawnerError as error:
        print(f"{error}\nRun it as root, on the machine with the labs.", file=sys.stderr)
        return 1
    print(f"Labs of {wall.subnet} don't reach the metadata service: {added} rules added")
    return 0


def swarm_wall() -> MetadataWall:
    """The rules for the network by which labs of a Swarm leave this machine.

    Raises EngineFault; ConfigError outside of a Swarm.
    """
    engine = DockerEngine({}, {})
    try:
        wall = wall_of(engine.call_here)
    finally:
        engine.close()
    if wall is None:
        raise ConfigError(f"This machine has no network {BRIDGE}: join it to the Swarm first")
    return wall


if __name__ == "__main__":
    raise SystemExit(main())
