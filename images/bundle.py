"""A bundle: a folder with which `make images` works without a network. images/pack.py writes it.

    manifest.json       what the bundle is for, and length and SHA-256 of every file
    base.tar            the base image, as `docker save` writes it
    wheels/ debs/       the Python and Debian packages of each image, as the cache has them
    hub/                the Python packages of the hub itself, for .venv; hub/python says for which Python

The builder works in the same way with it, except that the base is loaded instead of built, and that a missing
folder of downloads is an error instead of a download.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound

from images.engine import identity_of
from images.stock import Goods, Stock
from setup.steps import SetupError, Step

FORMAT = 1
MANIFEST = "manifest.json"
BASE = "base.tar"
HUB = "hub"
AGAIN = "make it again with this checkout (`make bundle`, where packages can be reached)"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a bundle must be made for, to be used on this machine."""

    tag: str
    jupyterhub: str
    cuda: bool
    machine: str = field(default_factory=platform.machine)


@dataclass(frozen=True)
class Bundle(Stock):
    """A stock that is never filled: a missing file is an error, and every file is checked when it is used."""

    manifest: dict[str, Any]

    def has(self, goods: Goods) -> bool:
        """Whether the bundle was made with these."""
        return any(name.startswith(f"{goods.folder}/") for name in self.manifest["files"])

    def get(self, goods: Goods, fill: Callable[[Path], None]) -> Path:
        """The folder of the packages. Raises SetupError if it is missing, incomplete or damaged."""
        if not self.has(goods):
            what = {"wheels": "Python", "debs": "Debian"}[goods.kind]
            raise SetupError(
                f"the bundle {self.folder} lacks the {what} packages of {goods.name} as needed here",
                AGAIN,
            )
        self.check(goods.folder)
        return self.folder / goods.folder

    def check(self, below: str) -> None:
        """Compares the file, or all in the folder, with the manifest. Raises SetupError if they differ."""
        listed = {
            name: entry
            for name, entry in self.manifest["files"].items()
            if name == below or name.startswith(f"{below}/")
        }
        top = self.folder / below
        present = [path for path in top.rglob("*") if path.is_file()] if top.is_dir() else []
        extra = {str(path.relative_to(self.folder)) for path in present} - set(listed)
        for name, entry in sorted(listed.items()):
            path = self.folder / name
            wrong = "is missing" if not path.is_file() else "" if describe(path) == entry else "is damaged"
            if wrong:
                raise SetupError(f"in the bundle {self.folder}, {name} {wrong}", f"copy it again, or {AGAIN}")
        if extra:
            raise SetupError(
                f"in the bundle {self.folder}, {min(extra)} does not belong there", "remove that file"
            )

    def load_base(self, client: docker.DockerClient, reference: str, step: Step) -> None:
        """Loads the base image, unless the engine has exactly this one."""
        wanted = self.manifest["base"]
        try:
            there = identity_of(client, reference) == wanted["identity"]
        except ImageNotFound:
            there = False
        if there:
            step.note = f"{reference} is there"
            return
        step.detail(f"checking {BASE}")
        self.check(BASE)
        step.detail(f"loading {BASE}")
        try:
            with (self.folder / BASE).open("rb") as file:
                client.images.load(file)
        except DockerException as error:
            raise SetupError(
                f"Docker could not load the bundle's base image: {error}", "see that its disk is not full"
            ) from error
        step.note = f"{reference} from the bundle, {len(wanted['packages'])} Debian packages"


def describe(path: Path) -> list[Any]:
    """Length in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def open_bundle(folder: Path, wanted: Wanted) -> Bundle:
    """The bundle in `folder`. Raises SetupError if there is none, or if it is damaged or doesn't fit."""
    folder = folder.absolute()
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise SetupError(
            f"there is no bundle in {folder} (it has no {MANIFEST})",
            "set BUNDLE to the folder that `make bundle` wrote, and copy all of it",
        ) from error
    except (OSError, ValueError) as error:
        raise SetupError(f"{folder / MANIFEST} can't be read: {error}", "copy the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SetupError(f"the bundle {folder} has another format than this version reads", AGAIN)
    made = manifest["for"]
    for key, what, have in (
        ("tag", "gpuspawner", wanted.tag),
        ("machine", "machines of the kind", wanted.machine),
        ("jupyterhub", "JupyterHub", wanted.jupyterhub),
    ):
        if made[key] != have:
            raise SetupError(
                f"the bundle {folder} is for {what} {made[key]}, and here it is {have}",
                f"use one that was made for {have}, or {AGAIN}",
            )
    if made["cuda"] != wanted.cuda:
        raise SetupError(
            f"the bundle {folder} has the {'CUDA' if made['cuda'] else 'CPU'} builds, and this machine "
            f"needs the {'CUDA' if wanted.cuda else 'CPU'} builds",
            f"set CPU={'0' if made['cuda'] else '1'} to use it anyway, or make one with "
            f"`make bundle CPU={'0' if wanted.cuda else '1'}`",
        )
    return Bundle(folder, manifest)
