"""`make images`: builds the lab images, and of those only what changed.

Usage: python -m images.build [NAME ...]     all images of the table, or these and what they stand on
Environment: CPU=1 takes the CPU builds even where a driver is; CPU=0 the CUDA builds where none is.
BASE_IMAGE names another base image. DOCKER_HOST as Docker's own tools.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

import docker
from docker.errors import DockerException

from images.base import ensure_base, has, pull
from images.engine import INPUTS_LABEL, build, inputs_of, run
from images.table import IMAGES_DIR, Image, Table, read_table
from images.wheels import Target, pin, wheelhouse
from setup.steps import SetupError, Step, step

CACHE = IMAGES_DIR.parent / ".cache"
PROBE = "import platform as p; print('.'.join(p.python_version_tuple()[:2]), p.libc_ver()[1])"


def main(arguments: list[str]) -> int:
    """Builds what is missing or out of date; returns the exit status."""
    try:
        build_images(connect(), read_table(), arguments)
    except KeyError as error:
        names = ", ".join(image.name for image in read_table().images)
        print(SetupError(f"there is no image {error}", f"take one of: {names}").block(), file=sys.stderr)
        return 1
    except SetupError as error:
        print(error.block(), file=sys.stderr)
        return 1
    return 0


def connect() -> docker.DockerClient:
    """The engine that Docker's own tools would use. Raises SetupError if it does not answer."""
    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except DockerException as error:
        raise SetupError(
            "Docker Engine does not answer", "start it (`make engine` does), or check DOCKER_HOST"
        ) from error
    return client


def has_driver() -> bool:
    """Whether to take CUDA builds: an NVIDIA driver is loaded here, unless `CPU` says otherwise."""
    if forced := os.environ.get("CPU", ""):
        return forced == "0"
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def ensure_named(client: docker.DockerClient, reference: str) -> None:
    """Makes sure that an image from elsewhere is there. Raises SetupError if it can't be pulled."""
    with step(f"image {reference}") as current:
        if not has(client, reference) and not pull(client, reference, current):
            raise SetupError(
                f"the image {reference} is not here and could not be pulled",
                "check GPUSPAWNER_IMAGE and the registry, or unset it: then the project's own image is built",
            )


def build_images(client: docker.DockerClient, table: Table, names: list[str]) -> None:
    """Brings the named images (all, if none is named) and their parents up to date."""
    wanted = table.with_parents(names)
    with step("base image") as current:
        ensure_base(client, table.base, CACHE, current)
    cores = {"base": table.base.reference}
    for image in wanted:
        with step(f"image {image.name}") as current:
            current.note = _build_one(client, image, cores[image.parent], current)
        cores[image.name] = image.core


def _build_one(client: docker.DockerClient, image: Image, parent: str, current: Step) -> str:
    """Builds the image's core and, on top, the starters, each if its inputs changed; returns what it did."""
    lock, cuda = _choose_lock(client, image, parent)
    inputs = _digest(inputs_of(client, parent) or "", lock, *_files(image.folder))
    built = inputs_of(client, image.core) != inputs
    if built:
        wheels = wheelhouse(CACHE, image.name, lock, _target(client, parent), current)
        context: list[Path | tuple[str, Path | bytes]] = [*sorted(image.folder.iterdir())]
        context = [item for item in context if isinstance(item, Path) and not item.name.endswith(".lock")]
        context += [("wheels", wheels), ("requirements.lock", lock.encode())]
        labels = {INPUTS_LABEL: inputs, **_labels(image, cuda)}
        build(client, context, image.core, ({"BASE": parent}, labels), current)
    starters = IMAGES_DIR / "notebooks"
    whole = _digest(inputs, *_files(starters))
    if inputs_of(client, image.reference) == whole:
        return f"{image.reference} is up to date"
    dockerfile = ("Dockerfile", IMAGES_DIR / "starters.Dockerfile")
    build(
        client,
        [dockerfile, ("starters", starters)],
        image.reference,
        ({"BASE": image.core}, {INPUTS_LABEL: whole}),
        current,
    )
    return f"{image.reference} {'built' if built else 'has new starters'}{'' if cuda else ', CPU build'}"


def _choose_lock(client: docker.DockerClient, image: Image, parent: str) -> tuple[str, bool]:
    """The lock to install, with the hub's own version of JupyterHub, and whether it brings CUDA."""
    cuda = bool(image.cuda)
    name = image.lock
    if image.cpu_lock and not has_driver():
        name, cuda = image.cpu_lock, False
    lock = pin((image.folder / name).read_text(), "jupyterhub", version("jupyterhub"))
    return lock, cuda


def _target(client: docker.DockerClient, parent: str) -> Target:
    options = {"entrypoint": [], "network_mode": "none"}
    python, glibc = run(client, parent, ["python3", "-c", PROBE], **options).split()
    return Target(python=python, glibc=glibc)


def _labels(image: Image, cuda: bool) -> dict[str, str]:
    return {
        "org.opencontainers.image.title": image.title,
        "org.opencontainers.image.version": image.tag,
        "org.opencontainers.image.licenses": "BSD-3-Clause",
        "org.opencontainers.image.description": f"gpuspawner {image.name}: {image.title}",
        "gpuspawner.cuda": image.cuda if cuda else "",
        "gpuspawner.min-driver": image.min_driver if cuda else "",
        "gpuspawner.needs-gpu": "1" if image.needs_gpu else "0",
    }


def _files(folder: Path) -> list[str]:
    """Each file of an image's folder with its mode and content, in a fixed order."""
    listed = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts:
            if path.suffix == ".lock":
                continue
            listed.append(f"{path.relative_to(folder)} {path.stat().st_mode & 0o100}")
            listed.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return listed


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
