"""The decisions that people made at run time, as rows; plain functions on a connection."""

from __future__ import annotations

import json
from collections.abc import Iterable

import sqlalchemy as sa

from ...core.decision import Decision, DecisionKind
from .schema import decisions


def write(connection: sa.Connection, items: Iterable[Decision]) -> None:
    """Adds them, in this order."""
    rows = [
        {
            "at": item.at,
            "kind": item.kind.value,
            "subject": item.subject,
            "document": None if item.document is None else json.dumps(item.document),
            "author": item.author,
            "reason": item.reason,
        }
        for item in items
    ]
    if rows:
        connection.execute(sa.insert(decisions), rows)


def read(connection: sa.Connection) -> tuple[Decision, ...]:
    """All of them, in the order in which they were made."""
    rows = connection.execute(sa.select(decisions).order_by(decisions.c.number)).mappings()
    return tuple(
        Decision(
            at=row["at"],
            kind=DecisionKind(row["kind"]),
            subject=row["subject"],
            document=None if row["document"] is None else json.loads(row["document"]),
            author=row["author"],
            reason=row["reason"],
        )
        for row in rows
    )
