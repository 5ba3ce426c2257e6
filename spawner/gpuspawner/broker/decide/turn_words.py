"""What a user reads about a turn while a cell waits for a GPU. Pure."""

from __future__ import annotations

from ...core.units import format_bytes, ordinal
from .snapshot import TurnView
from .turns import Turn

_STEP_SECONDS = 5
"""Waits are told in such steps: an estimate is no better, and the line doesn't change all the time."""


def waiting_sentence(view: TurnView) -> str:
    """The line below a cell that waits: its place and about how long; "" if it doesn't wait."""
    about = "" if view.wait_seconds is None else f", {_about(view.wait_seconds)}"
    if view.moves and view.turn is Turn.ASLEEP and view.memory_bytes:
        size = format_bytes(view.memory_bytes)
        return f"Your GPU memory ({size}) is coming back to a GPU{about}. Your variables are safe."
    if view.position is None:
        return ""
    return f"Waiting for a GPU: {ordinal(view.position)} in line{about}. Your variables are safe."


def _about(seconds: float) -> str:
    if seconds >= 90:
        return f"about {round(seconds / 60)} min"
    return f"about {max(1, round(seconds / _STEP_SECONDS)) * _STEP_SECONDS} s"
