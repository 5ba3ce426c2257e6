"""Messages for lease holders and for people whose request is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from ....core.model import Device, DeviceHealth
from ....core.units import format_bytes, format_time
from ....core.want import Mode, Want

_SAVE = "Save your work, stop this server and start a new one."


_MOST_NAMED = 4
"""So many devices are named at most; the others are counted."""

_GOES_ON = "; your lab goes on."


def is_withdrawal(sentence: str) -> bool:
    """Whether it is from `withdrawn` or `machine_away`: it is removed when the devices are healthy again."""
    return sentence.endswith((_SAVE, _GOES_ON))


def machine_away(reason: str) -> str:
    """The message for the holder of devices of a machine that can't be reached."""
    return f"{reason[:1].upper()}{reason[1:].rstrip('. ')}{_GOES_ON}"


def withdrawn(lost: Sequence[tuple[Device, DeviceHealth]]) -> str:
    """The message for the holder of devices that are out of service; "" if there are none."""
    if not lost:
        return ""
    told = [_withdrawn_one(device, health) for device, health in lost]
    return " ".join([*told, _SAVE])


def out_of_service(want: Want, lost: Sequence[tuple[Device, DeviceHealth]], now: datetime) -> str:
    """Why a waiting request can't be served before a device is back in service, or no longer drained."""
    one = want.device_count == 1
    if any(health.healthy for _, health in lost):
        few = "no matching GPU takes new servers" if one else "not enough GPUs take new servers"
    else:
        few = "no matching GPU is in service" if one else "not enough GPUs are in service"
    return f"You asked for {_wanted(want)}, but {few} now. {idle_but_out(lost, now)}".rstrip()


def idle_but_out(lost: Sequence[tuple[Device, DeviceHealth]], now: datetime) -> str:
    """That a waiting request would be served now if these devices, which nobody uses, took new servers.

    A healthy one is drained. It is shown beside the likely wait, so times are on the machine's clock too.
    """
    return _each(lost, lambda device, health: _out_one(device, health, _clock(health.since, now)))


def not_counted(out: Sequence[tuple[Device, DeviceHealth]]) -> str:
    """That these devices are left out of a plan for a later time, when they may serve again; "" if none."""
    if not out:
        return ""
    if len(out) > _MOST_NAMED:
        which = f"{len(out)} such GPUs are drained or out of service"
    else:
        *first, last = (f"{_name(device)} is {_state(health)}" for device, health in out)
        which = f"{', '.join(first)} and {last}" if first else last
    counts = "it doesn't count" if len(out) == 1 else "they don't count"
    return f"{which} now: {counts}, but may be back by then."


def awaited(want: Want, reasons: Sequence[str]) -> str:
    """Why a request waits that only a machine may serve whose GPUs aren't known yet."""
    why = "; ".join(reasons)
    return (
        f"You asked for {_wanted(want)}, which no machine has that can be reached now: {why}. Your server "
        "starts when it is back and has one free; or choose another tier, or CPU."
    )


def needs_admin(want: Want, lost: Sequence[tuple[Device, DeviceHealth]]) -> str:
    """The refusal of a request that only devices could serve that no new container gets."""
    told = _each(lost, _withdrawn_one)
    return (
        f"No new server can get {_wanted(want)} until an admin has repaired this: {told} "
        "Choose another tier, or CPU."
    )


def kept_for_session(group: str, begins: datetime, ends: datetime) -> str:
    """Why a request waits although devices are free: a class is going to need them."""
    times = f"from {format_time(begins)} to {format_time(ends)}"
    return (
        f"The free GPUs are reserved for the lab session of {group}, {times}. "
        "Your server starts when another GPU is free, or when the session doesn't need all of them."
    )


def no_capacity(want: Want, known: int, *, several_nodes: bool = False) -> str:
    """The message for a request that can never be served here, with what to do.

    `known`: how many of such devices the node has that has the most.
    """
    found = f"this machine has {f'only {known}' if known else 'none'}"
    if want.node is not None:
        found = f"it has {f'only {known}' if known else 'none'}"
    elif several_nodes:
        found = f"no machine has more than {known}" if known else "no machine has one"
    return f"You asked for {_wanted(want)}, but {found}: choose another tier, or CPU."


def _wanted(want: Want) -> str:
    """What was asked for: "2 GPUs", "a slice of 8 GiB of a GPU", with the model if one was named."""
    named = "" if want.model is None else f" with {want.model!r} in its name"
    wanted = "a GPU" if want.device_count == 1 else f"{want.device_count} GPUs"
    if want.mode is Mode.SLICE:
        size = "" if want.memory_bytes is None else f" of {format_bytes(want.memory_bytes)}"
        wanted = f"a slice{size} of a GPU"
    elif want.mode is Mode.TURNS:
        wanted = "a GPU in turns"
    elif want.mode is Mode.MIG:
        what = f"MIG instance{'' if want.device_count == 1 else 's'}"
        profile = "" if want.mig_profile is None else f" {want.mig_profile}"
        wanted = f"{'a' if want.device_count == 1 else want.device_count} {what}{profile}"
    labelled = "" if want.node_label is None else f" of a machine with the label {want.node_label!r}"
    where = "" if want.node is None else f" on the machine {want.node}, where your files are"
    return f"{wanted}{named}{labelled}{where}"


def _withdrawn_one(device: Device, health: DeviceHealth) -> str:
    """With the date, as its holder may read it days later."""
    return _out_one(device, health, "" if health.since is None else format_time(health.since))


def _out_one(device: Device, health: DeviceHealth, since: str) -> str:
    """A device that takes no new server: a drained one is healthy."""
    verb = f"has been {_state(health)} since {since}" if since else f"is {_state(health)}"
    reason = health.reason.rstrip(". ") or "it can't be used"
    return f"{_name(device)} {verb}: {reason}."


def _each(out: Sequence[tuple[Device, DeviceHealth]], tell: Callable[[Device, DeviceHealth], str]) -> str:
    """A sentence for each of the first devices, and how many more there are; "" if there are none."""
    told = [tell(device, health) for device, health in out[:_MOST_NAMED]]
    if (more := len(out) - _MOST_NAMED) > 0:
        told.append(f"{more} more such {'GPU is' if more == 1 else 'GPUs are'} drained or out of service.")
    return " ".join(told)


def _state(health: DeviceHealth) -> str:
    return "drained" if health.healthy else "out of service"


def _clock(at: datetime | None, now: datetime) -> str:
    """On the machine's clock: "20:32 UTC" today, else with the date; "" if it isn't known."""
    if at is None:
        return ""
    local = at.astimezone()
    day = "" if local.date() == now.astimezone().date() else f"{local:%Y-%m-%d} "
    return f"{day}{local:%H:%M %Z}".rstrip()


def _name(device: Device) -> str:
    number = f" {device.index}" if device.index is not None else f" {device.uuid}"
    where = f" of machine {device.node}" if device.node else ""
    return f"{'Simulated GPU' if device.simulated else 'GPU'}{number}{where}"
