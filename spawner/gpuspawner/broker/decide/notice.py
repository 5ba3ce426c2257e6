"""Messages for lease holders and for people whose request is refused."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.model import Device, DeviceHealth
from ...core.units import format_bytes, format_time
from ...core.want import Mode, Want

_SAVE = "Save your work, stop this server and start a new one."


def is_withdrawal(sentence: str) -> bool:
    """Whether the sentence comes from `withdrawn`: it is removed when the devices are healthy again."""
    return sentence.endswith(_SAVE)


def withdrawn(lost: Sequence[tuple[Device, DeviceHealth]]) -> str:
    """The message for the holder of devices that are out of service; "" if there are none."""
    if not lost:
        return ""
    told = [_withdrawn_one(device, health) for device, health in lost]
    return " ".join([*told, _SAVE])


def no_capacity(want: Want, known: int) -> str:
    """The message for a request that can never be served here, with what to do."""
    named = "" if want.model is None else f" with {want.model!r} in its name"
    found = f"only {known}" if known else "none"
    wanted = "a GPU" if want.device_count == 1 else f"{want.device_count} GPUs"
    if want.mode is Mode.SLICE:
        size = "" if want.memory_bytes is None else f" of {format_bytes(want.memory_bytes)}"
        wanted = f"a slice{size} of a GPU"
    elif want.mode is Mode.MIG:
        what = f"MIG instance{'' if want.device_count == 1 else 's'}"
        profile = "" if want.mig_profile is None else f" {want.mig_profile}"
        wanted = f"{'a' if want.device_count == 1 else want.device_count} {what}{profile}"
    return f"You asked for {wanted}{named}, but this machine has {found}: choose another tier, or CPU."


def _withdrawn_one(device: Device, health: DeviceHealth) -> str:
    when = f" since {format_time(health.since)}" if health.since is not None else ""
    reason = health.reason.rstrip(". ") or "it can't be used"
    return f"{_name(device)} is out of service{when}: {reason}."


def _name(device: Device) -> str:
    number = f" {device.index}" if device.index is not None else f" {device.uuid}"
    return f"{'Simulated GPU' if device.simulated else 'GPU'}{number}"
