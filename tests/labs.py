"""The lab images as tests see them: a child image reruns its parents' tests."""

from __future__ import annotations

from images.table import Image, read_table

TABLE = read_table()


def offspring(name: str) -> list[Image]:
    """The image of this name, and all that stand on it."""
    return [
        image
        for image in TABLE.images
        if name in {parent.name for parent in TABLE.with_parents([image.name])}
    ]
