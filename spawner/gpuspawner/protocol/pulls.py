"""The messages about images: the pulls of a hub as it tells them, and what is on the machine."""

from __future__ import annotations

from pydantic import Field

from .messages import Count, Message, Text, TextOrEmpty


class PullMessage(Message):
    """A pull in progress. `percent` of its bytes is here; None while Docker hasn't told all sizes."""

    image: Text
    message: TextOrEmpty
    percent: int | None = Field(ge=0, le=100, description="a whole number from 0 to 100, or null")
    waiting: Count


class PullsMessage(Message):
    """The body of `POST /pulls`: all pulls of one process now; without news they soon count as over."""

    source: Text
    pulls: tuple[PullMessage, ...] = Field(max_length=1000, description="a list of pulls")


class ImageDocument(Message):
    """An image that servers can have. `size_bytes` None: it isn't on this machine, or isn't looked at yet."""

    image: str
    here: bool | None
    size_bytes: int | None
    pull: PullMessage | None


class ImagesDocument(Message):
    """The answer to `GET api/images`: the images of the settings, and all that are pulled now."""

    images: tuple[ImageDocument, ...]
