"""What people see of a machine: its state and why, from what the broker knows of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ... import __version__
from ...core.machine import MachineState, MachineView
from ...core.text import isolated
from ...node.api import NodeFacts
from ..decide.snapshot import DeviceView

NO_GPU = "it has no GPU that can be leased: no pool takes any, or none is listed"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a machine besides its devices. `obstacle` says why nothing new starts there, and
    `since` when that, or serving, began. `problem`: why its devices can't be used with these settings.
    `twice`: sentences about devices that another machine has. `release`: of gpuspawner there; "" if not
    known. `own`: it is the broker's."""

    facts: NodeFacts
    obstacle: str
    since: datetime | None
    problem: str = ""
    twice: tuple[str, ...] = ()
    release: str = ""
    own: bool = False
    labels: tuple[str, ...] = ()


def machine_view(known: Known, devices: Sequence[DeviceView], leases: int) -> MachineView:
    """The machine with its `devices` and this many leases."""
    state, reason, since = _state(known, devices)
    facts = known.facts
    return MachineView(
        name=facts.name,
        state=state,
        reason=reason,
        since=since,
        heard_at=facts.contact.heard_at,
        release=known.release,
        own=known.own,
        gpus=len(devices),
        in_service=sum(view.health.healthy for view in devices),
        drained=sum(view.drain is not None for view in devices),
        leases=leases,
        labels=known.labels,
        notices=_notices(known),
    )


def _state(known: Known, devices: Sequence[DeviceView]) -> tuple[MachineState, str, datetime | None]:
    if known.obstacle:
        refused = known.facts.contact.refused
        return MachineState.REFUSED if refused else MachineState.AWAY, known.obstacle, known.since
    well = [view for view in devices if view.health.healthy]
    if not well:
        broken = next((view.health for view in devices), None)
        reason = known.facts.fault or known.problem or (broken.reason if broken else "")
        twice = known.twice[0] if known.twice else ""
        return MachineState.UNUSED, reason or twice or NO_GPU, broken.since if broken else None
    drains = [view.drain for view in well if view.drain is not None]
    if len(drains) < len(well):
        return MachineState.READY, "", known.since
    told = (
        f"by {isolated(each.author)}{f': {isolated(each.reason)}' if each.reason else ''}" for each in drains
    )
    return MachineState.DRAINING, "; ".join(dict.fromkeys(told)), max(each.since for each in drains)


def _notices(known: Known) -> tuple[str, ...]:
    other = ""
    if not known.obstacle and known.release not in ("", __version__):
        other = (
            f"It runs gpuspawner {known.release}, and the broker {__version__}: install the same release on "
            "both"
        )
    return tuple(filter(None, (known.facts.contact.rival, other, *known.twice, *known.facts.left_out)))
