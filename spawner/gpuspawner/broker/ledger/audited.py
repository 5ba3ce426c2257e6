"""The audit log as rows: who asked to change what, and the result; plain functions on a connection."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from .schema import writes


class Result(StrEnum):
    """What became of a write. BEGUN without an end: the broker ended meanwhile, and nobody knows."""

    BEGUN = "begun"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Write:
    """One change that somebody asked for.

    `via` is the way it came: "page", "api" or "socket" (hub and command line). `action` names it, `subject`
    is whom or what it concerns ("group:cs231n", "user:anna", "session:lab"), `groups` the hub groups that it
    concerns, for those who may see only theirs. `document` has its details as JSON values.
    `request_id` is the sender's name for the request: a repetition gets `status` and `answer` again.
    """

    id: str
    at: datetime
    author: str
    via: str
    action: str
    subject: str
    groups: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    request_id: str | None = None
    result: Result = Result.BEGUN
    message: str = ""
    ended_at: datetime | None = None
    status: int | None = None
    answer: str | None = None


_FIELDS = tuple(Write.__dataclass_fields__)
_RESULT = ("ended_at", "result", "message", "status", "answer", "request_id")
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def write(connection: sa.Connection, items: Iterable[Write]) -> None:
    """Adds them; one that is there gets its result."""
    for item in items:
        values = {name: getattr(item, name) for name in _FIELDS}
        values |= {
            "groups": json.dumps(item.groups),
            "document": json.dumps(item.document),
            "result": item.result.value,
        }
        statement = _INSERTS[connection.dialect.name](writes).values(values)
        changes = {name: statement.excluded[name] for name in _RESULT}
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changes))


@dataclass(frozen=True, slots=True)
class Search:
    """Which writes are read: the newest `most` before number `before`; of one author or action, if given.

    `groups` None means all; otherwise only writes that concern one of these groups.
    """

    most: int = 50
    before: int | None = None
    author: str | None = None
    action: str | None = None
    groups: Collection[str] | None = None

    def covers(self, groups: Iterable[str]) -> bool:
        """Whether a write that concerns these groups may be read."""
        return self.groups is None or not set(self.groups).isdisjoint(groups)


def read(connection: sa.Connection, search: Search) -> tuple[tuple[int, Write], ...]:
    """The writes with their numbers, the newest first."""
    query = sa.select(writes).order_by(writes.c.number.desc())
    if search.before is not None:
        query = query.where(writes.c.number < search.before)
    if search.author is not None:
        query = query.where(writes.c.author == search.author)
    if search.action is not None:
        query = query.where(writes.c.action == search.action)
    if search.groups is not None:
        # SQL finds candidates ("Lab" has "lab" too), and the groups themselves decide.
        named = [writes.c.groups.contains(json.dumps(group), autoescape=True) for group in search.groups]
        query = query.where(sa.or_(sa.false(), *named))
    rows = connection.execute(query.limit(search.most)).mappings()
    found = ((row["number"], _write(row)) for row in rows)
    return tuple(each for each in found if search.covers(each[1].groups))


def by_request(connection: sa.Connection, author: str, request_id: str) -> Write | None:
    """The author's write with this request id."""
    query = sa.select(writes).where(writes.c.author == author, writes.c.request_id == request_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else _write(row)


def by_id(connection: sa.Connection, write_id: str) -> Write | None:
    """The write with this id."""
    row = connection.execute(sa.select(writes).where(writes.c.id == write_id)).mappings().first()
    return None if row is None else _write(row)


def _write(row: Any) -> Write:
    values = {name: row[name] for name in _FIELDS}
    values |= {
        "groups": tuple(json.loads(row["groups"])),
        "document": json.loads(row["document"]),
        "result": Result(row["result"]),
    }
    return Write(**values)
