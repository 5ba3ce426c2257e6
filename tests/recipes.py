"""The recipes of docs/plug-in.md or another page: the blocks below a heading, with a test's addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "plug-in.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(heading: str, kind: str, page: Path = PAGE) -> list[str]:
    """The blocks of one kind ("python", "yaml" …) in the section with this heading."""
    sections = dict(
        (part.partition("\n")[0].strip(), part)
        for part in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    return [text for found, text in _BLOCK.findall(sections[heading]) if found == kind]


def adapted(text: str, instead: Mapping[str, str]) -> str:
    """The block with other addresses and paths. Each that is named must be there: else the page changed."""
    for example, real in instead.items():
        assert example in text, f"{PAGE.name} has no {example!r} any more"
        text = text.replace(example, real)
    return text
