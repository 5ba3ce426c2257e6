"""What users read about turns: while a cell waits for a GPU, and when a program can't leave it. Pure."""

from __future__ import annotations

from ...core.units import format_bytes, ordinal
from .snapshot import TurnView
from .turn_waits import HeldUp
from .turns import Turn

HELD_UP = {
    HeldUp.NO_GPU: "No GPU can serve it now: an admin has drained them, or they are out of service.",
    HeldUp.PROGRAM: "Somebody's program can't be paused or moved, so it keeps the GPU until it ends.",
    HeldUp.KERNEL: (
        "Somebody's turn is over, but a step of theirs still runs on the GPU and can't be interrupted: your "
        "turn comes when it ends."
    ),
}
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
    because = "" if view.held_up is None else f" {HELD_UP[view.held_up]}"
    return f"Waiting for a GPU: {ordinal(view.position)} in line{about}.{because} Your variables are safe."


def staying_sentence(obstacle: str, can_pause: bool, warn_seconds: float | None) -> str:
    """The notice about a program whose memory can't leave the GPU, and what becomes of it.

    `obstacle` says why; `warn_seconds`: so soon it may end; None: it is never ended.
    """
    if warn_seconds is not None:
        minutes = max(1, round(warn_seconds / 60))
        soon = f"{minutes} minute{'s' * (minutes > 1)}"
        return f"{obstacle} If others can't compute because of it, it ends in {soon}: save your work."
    if can_pause:
        return f"{obstacle} Between your turns it is paused, and its memory stays on the GPU."
    return f"{obstacle} It can't be paused either, so nobody else can use this GPU until it ends."


def _about(seconds: float) -> str:
    if seconds >= 90:
        return f"about {round(seconds / 60)} min"
    return f"about {max(1, round(seconds / _STEP_SECONDS)) * _STEP_SECONDS} s"
