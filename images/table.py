"""The table of images as values: what `images.toml` says, checked."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGES_DIR = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Image:
    """One lab image. Versions are strings as NVIDIA writes them; "" where there is no need.

    `packages` are Debian's, `packages_for` says what each is for. `source` names Python packages of its
    lock that are published as source only, `elsewhere` those that are on NVIDIA's own index and not on PyPI.
    """

    name: str
    title: str
    parent: str
    tag: str
    cuda: str
    min_driver: str
    needs_gpu: bool
    lock: str
    cpu_lock: str
    packages: tuple[str, ...] = ()
    packages_for: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """What Docker calls it: repository and tag."""
        return f"gpuspawner/{self.name}:{self.tag}"

    @property
    def core(self) -> str:
        """The same without the starters: what child images stand on."""
        return f"{self.reference}-core"

    @property
    def system(self) -> str:
        """Its parent with its Debian packages, which its Dockerfile begins with."""
        return f"{self.reference}-system"

    @property
    def folder(self) -> Path:
        """Where its Dockerfile lies."""
        return IMAGES_DIR / self.name


@dataclass(frozen=True, kw_only=True)
class Base:
    """The operating system below all labs."""

    tag: str
    pull: str
    packages: tuple[str, ...]
    digest: str = ""

    @property
    def reference(self) -> str:
        """What Docker calls it: repository and tag."""
        return f"gpuspawner/base:{self.tag}"

    @property
    def source(self) -> str:
        """What is pulled: by digest where one is locked, else by tag."""
        host, slash, name = self.pull.rpartition("/")
        return f"{host}{slash}{name.split(':')[0]}@{self.digest}" if self.digest else self.pull

    @property
    def bootstrapped(self) -> str:
        """What stands in for `source` where no registry answers."""
        return f"{self.reference}-system"


@dataclass(frozen=True, kw_only=True)
class Table:
    """All images; each stands behind the one that it is built from."""

    base: Base
    images: tuple[Image, ...]
    default: str

    @property
    def default_image(self) -> Image:
        """What the hub starts if nobody says otherwise."""
        return next(image for image in self.images if image.name == self.default)

    def with_parents(self, names: list[str]) -> tuple[Image, ...]:
        """The named images and all that they stand on, in build order; all images if none is named.

        Raises KeyError with the first name that is not in the table.
        """
        known = {image.name: image for image in self.images}
        wanted: set[str] = set()
        for name in names or list(known):
            while name != "base":
                wanted.add(name)
                name = known[name].parent
        return tuple(image for image in self.images if image.name in wanted)


def read_table(path: Path = IMAGES_DIR / "images.toml") -> Table:
    """The table in `path`. Raises ValueError naming image and key for what can't be built."""
    with path.open("rb") as file:
        raw = tomllib.load(file)
    images: list[Image] = []
    for item in raw["image"]:
        parents = ["base", *(image.name for image in images)]
        if item["from"] not in parents:
            raise ValueError(f"images.toml: {item['name']!r} is from {item['from']!r}: name one above it")
        if item["name"] in parents:
            raise ValueError(f"images.toml: {item['name']!r} is there twice: give each image its own name")
        images.append(_image(item, raw["tag"]))
    if raw["default"] not in {image.name for image in images}:
        raise ValueError(f"images.toml: default is {raw['default']!r}: name one of the images")
    return Table(base=_base(raw, path.with_name("base.lock")), images=tuple(images), default=raw["default"])


def pins_of(lock: Path) -> dict[str, str]:
    """Names and versions in a lock of Python packages."""
    return {(parts := line.split("==", 1))[0]: parts[1].lstrip("=") for line in _lines(lock)}


def _base(raw: dict[str, Any], lock: Path) -> Base:
    """The base with the digest that `make lock` wrote for what is pulled, if it did."""
    pull = raw["base"]["pull"]
    locked = dict(line.split() for line in _lines(lock))
    packages = tuple(raw["base"]["packages"])
    return Base(tag=raw["tag"], pull=pull, packages=packages, digest=locked.get(pull, ""))


def _image(item: dict[str, Any], tag: str) -> Image:
    return Image(
        name=item["name"],
        title=item["title"],
        parent=item["from"],
        tag=tag,
        cuda=item["cuda"],
        min_driver=item["min_driver"],
        needs_gpu=item["needs_gpu"],
        lock=item["lock"],
        cpu_lock=item.get("cpu_lock", ""),
        packages=tuple(item.get("packages", {})),
        packages_for=tuple(item.get("packages", {}).values()),
        source=tuple(item.get("source", ())),
        elsewhere=tuple(item.get("elsewhere", ())),
    )


def _lines(path: Path) -> list[str]:
    """The lines of a lock without its comments; none if there is no such file."""
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines() if line and not line.startswith("#")]
