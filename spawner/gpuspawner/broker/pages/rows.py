"""Rows of leases, queue places, devices and ended processes: what several pages show. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from ...core.units import format_bytes, ordinal
from ..api.access import Viewer
from ..api.visible import Document
from ..decide.when.deadline import for_a_page
from .words import Moment, moment


@dataclass(frozen=True, slots=True)
class Holding:
    """One lease or queue place, as its row or card shows it.

    `mine` means that it is the viewer's own; only then `links` has the addresses of its buttons.
    `position` is None when a device is held.
    """

    id: str
    user: str
    server: str
    tier: str
    state: str
    devices: tuple[str, ...]
    memory: str
    since: Moment | None
    notice: str
    simulated: bool
    mine: bool
    links: Mapping[str, str]
    position: int | None = None
    share: str = ""
    """A slice's part of its device ("8.0 GiB, up to 25 % of its compute"); empty for whole devices."""

    @property
    def place(self) -> str:
        """For example "1st in line"; empty if it holds a device."""
        return "" if self.position is None else f"{ordinal(self.position)} in line"


@dataclass(frozen=True, slots=True)
class Asked:
    """The viewer, the hub and the time."""

    viewer: Viewer
    hub_url: str
    now: datetime


class Rows:
    """Builds the rows of one page from their common values."""

    def __init__(self, status: Document, tiers: Document, asked: Asked) -> None:
        self._devices = {device["uuid"]: device for device in status["devices"]}
        self._leases = {lease["id"]: lease for lease in status["leases"]}
        self._titles: dict[str, str] = {tier["name"]: tier["title"] for tier in tiers["tiers"]}
        self._simulated = bool(status["simulated"])
        self._viewer = asked.viewer
        self._hub_url = asked.hub_url
        self._now = asked.now

    def lease(self, lease: Document) -> Holding:
        """A lease that holds devices."""
        held = [self._devices.get(uuid) for uuid in lease["device_uuids"]]
        return Holding(
            id=lease["id"],
            user=lease["user"],
            server=lease["server"],
            tier=self.tier(lease["tier"]),
            state=lease["state"],
            devices=tuple(
                uuid if device is None else _device_name(device)
                for uuid, device in zip(lease["device_uuids"], held, strict=True)
            ),
            memory=format_bytes(lease["memory_bytes"]),
            since=moment(lease["since"], self._now),
            notice=for_a_page(lease["notice"]),
            simulated=self._simulated,
            mine=self._viewer.is_mine(lease),
            links=self._links(lease),
            share=_share(lease),
        )

    def place(self, entry: Document) -> Holding:
        """A place in the queue."""
        return Holding(
            id=entry["id"],
            user=entry["user"],
            server=entry["server"],
            tier=self.tier(entry["tier"]),
            state="waiting",
            devices=(),
            memory="",
            since=moment(entry["since"], self._now),
            notice="",
            simulated=self._simulated,
            position=entry["position"],
            mine=self._viewer.is_mine(entry),
            links=self._links(entry),
        )

    def tier(self, name: str) -> str:
        """The title of a tier; its name if the settings no longer have it."""
        return self._titles.get(name, str(name))

    def _links(self, entry: Document) -> dict[str, str]:
        """Addresses on the hub: it knows the server's address, and asks for a login if needed."""
        if not self._viewer.is_mine(entry):
            return {}
        name = quote(entry["user"], safe="")
        server = f"/{quote(entry['server'], safe='')}" if entry["server"] else ""
        return {
            "open": f"{self._hub_url}user/{name}{server or '/'}",
            "pending": f"{self._hub_url}spawn-pending/{name}{server}",
            "home": f"{self._hub_url}home",
        }


def _share(lease: Document) -> str:
    """A slice's part, as text."""
    if lease.get("mode") != "slice":
        return ""
    percent = lease["compute_percent"]
    compute = f", up to {percent:g} % of its compute" if percent < 100 else ""
    return f"{format_bytes(lease['memory_bytes'])}{compute}"


def _device_name(device: Mapping[str, Any]) -> str:
    index, where = device["index"], f" of {device['node']}" if device.get("node") else ""
    return f"{device['model']}{where}" if index is None else f"{device['model']} #{index}{where}"
