"""How a page looks and whether everybody can use it: light and dark, wide and narrow, axe-core, pictures.

`check_looks(page, "name")` is one call for a page: it checks four looks, and with SCREENSHOTS=1 it writes a
picture of each to docs/images. The rules are axe-core's for WCAG 2.1 A and AA, and its best practices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FloatRect, Page

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "images"
SETTLE_MS = 400
"""Colours fade in, and a picture waits for it; axe-core would measure them in between."""
_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")
_OF_THE_HUB = (
    # JupyterHub 6.1's own navigation: an entry that opens a menu has "#" as its address.
    "nav.navbar",
    # Its dialog for errors, which no page shows as it is.
    "#error-dialog",
)


@dataclass(frozen=True, slots=True)
class Look:
    """One way to see a page. `width` and `height` are CSS pixels."""

    scheme: Literal["light", "dark"]
    width: int
    height: int

    @property
    def suffix(self) -> str:
        """What a picture's name has at its end: "", "-dark", "-phone", "-phone-dark"."""
        return ("-phone" if self.width < 600 else "") + ("-dark" if self.scheme == "dark" else "")


LOOKS = (
    Look("light", 1280, 800),
    Look("dark", 1280, 800),
    Look("light", 390, 844),
    Look("dark", 390, 844),
)


@contextmanager
def seen_as(page: Page, look: Look) -> Iterator[None]:
    """The page in this look inside the block, without loading it again; then as it was."""
    before = page.viewport_size
    page.set_viewport_size({"width": look.width, "height": look.height})
    page.emulate_media(color_scheme=look.scheme)
    page.wait_for_timeout(SETTLE_MS)
    try:
        yield
    finally:
        page.emulate_media(color_scheme="light")
        if before is not None:
            page.set_viewport_size(before)


def check_looks(
    page: Page, name: str = "", *, looks: Sequence[Look] = LOOKS, clip: str = "", ignore: Sequence[str] = ()
) -> None:
    """Asserts for each look: no serious finding of axe-core, and nothing that must be scrolled sideways.

    `name`: the picture's, without ending; empty for none. `clip`: the selector of the last element that the
    picture shows; empty for the whole page. `ignore`: selectors that axe-core leaves out: what is not ours.
    """
    for look in looks:
        with seen_as(page, look):
            findings = serious_findings(page, ignore)
            assert findings == [], f"{name or page.url} {look}:\n" + "\n".join(findings)
            assert overflow_pixels(page) <= 0, f"{name or page.url} {look} is wider than the window"
            if name:
                take_picture(page, name + look.suffix, clip)


def serious_findings(page: Page, ignore: Sequence[str] = ()) -> list[str]:
    """What axe-core finds serious or critical, a line each: rule, element, what to change."""
    context: dict[str, Any] = {"exclude": [[selector] for selector in (*_OF_THE_HUB, *ignore)]}
    options = {"resultTypes": ["violations"], "runOnly": {"type": "tag", "values": list(_RULES)}}
    found = Axe().run(page, context, options).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node.get('failureSummary', '')}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def overflow_pixels(page: Page) -> int:
    """By how much the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def take_picture(page: Page, name: str, clip: str = "") -> None:
    """Writes docs/images/<name>.png if SCREENSHOTS is set: the whole page, or down to the end of `clip`."""
    if not os.environ.get("SCREENSHOTS"):
        return
    page.wait_for_timeout(SETTLE_MS)
    path, before = PICTURES / f"{name}.png", page.viewport_size
    height = int(page.evaluate("document.documentElement.scrollHeight"))
    if before is not None:  # as high as the page: what sticks to the window's edge is then where it belongs
        page.set_viewport_size({"width": before["width"], "height": max(height, before["height"])})
    if clip:
        page.screenshot(path=path, clip=_down_to(page, clip))
    else:
        page.screenshot(path=path)
    if before is not None:
        page.set_viewport_size(before)


def take_picture_without_script(page: Page, name: str) -> None:
    """The same for a page in a browser without JavaScript: the whole page."""
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def _down_to(page: Page, selector: str) -> FloatRect:
    """The page's area from its top to a little below the element."""
    bottom = page.evaluate(
        "(selector) => document.querySelector(selector).getBoundingClientRect().bottom + window.scrollY",
        selector,
    )
    width = page.evaluate("document.documentElement.clientWidth")
    return {"x": 0, "y": 0, "width": width, "height": bottom + 24}
