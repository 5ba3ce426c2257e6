"""Frozen dataclasses that are keys again and again: their hash is computed once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


class HashedOnce:
    """The base of a frozen dataclass with slots. A copy or a pickled value computes its hash anew."""

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            value: Any = self
            found = hash(tuple(getattr(value, each.name) for each in fields(value)))
            object.__setattr__(self, "_hash", found)
            return found
