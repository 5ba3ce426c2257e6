"""`make clean-demo`: ends the notebooks that a stopped hub left running. HOMES=1 deletes their homes too."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import docker
from docker.errors import APIError, DockerException, NotFound
from gpuspawner.core import labels
from gpuspawner.hub.metadata import MetadataWall
from gpuspawner.hub.other_hub import others, state_folder

from setup.demo import Demo, lock, read_demo
from setup.steps import SetupError, step


def main() -> int:
    """Returns the exit status."""
    try:
        demo = read_demo(os.environ)
        os.close(lock(demo.state_dir))  # not while the hub runs: the hub would not know of it
        clean(demo, homes=os.environ.get("HOMES", "") == "1")
    except SetupError as error:
        print(error.block(), file=sys.stderr)
        return 1
    return 0


def clean(demo: Demo, homes: bool) -> None:
    """Removes the containers and the network of the hub, and the homes if asked to.

    Raises SetupError if Docker does not answer or refuses; or, with nothing removed, if there are labs of a
    hub with this name but another state folder.
    """
    name = demo.name
    try:
        client = docker.from_env(timeout=60)
        labs = client.api.containers(
            all=True, filters={"label": [f"{labels.HUB}={name}", labels.STATE_FOLDER]}
        )
        if found := others(labs, state_folder(str(demo.state_dir))):
            raise SetupError(
                f"the notebooks {', '.join(found[1])} are of another hub with the name {name!r}, whose "
                f"state folder is {found[0]}: nothing was removed",
                "run `make clean-demo` where that hub was started, or set GPUSPAWNER_NAME to this one's name",
            )
        with step("notebooks") as current:
            of_hub = f"{labels.HUB}={name}"
            containers = client.containers.list(all=True, filters={"label": of_hub}, ignore_removed=True)
            for container in containers:
                with suppress(NotFound):  # a lab that was ending has gone meanwhile
                    container.remove(force=True)
            current.note = f"{len(containers)} ended"
        with step("homes") as current:
            volumes = (
                [v for v in client.volumes.list() if str(v.name).startswith(f"{name}-home-")] if homes else []
            )
            for volume in volumes:
                volume.remove()
            current.note = f"{len(volumes)} deleted" if homes else "kept (HOMES=1 deletes them)"
        for network in client.networks.list(filters={"label": f"gpuspawner.network={name}"}):
            network.remove()
            for entry in network.attrs["IPAM"]["Config"] or ():
                MetadataWall(entry["Subnet"]).remove()
        client.close()
    except (APIError, DockerException) as error:
        raise SetupError(
            f"Docker Engine refuses: {error}", "check that it runs, then run this again"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
