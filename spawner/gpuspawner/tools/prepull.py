"""Pulls the images that are missing when the hub starts: `python -m gpuspawner.tools.prepull --config FILE`.

The hub's service `images` runs it with `--stay`: the hub restarts a service that has ended, so this one
turns into a `sleep` when it is done, which ends with the hub. By hand, and from cron, it just ends.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

from ..core.errors import ConfigError, EngineFault, StartFault
from ..hub.spawner import GpuDockerSpawner
from .make_network import spawner_of_file

LOG = logging.getLogger("gpuspawner.tools.prepull")
NEWS_SECONDS = 30.0
"""How often the progress of a pull is logged."""
RETRY_SECONDS = 10.0
_NICE = 10
"""Priority of the pulls: servers that start at the same time get the cores first."""


def wanted(spawner: GpuDockerSpawner) -> tuple[str, ...]:
    """The images of servers that the settings name; none if nothing may be pulled.

    Raises ConfigError.
    """
    if not spawner.pull_at_start or spawner.pull_policy.lower() not in ("ifnotpresent", "always"):
        return ()
    images = [spawner.image, *(tier.image for tier in spawner.tiers)]
    if not callable(spawner.allowed_images):
        images += spawner.offered_images().listed.values()
    return tuple(dict.fromkeys(image for image in images if image))


async def prepull(spawner: GpuDockerSpawner) -> bool:
    """Pulls one image after the other by the policy; returns whether all are available. Failures are logged.

    Waits until Docker answers.
    """
    complete = True
    for image in wanted(spawner):
        try:
            await _pull(spawner, image)
        except StartFault as fault:
            LOG.warning("%s", fault)
            complete = False
    return complete


async def _pull(spawner: GpuDockerSpawner, image: str) -> None:
    told = time.monotonic()

    def tell(news: str) -> None:
        nonlocal told
        if time.monotonic() - told >= NEWS_SECONDS:
            told = time.monotonic()
            LOG.info("%s", news)

    doubted = False
    while True:
        try:
            await spawner.pull_image(image, tell)
            return
        except EngineFault as fault:
            if not doubted:
                LOG.warning("Docker doesn't answer yet, retrying: %s", fault)
            doubted = True
        await asyncio.sleep(RETRY_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit status 1 if something could not be pulled."""
    parser = argparse.ArgumentParser(prog="python -m gpuspawner.tools.prepull", description=prepull.__doc__)
    parser.add_argument("--config", type=Path, default=Path("jupyterhub_config.py"), help="the hub's own")
    parser.add_argument("--stay", action="store_true", help="sleep when done, until the parent ends")
    options = parser.parse_args(arguments)
    parent = os.getppid()
    # The hub ends services with this signal; a shell in the background starts us with it ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.nice(_NICE)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="[%(levelname).1s prepull] %(message)s")
    complete = False
    try:
        spawner = spawner_of_file(options.config)
        spawner.log = LOG
        complete = asyncio.run(prepull(spawner))
    except ConfigError as error:
        LOG.warning("No image is pulled: %s", error)
    except Exception:  # top level: the hub would restart a failing service for ever
        LOG.exception("No image is pulled")
    if options.stay and os.getppid() == parent:
        # setpriv is from util-linux; the signal is also sent when the hub is killed.
        os.execvp("setpriv", ["setpriv", "--pdeathsig", "TERM", "sleep", "infinity"])
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
