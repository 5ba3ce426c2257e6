"""Sorted, filtered and cut into pages on the server: a table never lists everything at once. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

R = TypeVar("R")

ROWS = 50
"""Rows on one page."""
_MOST_FILTER = 100
"""Characters of a filter that count."""


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """A column: its name in addresses, its heading, and what its rows are sorted by; None sorts last."""

    key: str
    title: str
    value: Callable[[R], Any]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the reader of a table asked for; `page` counts from 1."""

    sort: str = ""
    descending: bool = False
    page: int = 1
    search: str = ""

    def query(self, **changes: Any) -> str:
        """The address's query of a table like this with some changes; "?" if nothing has to be said."""
        wish = replace(self, **changes)
        said = {
            "sort": wish.sort,
            "descending": "1" if wish.descending else "",
            "page": str(wish.page) if wish.page > 1 else "",
            "search": wish.search,
        }
        return "?" + urlencode({key: text for key, text in said.items() if text})


@dataclass(frozen=True, slots=True)
class Heading:
    """A column's heading as a link; `order` is aria-sort's value, "none" if it isn't sorted by this."""

    title: str
    href: str
    order: str


@dataclass(frozen=True, slots=True)
class Table(Generic[R]):
    """One page of a table. `first` and `last` count from 1; both are 0 if there is no row."""

    rows: tuple[R, ...]
    headings: tuple[Heading, ...]
    wish: Wish
    total: int
    first: int
    last: int
    pages: int

    @property
    def before(self) -> str:
        """The query of the page before; "" on the first."""
        return self.wish.query(page=self.wish.page - 1) if self.wish.page > 1 else ""

    @property
    def after(self) -> str:
        """The query of the next page; "" on the last."""
        return self.wish.query(page=self.wish.page + 1) if self.wish.page < self.pages else ""


def wish_of(arguments: Mapping[str, str]) -> Wish:
    """The wish in an address's query; what can't be read is left out."""
    page = arguments.get("page", "")
    return Wish(
        sort=arguments.get("sort", ""),
        descending=arguments.get("descending", "") == "1",
        page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 7 else 1,
        search=arguments.get("search", "")[:_MOST_FILTER].strip(),
    )


def make_table(
    rows: Iterable[R],
    columns: Sequence[Column[R]],
    wish: Wish,
    *,
    words: Callable[[R], str] | None = None,
    size: int = ROWS,
) -> Table[R]:
    """The wished page of `rows`; without a sort that is known, in the order in which they come.

    `words` is the text of a row in which `wish.search` is looked for, in upper or lower case.
    """
    sought = wish.search.casefold()
    found = [row for row in rows if not sought or (words is not None and sought in words(row).casefold())]
    pages = max(1, -(-len(found) // size))
    page = min(wish.page, pages)
    column = next((each for each in columns if each.key == wish.sort), None)
    wish = Wish(column.key if column else "", wish.descending and column is not None, page, wish.search)
    start, end = (page - 1) * size, min(page * size, len(found))
    shown = found[start:end] if column is None else _sorted(found, column, wish.descending, end)[start:]
    return Table(
        rows=tuple(shown),
        headings=tuple(_heading(each, wish) for each in columns),
        wish=wish,
        total=len(found),
        first=start + 1 if found else 0,
        last=end,
        pages=pages,
    )


@total_ordering
@dataclass(frozen=True, slots=True)
class _Backwards:
    """Sorts the other way round."""

    value: Any

    def __lt__(self, other: _Backwards) -> bool:
        return bool(other.value < self.value)


def _sorted(rows: Sequence[R], column: Column[R], descending: bool, most: int) -> list[R]:
    """The first `most` rows in this order: of thousands only a page is needed."""

    def key(row: R) -> tuple[bool, Any]:
        value = column.value(row)
        if isinstance(value, str):
            value = value.casefold()
        return value is None, 0 if value is None else _Backwards(value) if descending else value

    return heapq.nsmallest(most, rows, key=key)


def _heading(column: Column[Any], wish: Wish) -> Heading:
    here = column.key == wish.sort
    href = wish.query(sort=column.key, descending=here and not wish.descending, page=1)
    order = "none" if not here else "descending" if wish.descending else "ascending"
    return Heading(column.title, href, order)
