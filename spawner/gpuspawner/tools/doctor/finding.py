"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """`problem`: the main job, a server with a GPU, can't run. `note`: something less can't."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` says what to do and is empty where all is well."""

    level: Level
    subject: str
    text: str
    remedy: str = ""
