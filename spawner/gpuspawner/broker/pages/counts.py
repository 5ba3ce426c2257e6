"""How many devices or slices are free, by kind: numbers that everybody may see. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.units import format_bytes
from ..api.visible import Document, is_free
from .words import count_of

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
    sliced: bool = False
    """Whether `free` and `total` count slices instead of devices."""


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
    unshared = [device for device in devices if not is_sliced(device)]
    parts = []
    if unshared:
        parts.append(count_of(sum(is_free(device) for device in unshared), len(unshared), kind))
    if len(unshared) < len(devices):
        noun = "simulated slice" if status["simulated"] else "slice"
        parts.append(count_of(*free_and_total(device for device in devices if is_sliced(device)), noun))
    return f"{', '.join(parts)} free, {queue}."


def is_sliced(device: Document) -> bool:
    """Whether it is shared in slices."""
    return device.get("total_slices") is not None


def free_and_total(devices: Iterable[Document]) -> tuple[int, int]:
    """Free and total: slices if devices are sliced, else devices.

    Nothing is free on a device out of service.
    """
    free = total = 0
    for device in devices:
        sliced = is_sliced(device)
        total += device["total_slices"] if sliced else 1
        if is_free(device):
            free += device["free_slices"] if sliced else 1
    return free, total


def guarantee_help(device: Document) -> str:
    """What the guarantee of a device is worth, in words."""
    if device.get("unguarded_reason"):
        return f"not enforced now: {device['unguarded_reason']}"
    text = GUARANTEES[device["guarantee"]]
    if device["guarantee"] != "guarded":
        return text
    compute = device.get("compute_guarantee") == "guarded"
    return f"memory {text}; compute {'limited by MPS' if compute else 'not limited, by time-slicing'}"


def models(devices: Sequence[Document]) -> tuple[ModelRow, ...]:
    """The devices by kind."""
    groups: dict[tuple[Any, ...], list[Document]] = {}
    for device in devices:
        key = (
            device["model"], device["memory_bytes"], device["guarantee"], device["simulated"],
            is_sliced(device), guarantee_help(device),
        )  # fmt: skip
        groups.setdefault(key, []).append(device)
    return tuple(
        ModelRow(
            model=model,
            memory=format_bytes(memory_bytes),
            guarantee=guarantee,
            guarantee_help=help_text,
            simulated=simulated,
            free=free_and_total(group)[0],
            total=free_and_total(group)[1],
            withdrawn=sum(not device["healthy"] for device in group),
            sliced=sliced,
        )
        for (model, memory_bytes, guarantee, simulated, sliced, help_text), group in groups.items()
    )
