"""Selects the part of the broker's status that a viewer may see. Pure.

A viewer with `custom:gpu:read` sees everything, with `custom:gpu:read!group=NAME` what concerns members of
that group. Anybody else sees the devices without their holders, their own leases and their own places in the
queue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from .access import Viewer

Document = dict[str, Any]


class BrokerView(Protocol):
    """What the pages need from the broker. All methods answer from memory, at once."""

    def status(self) -> Document:
        """The whole status document, as `protocol.messages.StatusDocument` describes it."""

    def stamp(self) -> object:
        """Equal to an earlier one as long as the status document is."""

    def tiers(self) -> Document:
        """The tiers with what is free of each."""

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""


def visible_status(document: Document, viewer: Viewer) -> Document:
    """The part of the status `document` that `viewer` may see, with `free` added to each device.

    `free` means that the device is healthy and nobody holds it. Without the scope, only `free` distinguishes
    another user's device from a free one, because `lease_id`, `user` and `server` are None. The `since` and
    the use of another user's device are None too, so that nobody can read that user's hours from them; of the
    `shares` of a sliced device, only those that may be seen remain. Of the groups of somebody else's lease,
    only those remain for which the viewer has the scope.
    """
    leases = _visible(document["leases"], viewer)
    shown = {lease["id"] for lease in leases}
    return {
        "simulated": document["simulated"],
        "fault": document.get("fault", ""),
        "devices": [_visible_device(device, viewer, shown) for device in document["devices"]],
        "leases": leases,
        "queue": _visible(document["queue"], viewer),
        "ended": _visible(document["ended"], viewer),
        **({key: document.get(key, []) for key in ("disks", "machines")} if viewer.sees_all else {}),
    }


def _visible(entries: Collection[Document], viewer: Viewer) -> list[Document]:
    return [_without_other_groups(entry, viewer) for entry in entries if viewer.sees(entry)]


def _without_other_groups(entry: Document, viewer: Viewer) -> Document:
    """A group may say something about a person that concerns only those who are responsible for it."""
    if viewer.sees_all or viewer.is_mine(entry) or "groups" not in entry:
        return dict(entry)
    return {**entry, "groups": [group for group in entry["groups"] if group in viewer.read.groups]}


def _visible_device(device: Document, viewer: Viewer, shown_leases: Collection[str]) -> Document:
    shown = {**device, "free": is_free(device)}
    if "shares" in device and not viewer.sees_all:
        # Other holders and their times are private; the number of free slices is public.
        shown["shares"] = [dict(share) for share in device["shares"] if share["lease_id"] in shown_leases]
    if viewer.sees_all or device["lease_id"] in shown_leases:
        return shown
    if "used_bytes" in device:
        shown |= {"used_bytes": None, "utilization_percent": None}
    if device["lease_id"] is None:
        return shown
    return {**shown, "lease_id": None, "user": None, "server": None, "since": None}


def is_free(device: Mapping[str, Any]) -> bool:
    """Whether a device, a slice of it, or a seat in turns could be leased now.

    It is healthy, not drained, and not all held.
    """
    slices, seats = device.get("free_slices"), device.get("free_seats")
    in_service = bool(device["healthy"]) and not device.get("drained", False)
    if seats is not None:
        return in_service and seats > 0
    return in_service and device["lease_id"] is None and slices != 0
