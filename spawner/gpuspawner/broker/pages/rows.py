"""Rows of leases, queue places, devices and ended processes: what several pages show. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from ...core.units import format_bytes, ordinal
from ..api.access import Viewer
from ..api.visible import Document
from .counts import free_and_total, guarantee_help, is_sliced
from .words import Moment, count_of, moment


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
class DeviceRow:
    """One device as the full view shows it."""

    name: str
    uuid: str
    memory: str
    compute_capability: str
    guarantee: str
    guarantee_help: str
    simulated: bool
    healthy: bool
    reason: str
    withdrawn_since: Moment | None
    holder: Holding | None
    shares: tuple[Holding, ...] = ()
    slices: str = ""
    """For example "5 of 10 slices free"; empty for a device that isn't sliced."""
    used: str = "not available"
    """Memory in use by all processes, like "12 GiB"; "simulated" for a simulated device."""
    busy: str = "not available"
    """For example "71 %"; NVML has no value for a MIG instance."""


@dataclass(frozen=True, slots=True)
class EndedRow:
    """A process that the guard ended, as the full view shows it."""

    when: Moment | None
    user: str
    server: str
    device: str
    sentence: str


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
            notice=lease["notice"],
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

    def device(self, device: Document) -> DeviceRow:
        """A device with its holders."""
        lease = self._leases.get(device["lease_id"])
        capability = device["compute_capability"]
        return DeviceRow(
            name=_device_name(device),
            uuid=device["uuid"],
            memory=format_bytes(device["memory_bytes"]),
            compute_capability="not available" if capability is None else capability,
            guarantee=device["guarantee"],
            guarantee_help=guarantee_help(device),
            simulated=bool(device["simulated"]),
            healthy=bool(device["healthy"]),
            reason=device["reason"],
            withdrawn_since=None if device["healthy"] else moment(device["since"], self._now),
            holder=None if lease is None else self.lease(lease),
            shares=tuple(sorted(self._shares(device), key=lambda each: (each.user, each.server))),
            slices=f"{count_of(*free_and_total([device]), 'slice')} free" if is_sliced(device) else "",
            used=_told(device, "used_bytes", format_bytes),
            busy=_told(device, "utilization_percent", "{:.0f} %".format),
        )

    def _shares(self, device: Document) -> Iterable[Holding]:
        for share in device.get("shares", ()):
            if share["lease_id"] in self._leases:
                yield self.lease(self._leases[share["lease_id"]])

    def ended(self, each: Document) -> EndedRow:
        """A process that the guard ended."""
        device = self._devices.get(each["device_uuid"])
        return EndedRow(
            when=moment(each["at"], self._now),
            user=each["user"] or "unknown",
            server=each["server"],
            device=each["device_uuid"] if device is None else _device_name(device),
            sentence=each["sentence"],
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


def _told(device: Mapping[str, Any], key: str, words: Callable[[Any], str]) -> str:
    """A device's reading as text, or why there is none; an unknown value is never shown as 0."""
    if device["simulated"]:
        return "simulated"
    value = device.get(key)
    return "not available" if value is None else words(value)


def _device_name(device: Mapping[str, Any]) -> str:
    index = device["index"]
    return str(device["model"]) if index is None else f"{device['model']} #{index}"
