"""Selects the part of the broker's status that a viewer may see. Pure.

A viewer with `custom:gpu:read` sees everything. Anybody else sees the devices without their holders,
their own leases and their own places in the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

READ_SCOPE = "custom:gpu:read"
"""The hub scope that shows who holds what; granted by a role in `jupyterhub_config.py`."""

Document = dict[str, Any]


class BrokerView(Protocol):
    """What the pages need from the broker. All three methods answer from memory, at once."""

    def status(self) -> Document:
        """The whole status document: `simulated`, `devices`, `leases`, `queue`."""

    def tiers(self) -> Document:
        """The tiers with what is free of each."""

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """The person or service that asks: a name confirmed by the hub, and what it may see.

    `owns` is False for a service's token: a service called "anna" is not the user "anna". `hub`
    distinguishes two hubs of one broker, whose users may have equal names; None if there is one hub.
    """

    name: str
    sees_all: bool = False
    owns: bool = True
    hub: str | None = None

    def is_mine(self, entry: Mapping[str, Any]) -> bool:
        """Whether a lease or queue entry belongs to this viewer."""
        if not self.owns or entry["user"] != self.name:
            return False
        return self.hub is None or entry.get("hub", self.hub) == self.hub


def viewer_of(model: Mapping[str, Any], hub: str | None = None) -> Viewer:
    """The viewer for a user model from the hub's `GET /api/user`."""
    scopes: Collection[str] = model.get("scopes", ())
    return Viewer(
        name=str(model["name"]),
        sees_all=READ_SCOPE in scopes,
        owns=model.get("kind", "user") == "user",
        hub=hub,
    )


def visible_status(document: Document, viewer: Viewer) -> Document:
    """The part of the status `document` that `viewer` may see, with `free` added to each device.

    `free` means that the device is healthy and nobody holds it. Without the scope, only `free` distinguishes
    another user's device from a free one, because `lease_id`, `user` and `server` are None. The `since` and
    the use of another user's device are None too, so that nobody can read that user's hours from them; of the
    `shares` of a sliced device, only the viewer's own remain.
    """
    leases = [dict(lease) for lease in document["leases"] if viewer.sees_all or viewer.is_mine(lease)]
    mine = {lease["id"] for lease in leases}
    return {
        "simulated": document["simulated"],
        "fault": document.get("fault", ""),
        "devices": [_visible_device(device, viewer, mine) for device in document["devices"]],
        "leases": leases,
        "queue": [dict(entry) for entry in document["queue"] if viewer.sees_all or viewer.is_mine(entry)],
        "ended": [dict(each) for each in document["ended"] if viewer.sees_all or viewer.is_mine(each)],
    }


def _visible_device(device: Document, viewer: Viewer, mine: Collection[str]) -> Document:
    shown = {**device, "free": is_free(device)}
    if "shares" in device and not viewer.sees_all:
        # Other holders and their times are private; the number of free slices is public.
        shown["shares"] = [dict(share) for share in device["shares"] if share["lease_id"] in mine]
    if viewer.sees_all or device["lease_id"] in mine:
        return shown
    if "used_bytes" in device:
        shown |= {"used_bytes": None, "utilization_percent": None}
    if device["lease_id"] is None:
        return shown
    return {**shown, "lease_id": None, "user": None, "server": None, "since": None}


def is_free(device: Mapping[str, Any]) -> bool:
    """Whether a device, or a slice of it, could be leased now: healthy, and not all held."""
    slices = device.get("free_slices")
    return bool(device["healthy"]) and device["lease_id"] is None and slices != 0
