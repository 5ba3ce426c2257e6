"""What the query of an address says: a time, a name, which page of a list. Raises BadOption otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tornado.web import RequestHandler

from ...core.errors import BadOption
from ...protocol.paging import DEFAULT_LIMIT, MOST

MOST_CURSOR = 4000
"""Characters: two names of 255, each of which may take six as JSON, and what is between them."""
_MOST_TEXT = 255
_MOST_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list: `limit` entries after `cursor`; "" is the list's begin."""

    limit: int = DEFAULT_LIMIT
    cursor: str = ""

    @property
    def before(self) -> int | None:
        """The number of a row before which the page begins, where rows are numbered. Raises BadOption."""
        if not self.cursor:
            return None
        if not (self.cursor.isascii() and self.cursor.isdigit() and len(self.cursor) <= _MOST_DIGITS):
            raise bad_cursor()
        return int(self.cursor)


def bad_cursor() -> BadOption:
    """What is sent isn't the `next` of an earlier answer."""
    return BadOption("cursor must be what the page before has as next; leave it out for the first page.")


def read_page(handler: RequestHandler) -> Page:
    """`?limit=&cursor=`."""
    text = handler.get_query_argument("limit", str(DEFAULT_LIMIT))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0
    if not 1 <= limit <= MOST:
        raise BadOption(f"limit must be a whole number from 1 to {MOST}.")
    cursor = handler.get_query_argument("cursor", "", strip=False)
    if len(cursor) > MOST_CURSOR:
        raise bad_cursor()
    return Page(limit, cursor)


def read_text(handler: RequestHandler, key: str) -> str | None:
    """A name that entries must have; None if the query has none."""
    text = handler.get_query_argument(key, "")
    if len(text) > _MOST_TEXT:
        raise BadOption(f"{key} must be text of up to {_MOST_TEXT} characters.")
    return text or None


def read_time(handler: RequestHandler, key: str) -> datetime | None:
    """A moment; None if the query has none."""
    text = handler.get_query_argument(key, None)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise BadOption(f'{key} must be a time with its zone, like "2026-10-12T00:00:00Z".')
    return at
