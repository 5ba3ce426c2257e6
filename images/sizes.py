"""The layers of the lab images as a table: how large each is, and why it is there.

Usage: python -m images.sizes [--write] [NAME ...]    --write puts the table into docs/images.md
The reason of a layer is the comment above its instruction in the Dockerfile that makes it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.base import has
from images.build import connect
from images.table import IMAGES_DIR, Image, Table, read_table
from setup.steps import SetupError

PAGE = IMAGES_DIR.parent / "docs" / "images.md"
BEGIN, END = "<!-- sizes: written by python -m images.sizes --write -->", "<!-- end of sizes -->"
History = Callable[[str], list[dict[str, Any]]]
"""What the engine says of an image's layers (`docker history`), the newest first."""


@dataclass(frozen=True)
class Instruction:
    """One instruction that makes a layer: RUN with its command, or COPY with where it puts things."""

    word: str
    text: str
    reason: str
    source: str

    def made(self, created_by: str) -> bool:
        """Whether the engine's word for a layer fits this instruction."""
        if self.word == "COPY":
            return "#(nop) COPY" in created_by and created_by.split(" in ")[-1].strip() == self.text
        return "#(nop)" not in created_by and self.text in " ".join(created_by.split())


@dataclass(frozen=True)
class Layer:
    """One row: bytes, which image's layer it is, and why it is there."""

    size_bytes: int
    source: str
    reason: str


def instructions(dockerfile: str, source: str) -> list[Instruction]:
    """The layers that the last stage of a Dockerfile makes, in order, each with the comment above it."""
    found: list[Instruction] = []
    reason: list[str] = []
    joined = re.sub(r"\\\n", " ", dockerfile)
    for line in joined.splitlines():
        word, _, rest = line.partition(" ")
        if word == "#":
            reason.append(rest)
            continue
        if word == "FROM":
            found = []
        elif word in ("RUN", "COPY"):
            text = rest.split()[-1] if word == "COPY" else " ".join(rest.split())
            found.append(Instruction(word, text, " ".join(reason), source))
        reason = []
    return found


def wanted_of(image: Image, table: Table) -> list[Instruction]:
    """The layers above the operating system that the Dockerfiles of an image and its parents make."""
    wanted: list[Instruction] = []
    for parent in table.with_parents([image.name]):
        if parent.packages:  # a layer that images/debs.py makes, below those of the Dockerfile
            purposes = zip(parent.packages, parent.packages_for, strict=True)
            reason = f"Debian packages: {', '.join(f'{name} ({purpose})' for name, purpose in purposes)}."
            wanted.append(Instruction("RUN", "install /debs/*.deb", reason, parent.name))
        wanted += instructions((parent.folder / "Dockerfile").read_text(), parent.name)
    return wanted + instructions((IMAGES_DIR / "starters.Dockerfile").read_text(), "starters")


def layers_of(image: Image, table: Table, history: History) -> list[Layer]:
    """The layers of an image that hold anything, the lowest first; the operating system is one layer.

    Raises SetupError if the image was not built from the Dockerfiles as they are.
    """
    base = history(table.base.reference)
    above = list(reversed(history(image.reference)))[len(base) :]
    made = [entry for entry in above if re.search(r"#\(nop\) COPY|^(?!.*#\(nop\))", entry["CreatedBy"])]
    wanted = wanted_of(image, table)
    fits = len(made) == len(wanted) and all(
        instruction.made(entry["CreatedBy"]) for instruction, entry in zip(wanted, made, strict=True)
    )
    if not fits:
        raise SetupError(
            f"{image.reference} was not built from the Dockerfiles as they are now", "run `make images`"
        )
    system = f"The operating system with {', '.join(table.base.packages)}."
    rows = [
        Layer(entry["Size"], instruction.source, instruction.reason)
        for instruction, entry in zip(wanted, made, strict=True)
        if entry["Size"]
    ]
    return [Layer(sum(entry["Size"] for entry in base), "base", system), *rows]


def as_markdown(image: Image, layers: list[Layer], build: str) -> str:
    """The table of one image; MB are a million bytes, as Docker counts."""
    total = sum(layer.size_bytes for layer in layers)
    lines = [f"### {image.name}{build}: {_mb(total)}", "", "| layer of | size | why it is there |"]
    lines += ["|---|---|---|"]
    lines += [f"| {layer.source} | {_mb(layer.size_bytes)} | {layer.reason} |" for layer in layers]
    return "\n".join(lines) + "\n"


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def main(arguments: list[str]) -> int:
    """Prints or writes the tables; returns the exit status."""
    names = [word for word in arguments if word != "--write"]
    table, tables = read_table(), []
    try:
        client = connect()
        for image in table.images:
            if names and image.name not in names:
                continue
            if not has(client, image.reference):
                tables.append(f"### {image.name}\n\nNot built on the machine of this table.\n")
                continue
            cuda = client.images.get(image.reference).labels.get("gpuspawner.cuda")
            build = ", CPU build" if image.cuda and not cuda else ""
            layers = layers_of(image, table, lambda name: [*client.images.get(name).history()])
            tables.append(as_markdown(image, layers, build))
    except SetupError as error:
        print(error.block(), file=sys.stderr)
        return 1
    text = "\n".join(tables)
    if "--write" in arguments:
        _write(PAGE, text)
    else:
        print(text)
    return 0


def _write(page: Path, text: str) -> None:
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
