"""Keeps labs from the cloud's metadata service (169.254.169.254). Run it as root, after each boot.

`python -m gpuspawner.tools.block_metadata --config FILE`

The hub's service `network` does the same by itself if it is root.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..core.errors import GpuSpawnerError
from ..hub.metadata import MetadataWall
from .make_network import spawner_of_file


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit status 1, with a sentence, if the firewall can't be changed."""
    parser = argparse.ArgumentParser(prog="python -m gpuspawner.tools.block_metadata", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("jupyterhub_config.py"), help="the hub's own")
    options = parser.parse_args(arguments)
    try:
        subnet = spawner_of_file(options.config).subnet
        added = MetadataWall(subnet).build()
    except GpuSpawnerError as error:
        print(f"{error}\nRun it as root, on the machine with the labs.", file=sys.stderr)
        return 1
    print(f"Labs of {subnet} don't reach the metadata service: {added} rules added")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
