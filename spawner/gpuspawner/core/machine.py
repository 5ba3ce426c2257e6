"""The machines of a broker, as people see them: what each does for new servers, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class MachineState(StrEnum):
    """What a machine does for new servers.

    DRAINING: an admin lets nothing new start there. UNUSED: it can be reached, but none of its GPUs can be
    leased. AWAY: it can't be reached. REFUSED: its agent connects, but the broker can't work with it.
    """

    READY = "ready"
    DRAINING = "draining"
    UNUSED = "not in use"
    AWAY = "away"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class MachineView:
    """A machine at one moment.

    `reason` says why it isn't READY, `since` when its state began; None if that isn't known. `heard_at` is
    when its agent was heard last; None while it is connected, and if it never was.
    `release` is the version of gpuspawner there; "" if not known. `own` is the broker's machine. Of its
    `gpus`, `in_service` may be leased or are, and `drained` get nothing new. `labels` are what tiers may ask
    for. `notices` are sentences for admins.
    """

    name: str
    state: MachineState
    reason: str = ""
    since: datetime | None = None
    heard_at: datetime | None = None
    release: str = ""
    own: bool = False
    gpus: int = 0
    in_service: int = 0
    drained: int = 0
    leases: int = 0
    labels: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
