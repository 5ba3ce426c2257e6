"""From `docker start` to the first answer: the status bar's two ways, lab-base with one of them each.

    .venv/bin/python bench/status_bar.py [--pairs 20] [--image gpuspawner/lab-base:0.1.0]

"theirs" has jupyter-resource-usage (a server extension with psutil, a part of the page) without the GPU
quota; "ours" has the GPU quota (a server extension that imports nothing new, a script of 5 kB) without
jupyter-resource-usage. lab-base itself has both. Both are made from one image, and measured in pairs as
startup.py does it.
"""

from __future__ import annotations

import argparse
import contextlib

import docker
from startup import pairs, show

from images.build import connect
from images.engine import build
from setup.steps import step

_ETC, _PAGE = "/opt/lab/etc/jupyter/jupyter_server_config", "/opt/lab/share/jupyter/labextensions"
_OFF = 's/.gpuspawner_status.: true/"gpuspawner_status": false/'
WITHOUT = {
    "theirs": f"rm -r {_PAGE}/gpuspawner-status && sed -i '{_OFF}' {_ETC}.json",
    "ours": f"rm -r {_ETC}.d/jupyter_resource_usage.json {_PAGE}/@jupyter-server/resource-usage",
}
"""What is taken out of the image for each."""


def make(client: docker.DockerClient, base: str, name: str) -> str:
    """Builds the image of one way; returns its name. SetupError if that can't be done."""
    reference = f"gpuspawner-bench/status-{name}"
    text = f"FROM {base}\nUSER 0\nRUN {WITHOUT[name]}\nUSER 1000\n"
    with step(f"image {reference}") as current:
        build(client, [("Dockerfile", text.encode())], reference, ({}, {}), current)
    return reference


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--image", default="gpuspawner/lab-base:0.1.0")
    given = parser.parse_args()
    with contextlib.closing(connect()) as client:
        names = (make(client, given.image, "theirs"), make(client, given.image, "ours"))
        show(pairs(client, names, given.pairs), names)


if __name__ == "__main__":
    main()
