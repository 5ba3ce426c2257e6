"""What "Devices" shows, computed from the status document, as values for the templates. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ...api.access import Viewer
from ...api.visible import Document, visible_status
from ..counts import summary
from ..rows import Asked, DeviceRow, EndedRow, Holding, Rows

MOST_ENDED = 20
"""How many of the latest ended processes are on the page; `api/status` has more."""


@dataclass(frozen=True, slots=True)
class DevicesPage:
    """Every device with its holders, the queue, and what the guard did."""

    viewer: Viewer
    simulated: bool
    summary: str
    devices: tuple[DeviceRow, ...]
    queue: tuple[Holding, ...]
    notices: tuple[Holding, ...]
    ended: tuple[EndedRow, ...] = ()
    fault: str = ""
    """Why the GPUs can't be listed now; empty if they can."""
    disks: tuple[str, ...] = ()
    """A sentence for each disk with little space left."""
    unknown: int = 0
    """How many servers hold a GPU without being known to the hub."""


def devices_page(
    status: Document, tiers: Document, viewer: Viewer, *, hub_url: str, now: datetime
) -> DevicesPage:
    """The page for `viewer`. `status` is the whole document; `hub_url` ends with a slash."""
    seen = visible_status(status, viewer)
    rows = Rows(status, tiers, Asked(viewer, hub_url, now))
    leases = [rows.lease(lease) for lease in seen["leases"] if lease["state"] != "waiting"]
    return DevicesPage(
        viewer=viewer,
        simulated=bool(status["simulated"]),
        summary=summary(status),
        devices=tuple(rows.device(device) for device in seen["devices"]),
        queue=tuple(rows.place(entry) for entry in seen["queue"]),
        notices=tuple(holding for holding in leases if holding.notice),
        ended=tuple(rows.ended(each) for each in seen["ended"][:MOST_ENDED]),
        fault=seen["fault"],
        disks=tuple(
            f"Disk of {disk['holds']}: {disk['sentence']}"
            for disk in seen.get("disks", ())
            if disk["state"] != "ok"
        ),
        unknown=sum(bool(lease.get("unknown_to_hub")) for lease in seen["leases"]),
    )
