"""The table of images as values: what `images.toml` says, checked."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

IMAGES_DIR = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Image:
    """One lab image. Versions are strings as NVIDIA writes them; "" where there is no need."""

    name: str
    title: str
    parent: str
    tag: str
    cuda: str
    min_driver: str
    needs_gpu: bool
    lock: str
    cpu_lock: str

    @property
    def reference(self) -> str:
        """What Docker calls it: repository and tag."""
        return f"gpuspawner/{self.name}:{self.tag}"

    @property
    def core(self) -> str:
        """The same without the starters: what child images stand on."""
        return f"{self.reference}-core"

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

    @property
    def reference(self) -> str:
        """What Docker calls it: repository and tag."""
        return f"gpuspawner/base:{self.tag}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """All images; each stands behind the one that it is built from."""

    base: Base
    images: tuple[Image, ...]

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
    tag = raw["tag"]
    base = Base(tag=tag, pull=raw["base"]["pull"], packages=tuple(raw["base"]["packages"]))
    images: list[Image] = []
    for item in raw["image"]:
        parents = ["base", *(image.name for image in images)]
        if item["from"] not in parents:
            raise ValueError(f"images.toml: {item['name']!r} is from {item['from']!r}: name one above it")
        if item["name"] in parents:
            raise ValueError(f"images.toml: {item['name']!r} is there twice: give each image its own name")
        images.append(
            Image(
                name=item["name"],
                title=item["title"],
                parent=item["from"],
                tag=tag,
                cuda=item["cuda"],
                min_driver=item["min_driver"],
                needs_gpu=item["needs_gpu"],
                lock=item["lock"],
                cpu_lock=item.get("cpu_lock", ""),
            )
        )
    return Table(base=base, images=tuple(images))
