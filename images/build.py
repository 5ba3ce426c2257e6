"""`make images`: builds the lab images whose inputs changed.

Usage: python -m images.build [NAME ...]     all images of the table, or these and their parents
Environment: CPU=1 selects the CPU builds even with a driver; CPU=0 the CUDA builds without one.
BASE_IMAGE names another base image. BUNDLE names the output of `make bundle`: then nothing is downloaded.
DOCKER_HOST as Docker's own tools.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import docker
from docker.errors import DockerException

from images.base import ensure_base, has, pull
from images.bundle import Bundle, Wanted, open_bundle
from images.debs import Layer, add_packages, packages_of
from images.engine import INPUTS_LABEL, build, identity_of, inputs_of, run
from images.stock import CACHE, Stock
from images.table import IMAGES_DIR, Image, Table, read_table
from images.wheels import Lock, Target, offers, pin, wheelhouse
from setup.steps import SetupError, Step, step

PROBE = "import platform as p; print('.'.join(p.python_version_tuple()[:2]), p.libc_ver()[1])"


def main(arguments: list[str]) -> int:
    """Builds what is missing or out of date; returns the exit status."""
    try:
        table = read_table()
        build_images(connect(), table, arguments, choose_stock(table))
    except KeyError as error:
        names = ", ".join(image.name for image in read_table().images)
        print(SetupError(f"there is no image {error}", f"use one of: {names}").block(), file=sys.stderr)
        return 1
    except SetupError as error:
        print(error.block(), file=sys.stderr)
        return 1
    return 0


def connect() -> docker.DockerClient:
    """The engine that Docker's own tools use. Raises SetupError if it does not answer."""
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
    """Makes sure that an image of others is on this machine. Raises SetupError if it can't be pulled."""
    with step(f"image {reference}") as current:
        if not has(client, reference) and not pull(client, reference, current):
            raise SetupError(
                f"the image {reference} is not here and could not be pulled",
                "check GPUSPAWNER_IMAGE and the registry, or unset it: then the project's own image is built",
            )


def choose_stock(table: Table) -> Stock:
    """The cache, or the bundle that `BUNDLE` names. Raises SetupError if the bundle can't be used here."""
    path = os.environ.get("BUNDLE", "")
    if not path:
        return Stock(CACHE)
    if os.environ.get("BASE_IMAGE"):
        raise SetupError("BUNDLE and BASE_IMAGE are both set", "unset one: a bundle has a base image")
    here = Wanted(tag=table.base.tag, jupyterhub=version("jupyterhub"), cuda=has_driver())
    return open_bundle(Path(path), here)


def build_images(client: docker.DockerClient, table: Table, names: list[str], stock: Stock) -> None:
    """Brings the named images (all, if none is named) and their parents up to date.

    Images that can't be built here are skipped with the reason; raises SetupError if one was named.
    """
    wanted = table.with_parents(names)
    with step("base image") as current:
        if isinstance(stock, Bundle):
            stock.load_base(client, table.base.reference, current)
        else:
            ensure_base(client, table.base, stock, current)
    cores = {"base": table.base.reference}
    for image in wanted:
        with step(f"image {image.name}") as current:
            task = Task(client, image, cores.get(image.parent, ""), stock)
            reason, remedy = task.why_not() if task.parent else (f"{image.parent} is not built", "see above")
            if reason and names:
                raise SetupError(f"{image.name} can't be built here: {reason}", remedy)
            if reason:
                current.mark, current.note = "–", f"not built: {reason}"
                continue
            current.note = task.run(current)
        cores[image.name] = image.core


