"""The progress of an image's pull, from the events that Docker sends. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]
"""One line of Docker's answer to `POST /images/create`."""
_HERE_ALREADY = "Already exists"
_DONE = frozenset({_HERE_ALREADY, "Pull complete"})
_LOADED = frozenset({"Verifying Checksum", "Download complete", "Extracting"})
_MEGABYTE = 1_000_000


@dataclass(slots=True)
class _Layer:
    status: str = ""
    current_bytes: int = 0
    total_bytes: int | None = None


class Layers:
    """The progress of a pull, from Docker's events."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def feed(self, event: Event) -> None:
        """Adds one event. Events without a layer are ignored."""
        name, status = event.get("id"), str(event.get("status") or "")
        if not isinstance(name, str) or status.startswith("Pulling from"):
            return
        layer = self._layers.setdefault(name, _Layer())
        layer.status = status
        detail = event.get("progressDetail") or {}
        current, total = detail.get("current"), detail.get("total")
        if status == "Downloading" and isinstance(current, int):
            layer.current_bytes = current
            if isinstance(total, int) and total > 0:
                layer.total_bytes = total
        elif status in _LOADED and layer.total_bytes is not None:
            layer.current_bytes = layer.total_bytes

    def __str__(self) -> str:
        """ "3 of 7 layers, 120 of 840 MB, 14 %"; sizes appear when Docker has sent those of all layers."""
        if not self._layers:
            return ""
        done = sum(layer.status in _DONE for layer in self._layers.values())
        text = f"{done} of {len(self._layers)} layers"
        current, total = self._bytes()
        if total is None:
            return f"{text}, {_megabytes(current)} MB so far"
        if not total:
            return text
        return f"{text}, {_megabytes(current)} of {_megabytes(total)} MB, {100 * current // total} %"

    @property
    def percent(self) -> int | None:
        """How much of the bytes to download is here (0-100); None until Docker has sent all sizes."""
        current, total = self._bytes()
        return min(100, max(0, 100 * current // total)) if total else None

    def _bytes(self) -> tuple[int, int | None]:
        """The bytes that are here, and those to download in all; None if a layer's size isn't known yet."""
        coming = [layer for layer in self._layers.values() if layer.status != _HERE_ALREADY]
        # A small layer may be complete before Docker sends its size: it isn't counted.
        sized = [layer for layer in coming if layer.total_bytes is not None]
        current = sum(layer.current_bytes for layer in sized)
        if any(layer.total_bytes is None and layer.status not in _DONE | _LOADED for layer in coming):
            return current, None
        return current, sum(layer.total_bytes or 0 for layer in sized)


class PullNews(str):
    """A sentence about a pull, with how much of its bytes is here (0-100; None: not known)."""

    percent: int | None

    def __new__(cls, text: str, percent: int | None = None) -> PullNews:
        """The sentence as text that carries its number."""
        news = super().__new__(cls, text)
        news.percent = percent
        return news


def _megabytes(size_bytes: int) -> str:
    size = size_bytes / _MEGABYTE
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"
