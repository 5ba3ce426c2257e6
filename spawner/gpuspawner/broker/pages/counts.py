"""How many devices, slices or seats in turns are free, by kind: numbers that everybody may see. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.units import format_bytes
from ..api.visible import Document, is_free
from .words import count_of

SLICES, SEATS = "slices", "seats in turns"

GUARANTEES = {
    "hard": "the whole device, enforced by hardware or by the container's device list",
    "guarded": "watched from outside the container and enforced within seconds",
    "none": "simulated: no GPU behind it",
}


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
    unit: str = ""
    """What `free` and `total` count, if not devices: "slices", "seats in turns"."""


def summary(status: Document) -> str:
    """What is free and how many wait, in one sentence; from the whole document, without names."""
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
    simulated = "simulated " if status["simulated"] else ""
    parts = []
    for unit, noun in (("", kind), (SLICES, f"{simulated}slice"), (SEATS, f"{simulated}seat")):
        counted = [device for device in devices if unit_of(device) == unit]
        if counted:
            parts.append(count_of(*free_and_total(counted), noun) + (" in turns" if unit == SEATS else ""))
    return f"{', '.join(parts)} free, {queue}."


def unit_of(device: Document) -> str:
    """What of the device is leased: itself (""), its slices, or seats of its pool in turns."""
    if device.get("total_slices") is not None:
        return SLICES
    return "" if device.get("total_seats") is None else SEATS


def free_and_total(devices: Iterable[Document]) -> tuple[int, int]:
    """Free and total, each device in its unit.

    Nothing is free on a device out of service. The seats of a pool in turns are those of all its devices
    together, and count once.
    """
    free = total = 0
    seats: dict[tuple[str, str], tuple[int, int]] = {}
    for device in devices:
        unit, open_ = unit_of(device), is_free(device)
        if unit == SEATS:
            pool = (device.get("node", ""), device["pool"])
            mine = device["free_seats"] if open_ else 0
            seats[pool] = (max(mine, seats.get(pool, (0, 0))[0]), device["total_seats"])
            continue
        total += device["total_slices"] if unit == SLICES else 1
        if open_:
            free += device["free_slices"] if unit == SLICES else 1
    return free + sum(each for each, _ in seats.values()), total + sum(each for _, each in seats.values())


def guarantee_help(device: Document) -> str:
    """What the guarantee of a device is worth, in words."""
    if device.get("unguarded_reason"):
        return f"not enforced now: {device['unguarded_reason']}"
    text = GUARANTEES[device["guarantee"]]
    if device["guarantee"] == "none" and not unit_of(device):
        return f"the broker gives it to one server at a time; {text}"
    if device["guarantee"] != "guarded":
        return text
    compute = device.get("compute_guarantee") == "guarded"
    return f"memory {text}; compute {'limited by MPS' if compute else 'not limited, by time-slicing'}"


def guarantee_words(guarantee: str, unit: str) -> str:
    """The guarantee in one or two words; `unit` is what of the device is leased."""
    if guarantee != "none":
        return guarantee
    return "one server alone" if not unit else "nothing to enforce"


def models(devices: Sequence[Document]) -> tuple[ModelRow, ...]:
    """The devices by kind."""
    groups: dict[tuple[Any, ...], list[Document]] = {}
    for device in devices:
        key = (
            device["model"], device["memory_bytes"], device["guarantee"], device["simulated"],
            unit_of(device), guarantee_help(device),
        )  # fmt: skip
        groups.setdefault(key, []).append(device)
    return tuple(
        ModelRow(
            model=model,
            memory=format_bytes(memory_bytes),
            guarantee=guarantee_words(guarantee, unit),
            guarantee_help=help_text,
            simulated=simulated,
            free=free_and_total(group)[0],
            total=free_and_total(group)[1],
            withdrawn=sum(not device["healthy"] for device in group),
            unit=unit,
        )
        for (model, memory_bytes, guarantee, simulated, unit, help_text), group in groups.items()
    )
