"""What is said on the unix socket about moves of homes between machines."""

from __future__ import annotations

from pydantic import Field

from .messages import Message, Text, TextOrEmpty, Time
from .rules import Authored


class HomeMoveOrder(Authored):
    """The body of `POST /homes/moves`."""

    volume: Text = Field(description="the name of the home's volume")
    user: Text = Field(description="the user, as in the volume's name")
    machine: Text = Field(description="the machine that shall have it")
    copied: bool = Field(False, description="whether the files are on that machine already")


class HomeMoveDocument(Message):
    """A move; `state` is copying, comparing, done or failed.

    `size_bytes` is how much was copied, or compared, so far.
    """

    id: Text
    volume: Text
    source: Text
    machine: Text
    began_at: Time
    state: Text
    size_bytes: int
    message: TextOrEmpty


class HomeMovesDocument(Message):
    """The answer to `GET /homes/moves`: those since the broker began, the oldest first."""

    moves: tuple[HomeMoveDocument, ...]
