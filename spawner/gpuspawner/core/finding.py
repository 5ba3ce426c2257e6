"""One line of what `gpuspawner doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """`problem`: servers with a GPU can't run. `note`: something less important doesn't work."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` says what to do; it is empty if all is well."""

    level: Level
    subject: str
    text: str
    remedy: str = ""