@dataclass(frozen=True)
class Task:
    """One image to be brought up to date on top of its parent, with packages from the stock."""

    client: docker.DockerClient
    image: Image
    parent: str
    stock: Stock

    @property
    def cuda(self) -> bool:
        """Whether the image's packages bring CUDA."""
        return bool(self.image.cuda) and (has_driver() or not self.image.cpu_lock)

    @property
    def lock(self) -> Lock:
        """The lock to install, with the hub's own version of JupyterHub."""
        image = self.image
        name = image.lock if self.cuda or not image.cpu_lock else image.cpu_lock
        text = pin((image.folder / name).read_text(), "jupyterhub", version("jupyterhub"))
        return Lock(image.name, text, image.source)

    @property
    def target(self) -> Target:
        """The Python of the parent."""
        options = {"entrypoint": [], "network_mode": "none"}
        python, glibc = run(self.client, self.parent, ["python3", "-c", PROBE], **options).split()
        return Target(python=python, glibc=glibc)

    @property
    def inputs(self) -> str:
        """The hash of all that the image's core is built from."""
        packages = " ".join(self.image.packages)
        parent = identity_of(self.client, self.parent)
        return _digest(parent, packages, self.lock.text, *_files(self.image.folder))

    def why_not(self) -> tuple[str, str]:
        """Why the image can't be built here, and the remedy; "" if it can, or if it is up to date already."""
        image, stock = self.image, self.stock
        if inputs_of(self.client, image.core) == self.inputs:
            return "", ""
        if isinstance(stock, Bundle):
            if image.name not in stock.manifest["images"]:
                return "it is not in the bundle", "make one with it (`make bundle NAMES=`), or leave it out"
        elif image.elsewhere and not stock.has(self.lock.goods(self.target)):
            for requirement in map(self.lock.requirement, image.elsewhere):
                if not offers(requirement, self.target):
                    return (
                        f"NVIDIA's package index can't be reached (pip finds no {requirement})",
                        "name it in pip's settings (docs/admin-setup.md, lab-tensorrt), or leave it out",
                    )
        if image.needs_gpu and not has_driver():
            return (
                "it needs an NVIDIA GPU, and no driver is loaded here",
                "build it on a machine with a driver, or set CPU=0 to build it without one",
            )
        return "", ""

    def run(self, current: Step) -> str:
        """Builds the core and, on it, the starters, each if its inputs changed; returns what it did."""
        image, inputs = self.image, self.inputs
        built = inputs_of(self.client, image.core) != inputs
        if built:
            self._build_core(inputs, current)
        starters = IMAGES_DIR / "notebooks"
        whole = _digest(inputs, *_files(starters))
        if inputs_of(self.client, image.reference) == whole:
            return f"{image.reference} is up to date"
        files = [("Dockerfile", IMAGES_DIR / "starters.Dockerfile"), ("starters", starters)]
        arguments = ({"BASE": image.core}, {INPUTS_LABEL: whole})
        build(self.client, [*files], image.reference, arguments, current)
        did = "built" if built else "has new starters"
        return f"{image.reference} {did}{', CPU build' if image.cpu_lock and not self.cuda else ''}"

    def downloads(self, current: Step) -> tuple[Path, Path | None]:
        """The folders with its Python packages and, if it adds any, its Debian packages."""
        wheels = wheelhouse(self.stock, self.lock, self.target, current)
        if not self.image.packages:
            return wheels, None
        return wheels, packages_of(self.client, self.layer, self.stock, current)

    @property
    def layer(self) -> Layer:
        """Its Debian packages on its parent."""
        return Layer(name=self.image.name, parent=self.parent, packages=self.image.packages)

    def _build_core(self, inputs: str, current: Step) -> None:
        image, client, start = self.image, self.client, self.parent
        wheels, debs = self.downloads(current)
        if debs is not None:
            start = image.system
            wanted = _digest(identity_of(client, self.parent), *image.packages)
            if inputs_of(client, start) != wanted:
                add_packages(client, self.layer, (start, {INPUTS_LABEL: wanted}), debs, current)
        context: list[Path | tuple[str, Path | bytes]] = [
            path for path in sorted(image.folder.iterdir()) if path.suffix != ".lock"
        ]
        context += [("wheels", wheels), ("requirements.lock", self.lock.text.encode())]
        labels = {INPUTS_LABEL: inputs, **_labels(image, self.cuda)}
        build(client, context, image.core, ({"BASE": start}, labels), current)


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
