"""What somebody decided at run time, with author and reason: a quota, a grant, a session, an extension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class DecisionKind(StrEnum):
    """What was decided. Its subject: whom a quota or grant is for, a session's name, a lease's id.

    PROPERTIES are the limits in a hub group's own properties, as the hub last told them; its subject is the
    group.
    """

    QUOTA = "quota"
    GRANT = "grant"
    SESSION = "session"
    EXTENSION = "extension"
    PROPERTIES = "properties"


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of the ledger; later ones of the same kind and subject count before earlier ones.

    `document` holds JSON values: of a quota the keys that change (None takes a change back), of a grant
    `gpu_seconds`, of a session all its fields (None in place of the document cancels it), of an extension
    `seconds`.
    """

    at: datetime
    kind: DecisionKind
    subject: str
    document: Mapping[str, Any] | None
    author: str
    reason: str
