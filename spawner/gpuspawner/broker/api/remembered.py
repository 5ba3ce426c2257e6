"""The status document, made again only where something changed since the last time.

At 1,000 devices and 5,000 leases the whole document takes half a second of CPU; few leases change at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

from ...protocol.messages import document
from ..decide.snapshot import Snapshot
from .documents import News, device_document, lease_document, status_document

Document = dict[str, Any]


class Remembered:
    """The documents of one kind of thing, by key; each is made again when what it is made from is another."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[object, Document]] = {}

    def all(self, items: Iterable[tuple[Hashable, object, Callable[[], Document]]]) -> list[Document]:
        """The documents of `items` in their order, each given as key, what it is made from, and how.

        Others are forgotten.
        """
        made = {}
        for key, source, make in items:
            before = self._made.get(key)
            made[key] = before if before is not None and before[0] == source else (source, make())
        self._made = made
        return [found for _, found in made.values()]


class StatusMemory:
    """Equal to `status_document` as plain values. Documents share their parts: nobody changes them."""

    def __init__(self) -> None:
        self._devices, self._leases = Remembered(), Remembered()

    def status(self, snapshot: Snapshot, simulated: bool, news: News) -> Document:
        """The whole status document."""
        rest = status_document(replace(snapshot, devices=(), leases=()), simulated, news)
        return {
            **document(rest),
            "devices": self._devices.all(_device_sources(snapshot, news)),
            "leases": self._leases.all(_lease_sources(snapshot, news)),
        }


Source = tuple[Hashable, object, Callable[[], Document]]


def _device_sources(snapshot: Snapshot, news: News) -> Iterable[Source]:
    for view in snapshot.devices:
        uuid = view.device.uuid
        turns = tuple(news.turns.get(lease.id) for lease in view.holders) if news.turns else ()
        source = (view, news.usage.get(uuid), news.blind.get(uuid), turns)
        yield uuid, source, lambda view=view: document(device_document(view, news))  # type: ignore[misc]


def _lease_sources(snapshot: Snapshot, news: News) -> Iterable[Source]:
    for lease in snapshot.leases:
        key = lease.id
        source = (
            lease, news.uses.get(key), news.deadline_of(key), news.turns.get(key), key in news.unknown
        )  # fmt: skip
        yield key, source, lambda lease=lease: document(lease_document(lease, news))  # type: ignore[misc]
