"""Cuts lists that may be long into pages, each list after the other. Pure.

Which entries are on a page follows from their keys, so that an entry that exists all the time is on exactly
one page, whatever comes, goes or changes its place meanwhile. Within a page, entries keep their order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .query import Page, bad_cursor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """A list of a document: its entries, and the key by which each is found again."""

    name: str
    entries: Sequence[T]
    key: Callable[[T], str]


@dataclass(frozen=True, slots=True)
class Cut:
    """One page: the entries of each list, and the cursor of the next page; None: it is the last."""

    lists: Mapping[str, tuple[Any, ...]]
    next: str | None


def cut(parts: Iterable[Part[Any]], page: Page) -> Cut:
    """The page of these lists, which count together. Raises BadOption for a cursor that is none of ours."""
    parts = tuple(parts)
    begun, _, after = page.cursor.partition(":")
    names = [part.name for part in parts]
    if page.cursor and begun not in names:
        raise bad_cursor()
    left, following = page.limit, page.cursor
    lists: dict[str, tuple[Any, ...]] = {}
    for number, part in enumerate(parts):
        if page.cursor and number < names.index(begun):
            lists[part.name] = ()
            continue
        open_ = [
            each for each in part.entries if not page.cursor or part.name != begun or part.key(each) > after
        ]
        taken = _smallest(open_, part.key, left)
        lists[part.name] = tuple(taken)
        left -= len(taken)
        if taken:
            following = f"{part.name}:{max(map(part.key, taken))}"
        if len(taken) < len(open_):
            return Cut({**dict.fromkeys(names, ()), **lists}, following)
    return Cut(lists, None)


def _smallest(entries: list[T], key: Callable[[T], str], most: int) -> list[T]:
    """The entries with the `most` smallest keys, in their own order."""
    if len(entries) <= most:
        return entries
    chosen = set(heapq.nsmallest(most, map(key, entries)))
    return [each for each in entries if key(each) in chosen]
