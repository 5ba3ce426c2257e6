"""What the broker may ask of a machine with GPUs, and what that machine reports.

Only plain values pass: no NVML handle, no function, no object of the broker. There are async calls and one
stream of events, so that a node may as well be a process on another machine. This machine is `local.py`.

The broker says what should hold (`DesiredState`, always all of it) and the node makes it true, again and
again where that takes several attempts. The node reads NVML by itself and reports what has changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from ..core.model import Device, DeviceHealth
from .checkpoint.hands import SeatReading, TurnHands, TurnReadings
from .checkpoint.host import Seat
from .checkpoint.outcome import Condition, Obstacle, Outcome
from .guard.guard import GuardEvent
from .guard.judge import Offence, Quota, QuotaPlan
from .injection import Injection
from .inventory import ComputeMode, DriverFacts
from .mps.control import MpsLimits, MpsProgram
from .usage import Usage

__all__ = [
    "ComputeMode",
    "Condition",
    "DaemonPlan",
    "DesiredState",
    "DriverFacts",
    "GuardEvent",
    "Injection",
    "MpsEvent",
    "MpsLimits",
    "MpsProgram",
    "MpsState",
    "Node",
    "NodeEvent",
    "NodeFacts",
    "Obstacle",
    "Offence",
    "Outcome",
    "Quota",
    "QuotaPlan",
    "Readings",
    "Seat",
    "SeatReading",
    "TurnHands",
    "TurnReadings",
    "Usage",
]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a machine has, as of its last look at its GPUs.

    `fault`: why its GPUs can't be listed now; "" if they can. `left_out`: one sentence for each GPU that
    can't be read. `compute_modes`: of the whole GPUs, by UUID; None where it can't be read. `driver` is None
    where GPUs are simulated or can't be listed. `guard_obstacle`: why processes of containers can't be ended
    here, with the remedy. `mps_pipes`: the folder with a pipe folder for each GPU's MPS daemon; "" where MPS
    is not used.
    """

    name: str
    simulated: bool = False
    devices: tuple[Device, ...] = ()
    left_out: tuple[str, ...] = ()
    fault: str = ""
    compute_modes: Mapping[str, ComputeMode | None] = field(default_factory=lambda: MappingProxyType({}))
    driver: DriverFacts | None = None
    guard_obstacle: str = ""
    mps: MpsProgram = field(default_factory=lambda: MpsProgram(None))
    mps_pipes: str = ""

    @property
    def incomplete(self) -> bool:
        """Whether the machine may have devices that are not listed."""
        return bool(self.fault or self.left_out)


@dataclass(frozen=True, slots=True)
class DaemonPlan:
    """An MPS daemon that should run for a GPU.

    `exclusive`: the GPU should be in compute mode EXCLUSIVE_PROCESS meanwhile. `in_use`: programs compute
    through the daemon already; if it has to be started again, their work is lost, and the event says so.
    """

    limits: MpsLimits
    exclusive: bool = False
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class DesiredState:
    """All that should hold on a node. A later one replaces an earlier one completely.

    `device_uuids`: devices whose health and use are watched; one that isn't listed is looked for. `quotas`:
    what the guard enforces. `daemons`: the MPS daemons that should run, by the UUID of their GPU.
    `undecided`: GPUs whose daemon and compute mode stay as they are, because it isn't known yet who uses
    them. On all other GPUs no daemon of this broker runs and the compute mode is the machine's own.
    """

    device_uuids: frozenset[str] = frozenset()
    quotas: QuotaPlan = field(default_factory=QuotaPlan)
    daemons: Mapping[str, DaemonPlan] = field(default_factory=lambda: MappingProxyType({}))
    undecided: frozenset[str] = frozenset()


class MpsState(StrEnum):
    """How a GPU's MPS daemon is. FAILED: it should run and doesn't; the node goes on trying."""

    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class MpsEvent:
    """A GPU's MPS daemon has changed. `reason` says why it FAILED.

    `died`: it ran before, and what computed through it has ended. `restarted`: it had to be started again
    although programs computed through it. `notice` is then the sentence for their users; "" otherwise.
    """

    uuid: str
    state: MpsState
    reason: str = ""
    died: bool = False
    restarted: bool = False
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Readings:
    """What the node read last. `usage` by UUID: nothing for a device that doesn't answer.

    `blind`: devices where no quota is enforced at the moment, and why.
    """

    usage: Mapping[str, Usage] = field(default_factory=lambda: MappingProxyType({}))
    blind: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


NodeEvent = NodeFacts | DeviceHealth | GuardEvent | MpsEvent | Readings
"""NodeFacts: the list of devices has changed, as when a GPU can be read after all."""


class Node(Protocol):
    """A machine with GPUs. All methods on one event loop; a call never waits for a GPU that hangs."""

    async def start(self) -> NodeFacts:
        """Begins, and says what the machine has. If NVML doesn't answer in time, `fault` says so.

        Once it does, the facts come as an event. Raises ConfigError for settings that can't work here.
        """
        ...

    async def apply(self, desired: DesiredState) -> None:
        """Takes over what should hold. Quotas hold when this returns, and new devices were checked once.

        MPS daemons and compute modes follow; `settle` waits for them.
        """
        ...

    async def settle(self, uuid: str) -> None:
        """Tries now, and returns when daemon and compute mode of that GPU are as they should be.

        Raises DeviceFault if they can't be made so; the node then tries again by itself.
        """
        ...

    async def health(self) -> tuple[DeviceHealth, ...]:
        """The present health of every watched device: what earlier events came to."""
        ...

    async def way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Injection:
        """How these devices get into containers of an engine with these `/info` and `/version`.

        Raises ConfigError, with the remedy, if there is no way.
        """
        ...

    def events(self) -> AsyncIterator[NodeEvent]:
        """What happens, in order. One reader; what happens before it reads is kept for it."""
        ...

    async def close(self) -> None:
        """Ends the reading. MPS daemons and compute modes stay as they are, for the notebooks that go on."""
        ...
