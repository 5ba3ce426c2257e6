"""Where downloaded packages lie, in folders named after what is in them: the cache, or a bundle.

The cache is filled when something is missing. A bundle is all there is; see images/bundle.py.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images.table import IMAGES_DIR

CACHE = IMAGES_DIR.parent / ".cache"


@dataclass(frozen=True)
class Goods:
    """One folder of downloads: `kind` is "wheels" or "debs", `key` all that decides what must be in it."""

    kind: str
    name: str
    key: str

    @property
    def folder(self) -> str:
        """Its path below the stock."""
        return f"{self.kind}/{self.name}-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Stock:
    """The cache."""

    folder: Path

    def has(self, goods: Goods) -> bool:
        """Whether nothing must be downloaded for these."""
        return (self.folder / goods.folder).is_dir()

    def get(self, goods: Goods, fill: Callable[[Path], None]) -> Path:
        """The folder of the goods; `fill` downloads them into an empty one if they aren't there yet."""
        folder = self.folder / goods.folder
        if folder.is_dir():
            return folder
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        for old in folder.parent.glob(f"{goods.name}-*"):
            if re.fullmatch(rf"{re.escape(goods.name)}-[0-9a-f]{{12}}", old.name):
                shutil.rmtree(old, ignore_errors=True)
        partial.rename(folder)
        return folder
