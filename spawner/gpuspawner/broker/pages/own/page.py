"""What "My GPU" shows, computed from the status document, as values for the templates. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ...api.access import Viewer
from ...api.visible import Document, visible_status
from ..counts import ModelRow, models, summary
from ..rows import Asked, Holding, Rows


@dataclass(frozen=True, slots=True)
class OwnPage:
    """The viewer's own leases and places, and what is free."""

    viewer: Viewer
    simulated: bool
    summary: str
    mine: tuple[Holding, ...]
    models: tuple[ModelRow, ...]
    notices: tuple[Holding, ...]
    spawn_url: str


def own_page(status: Document, tiers: Document, viewer: Viewer, *, hub_url: str, now: datetime) -> OwnPage:
    """The page for `viewer`. `status` is the whole document; `hub_url` ends with a slash.

    Counts come from the whole document; everything with a name comes from the part that the viewer
    may see.
    """
    seen = visible_status(status, viewer)
    rows = Rows(status, tiers, Asked(viewer, hub_url, now))
    leases = [rows.lease(lease) for lease in seen["leases"] if lease["state"] != "waiting"]
    places = [rows.place(entry) for entry in seen["queue"]]
    mine = tuple(holding for holding in leases + places if holding.mine)
    return OwnPage(
        viewer=viewer,
        simulated=bool(status["simulated"]),
        summary=summary(status),
        mine=mine,
        models=models(status["devices"]),
        notices=tuple(holding for holding in mine if holding.notice),
        spawn_url=f"{hub_url}spawn",
    )
