"""The service's pages and who sees which: the tabs at the top of each page. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..api.access import Viewer


@dataclass(frozen=True, slots=True)
class Tab:
    """One entry of the navigation; `here` if it is the page that is shown."""

    title: str
    href: str
    here: bool


@dataclass(frozen=True, slots=True)
class _Page:
    address: str
    title: str
    is_for: Callable[[Viewer], bool]


_PAGES = (
    _Page("", "My GPU", lambda viewer: viewer.owns),
    _Page("classes/", "Classes", lambda viewer: bool(viewer.read)),
    _Page("admin/", "Administration", lambda viewer: viewer.sees_all),
)
"""In the order in which they are shown."""


def navigation(viewer: Viewer, prefix: str, address: str) -> tuple[Tab, ...]:
    """The tabs for this viewer; `address` is the present page's, or is below it. One tab alone is none."""
    shown = [page for page in _PAGES if page.is_for(viewer)]
    if len(shown) < 2:
        return ()
    return tuple(
        Tab(page.title, f"{prefix}{page.address}", _is_below(page.address, address)) for page in shown
    )


def _is_below(page: str, address: str) -> bool:
    return address == page or (page != "" and address.startswith(page))
