"""Readings of leases for the meters of open pages: written once, for all who see the lease."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..api.access import Viewer
from ..api.live import Live
from ..api.visible import Document
from .meters import reading


class Readings:
    """One a service. A reading is JSON text, so that a hundred pages need no hundred conversions."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._number = 0
        self._all: dict[str, tuple[Document, str]] = {}
        self._of_user: dict[str, list[str]] = {}

    def own(self, viewer: Viewer) -> Mapping[str, str]:
        """Those of the viewer's own leases, by lease id."""
        self._update()
        mine = (self._all[lease_id] for lease_id in self._of_user.get(viewer.name, ()))
        return {lease["id"]: text for lease, text in mine if viewer.is_mine(lease)}

    def seen_by(self, viewer: Viewer) -> Mapping[str, str]:
        """Those of all leases that the viewer may see, by lease id."""
        if not viewer.read:
            return self.own(viewer)
        self._update()
        return {lease_id: text for lease_id, (lease, text) in self._all.items() if viewer.sees(lease)}

    def of_group(self, group: str) -> Mapping[str, str]:
        """Those of the leases of a group's members, by lease id."""
        self._update()
        return {key: text for key, (lease, text) in self._all.items() if group in lease["groups"]}

    def _update(self) -> None:
        if self._number == self._live.seen.readings:
            return
        self._number = self._live.seen.readings
        self._all, self._of_user = {}, {}
        for lease in self._live.document["leases"]:
            if lease["state"] in ("running", "asleep"):
                self._all[lease["id"]] = (lease, json.dumps(reading(lease)))
                self._of_user.setdefault(lease["user"], []).append(lease["id"])
