"""`make bundle`: writes a folder with which `make images` works without a network.

Usage: python -m images.pack [NAME ...]     all images that can be built here, or these and their parents
Environment: TO names the folder (default: bundle). CPU, BASE_IMAGE, DOCKER_HOST as in images/build.py.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import docker

from images.base import SOURCE_LABEL
from images.build import Task, build_images, connect, has_driver
from images.bundle import BASE, FORMAT, HUB, MANIFEST, describe
from images.debs import installed_in
from images.engine import identity_of, inputs_of
from images.stock import CACHE, Stock
from images.table import Table, read_table
from images.wheels import PIP, run_pip
from setup.steps import ROOT, SetupError, Step, step


def main(arguments: list[str]) -> int:
    """Writes the bundle; returns the exit status."""
    try:
        table = read_table()
        pack(connect(), table, arguments, Path(os.environ.get("TO") or ROOT / "bundle"))
    except KeyError as error:
        print(SetupError(f"there is no image {error}", "see images/images.toml").block(), file=sys.stderr)
        return 1
    except SetupError as error:
        print(error.block(), file=sys.stderr)
        return 1
    return 0


def pack(client: docker.DockerClient, table: Table, names: list[str], folder: Path) -> None:
    """Builds the images, so that all inputs exist and are known to work, then writes these inputs.

    Raises SetupError with the remedy; the folder is then as it was before.
    """
    _check_place(folder)
    stock = Stock(CACHE)
    build_images(client, table, names, stock)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with step("the hub's own packages") as current:
            current.note = _pack_hub(partial / HUB, current)
        with step("packages of the images") as current:
            packed = _pack_downloads(client, table, names, (stock, partial), current)
            current.note = ", ".join(packed)
        with step("base image") as current:
            current.note = _pack_base(client, table.base.reference, partial / BASE, current)
        with step("manifest") as current:
            current.note = _write_manifest(client, table, packed, partial, current)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise SetupError(
            f"the bundle could not be written: {error}", "free some space, or name another folder in TO"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(
        f"\nCopy this checkout and {folder.absolute()} to the other machine; there: make images BUNDLE=FOLDER"
    )


def _check_place(folder: Path) -> None:
    if not folder.exists() or (folder / MANIFEST).exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise SetupError(
            f"{folder} exists and is not a bundle: it would be overwritten", "name another folder in TO"
        )


def _pack_downloads(
    client: docker.DockerClient, table: Table, names: list[str], places: tuple[Stock, Path], current: Step
) -> list[str]:
    """Copies the packages of every image that is built here; returns the images' names."""
    stock, partial = places
    packed = []
    cores = {"base": table.base.reference}
    for image in table.with_parents(names):
        if inputs_of(client, image.core) is None or image.parent not in cores:
            continue
        task = Task(client, image, cores[image.parent], stock)
        if inputs_of(client, image.core) != task.inputs:
            continue  # an old one: it could not be built again here
        for source in task.downloads(current):
            if source is not None:
                current.detail(f"copying {source.name}")
                shutil.copytree(source, partial / source.relative_to(stock.folder), copy_function=_link)
        cores[image.name] = image.core
        packed.append(image.name)
    # The base's own .deb files are in the base image already, so they stay out.
    return packed


def _link(source: str, target: str) -> None:
    """A hard link where the disk allows it, as nobody changes these files; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _pack_hub(folder: Path, current: Step) -> str:
    """The wheels that setup/venv.sh installs, in the versions that are in use here."""
    folder.mkdir()
    freeze = [*PIP, "freeze", "--exclude-editable"]
    frozen = subprocess.run(freeze, capture_output=True, text=True, check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(frozen.stdout)
    command = [*PIP, "wheel", "--progress-bar=off", "-c", str(constraints), "-w", str(folder)]
    run_pip([*command, *_hub_requirements()], current)
    python = ".".join(platform.python_version_tuple()[:2])
    (folder / "python").write_text(f"{python}\n")
    return f"{len(list(folder.glob('*.whl')))} for Python {python}"


def _hub_requirements() -> list[str]:
    """What setup/venv.sh needs beside the checkout itself, to build, run and test it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    own = project["project"]
    return [
        *project["build-system"]["requires"],
        *own["dependencies"],
        *own["optional-dependencies"]["dev"],
    ]


def _pack_base(client: docker.DockerClient, reference: str, target: Path, current: Step) -> str:
    current.detail(f"saving {reference}")
    with target.open("wb") as file:
        for chunk in client.images.get(reference).save(named=reference):
            file.write(chunk)
    return f"{target.stat().st_size / 1e6:.0f} MB"


def _write_manifest(
    client: docker.DockerClient, table: Table, packed: list[str], folder: Path, current: Step
) -> str:
    reference = table.base.reference
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "for": {
            "tag": table.base.tag,
            "machine": platform.machine(),
            "jupyterhub": version("jupyterhub"),
            "cuda": has_driver(),
        },
        "images": packed,
        "base": {
            "identity": identity_of(client, reference),
            "source": client.images.get(reference).labels[SOURCE_LABEL],
            "packages": installed_in(client, reference).splitlines(),
        },
    }
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            current.detail(f"checksum of {path.name}")
            files[str(path.relative_to(folder))] = describe(path)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1) + "\n")
    return f"{len(files)} files, {sum(size for size, _ in files.values()) / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
