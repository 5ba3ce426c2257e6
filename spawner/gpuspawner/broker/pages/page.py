"""Computes the GPU page's content from the status document, as values for the templates.

Pure: takes a document, the tiers, a viewer and the time; returns sentences and rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from ...core.units import format_bytes, ordinal
from ..api.visible import Document, Viewer, is_free, visible_status

GUARANTEES = {
    "hard": "the whole device, enforced by hardware or by the container's device list",
    "guarded": "watched from outside the container and enforced within seconds",
    "none": "simulated: no GPU behind it",
}

MOST_ENDED = 20
"""How many of the latest ended processes are on the page; `api/status` has more."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When something began: `span` ("3 minutes") to read, `exact` for the title, `iso` for the machine."""

    iso: str
    exact: str
    span: str


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
class ModelRow:
    """The counts of devices of one kind; a viewer without the scope sees only these."""

    model: str
    memory: str
    guarantee: str
    guarantee_help: str
    simulated: bool
    free: int
    total: int
    withdrawn: int
    sliced: bool = False
    """Whether `free` and `total` count slices instead of devices."""


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the templates show."""

    viewer: Viewer
    simulated: bool
    summary: str
    mine: tuple[Holding, ...]
    devices: tuple[DeviceRow, ...]
    models: tuple[ModelRow, ...]
    queue: tuple[Holding, ...]
    notices: tuple[Holding, ...]
    spawn_url: str
    ended: tuple[EndedRow, ...] = ()
    fault: str = ""
    """Why the GPUs can't be listed now, for viewers with the scope; empty if they can."""


def build_page(status: Document, tiers: Document, viewer: Viewer, *, hub_url: str, now: datetime) -> Page:
    """The page for `viewer`. `status` is the whole document; `hub_url` ends with a slash.

    Counts come from the whole document; everything with a name comes from the part that the viewer
    may see.
    """
    seen = visible_status(status, viewer)
    rows = _Rows(status, tiers, _Asked(viewer, hub_url, now))
    leases = [rows.lease(lease) for lease in seen["leases"] if lease["state"] != "waiting"]
    places = [rows.place(entry) for entry in seen["queue"]]
    return Page(
        viewer=viewer,
        simulated=bool(status["simulated"]),
        summary=_summary(status),
        mine=tuple(holding for holding in leases + places if holding.mine),
        devices=tuple(rows.device(device) for device in seen["devices"]) if viewer.sees_all else (),
        models=_models(status["devices"]),
        queue=tuple(places) if viewer.sees_all else (),
        notices=tuple(holding for holding in leases if holding.notice),
        spawn_url=f"{hub_url}spawn",
        ended=tuple(rows.ended(each) for each in seen["ended"][:MOST_ENDED]) if viewer.sees_all else (),
        fault=seen["fault"] if viewer.sees_all else "",
    )


def moment(iso: str | None, now: datetime) -> Moment | None:
    """`iso` (ISO 8601 UTC) for people: how long ago it was, with the exact time. None stays None."""
    if iso is None:
        return None
    at = datetime.fromisoformat(iso).astimezone(UTC)
    exact = at.strftime("since %Y-%m-%d %H:%M:%S UTC")
    return Moment(iso=iso, exact=exact, span=_span((now - at).total_seconds()))


