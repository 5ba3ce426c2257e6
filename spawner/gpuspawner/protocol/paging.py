"""Long lists in pages: a document has a page of its lists, and says where the next one begins."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from .messages import Message

DEFAULT_LIMIT = 500
"""So many entries are in one document if the sender doesn't say."""
MOST = 1000
"""So many at most, whatever the sender says."""


class Listed(Message):
    """A document with lists that may be long: one page of them, all lists together."""

    next: str | None = Field(
        default=None, description="send it as `cursor` to get the next page; null: this is the last page"
    )

    def joined(self, following: Self) -> Self:
        """With the lists of the page that follows. Everything else is of the first page."""
        added = {
            name: (*getattr(self, name), *value)
            for name, value in following
            if isinstance(value, tuple) and isinstance(getattr(self, name), tuple)
        }
        return self.model_copy(update={**added, "next": following.next})