def _span(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = int(seconds // size)
        if count >= 1:
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "less than a minute"


def _summary(status: Document) -> str:
    devices: Sequence[Document] = status["devices"]
    kind = "simulated GPU" if status["simulated"] else "GPU"
    waiting = len(status["queue"])
    queue = "nobody waits" if not waiting else "1 server waits" if waiting == 1 else f"{waiting} servers wait"
    if not devices and status.get("fault"):
        return (
            f"The GPUs of this machine don't answer; they appear here when they answer. {queue.capitalize()}."
        )
    if not devices:
        return f"No {kind} on this machine, {queue}."
    unshared = [device for device in devices if not _sliced(device)]
    parts = []
    if unshared:
        parts.append(_of(sum(is_free(device) for device in unshared), len(unshared), kind))
    if len(unshared) < len(devices):
        noun = "simulated slice" if status["simulated"] else "slice"
        parts.append(_of(*_count(device for device in devices if _sliced(device)), noun))
    return f"{', '.join(parts)} free, {queue}."


def _of(free: int, total: int, noun: str) -> str:
    return f"{free} of {total} {noun}{'' if total == 1 else 's'}"


def _sliced(device: Document) -> bool:
    return device.get("total_slices") is not None


def _count(devices: Iterable[Document]) -> tuple[int, int]:
    """Free and total: slices if devices are sliced, else devices.

    Nothing is free on a device out of service.
    """
    free = total = 0
    for device in devices:
        sliced = _sliced(device)
        total += device["total_slices"] if sliced else 1
        if is_free(device):
            free += device["free_slices"] if sliced else 1
    return free, total


def _guarantee_help(device: Document) -> str:
    if device.get("unguarded_reason"):
        return f"not enforced now: {device['unguarded_reason']}"
    text = GUARANTEES[device["guarantee"]]
    if device["guarantee"] != "guarded":
        return text
    compute = device.get("compute_guarantee") == "guarded"
    return f"memory {text}; compute {'limited by MPS' if compute else 'not limited, by time-slicing'}"


def _models(devices: Sequence[Document]) -> tuple[ModelRow, ...]:
    groups: dict[tuple[Any, ...], list[Document]] = {}
    for device in devices:
        key = (
            device["model"], device["memory_bytes"], device["guarantee"], device["simulated"],
            _sliced(device), _guarantee_help(device),
        )  # fmt: skip
        groups.setdefault(key, []).append(device)
    return tuple(
        ModelRow(
            model=model,
            memory=format_bytes(memory_bytes),
            guarantee=guarantee,
            guarantee_help=guarantee_help,
            simulated=simulated,
            free=_count(group)[0],
            total=_count(group)[1],
            withdrawn=sum(not device["healthy"] for device in group),
            sliced=sliced,
        )
        for (model, memory_bytes, guarantee, simulated, sliced, guarantee_help), group in groups.items()
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """The viewer, the hub and the time."""

    viewer: Viewer
    hub_url: str
    now: datetime


class _Rows:
    """Builds the rows of one page from their common values."""

    def __init__(self, status: Document, tiers: Document, asked: _Asked) -> None:
        self._devices = {device["uuid"]: device for device in status["devices"]}
        self._leases = {lease["id"]: lease for lease in status["leases"]}
        self._titles: dict[str, str] = {tier["name"]: tier["title"] for tier in tiers["tiers"]}
        self._simulated = bool(status["simulated"])
        self._viewer = asked.viewer
        self._hub_url = asked.hub_url
        self._now = asked.now

    def lease(self, lease: Document) -> Holding:
        held = [self._devices.get(uuid) for uuid in lease["device_uuids"]]
        return Holding(
            id=lease["id"],
            user=lease["user"],
            server=lease["server"],
            tier=self._tier(lease),
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
        return Holding(
            id=entry["id"],
            user=entry["user"],
            server=entry["server"],
            tier=self._tier(entry),
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
        lease = self._leases.get(device["lease_id"])
        capability = device["compute_capability"]
        return DeviceRow(
            name=_device_name(device),
            uuid=device["uuid"],
            memory=format_bytes(device["memory_bytes"]),
            compute_capability="not available" if capability is None else capability,
            guarantee=device["guarantee"],
            guarantee_help=_guarantee_help(device),
            simulated=bool(device["simulated"]),
            healthy=bool(device["healthy"]),
            reason=device["reason"],
            withdrawn_since=None if device["healthy"] else moment(device["since"], self._now),
            holder=None if lease is None else self.lease(lease),
            shares=tuple(sorted(self._shares(device), key=lambda each: (each.user, each.server))),
            slices=f"{_of(*_count([device]), 'slice')} free" if _sliced(device) else "",
            used=_told(device, "used_bytes", format_bytes),
            busy=_told(device, "utilization_percent", "{:.0f} %".format),
        )

    def _shares(self, device: Document) -> Iterable[Holding]:
        for share in device.get("shares", ()):
            if share["lease_id"] in self._leases:
                yield self.lease(self._leases[share["lease_id"]])

    def ended(self, each: Document) -> EndedRow:
        device = self._devices.get(each["device_uuid"])
        return EndedRow(
            when=moment(each["at"], self._now),
            user=each["user"] or "unknown",
            server=each["server"],
            device=each["device_uuid"] if device is None else _device_name(device),
            sentence=each["sentence"],
        )

    def _tier(self, entry: Document) -> str:
        name = str(entry["tier"])
        return self._titles.get(name, name)

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
