"""The interface between the broker and a machine with GPUs.

Only plain values are passed: no NVML handles, functions or objects of the broker. There are async calls and
one stream of events, so that a node can also be a process on another machine. `local.py` is this machine.

The broker sends the complete desired state (`DesiredState`), and the node establishes it, with retries if
needed. The node reads NVML by itself and reports changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from ..core.disk import Disk
from ..core.model import Device, DeviceHealth
from .checkpoint.hands import SeatReading, TurnHands, TurnReadings
from .checkpoint.host import Seat
from .checkpoint.outcome import Condition, Obstacle, Outcome
from .guard.guard import GuardEvent
from .guard.judge import Offence, Quota, QuotaPlan
from .injection import Access, Injection
from .inventory import ComputeMode, DriverFacts
from .labs import LabFolders, Labs
from .mps.control import MpsLimits, MpsProgram
from .processes import Process
from .usage import Usage
from .users import Users
from .xid import XidSeen, meaning, resolution

__all__ = [
    "Access",
    "ComputeMode",
    "Condition",
    "Contact",
    "DaemonPlan",
    "DesiredState",
    "DriverFacts",
    "GuardEvent",
    "Injection",
    "LabFolders",
    "Labs",
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
    "Process",
    "Quota",
    "QuotaPlan",
    "Readings",
    "Seat",
    "SeatReading",
    "TurnHands",
    "TurnReadings",
    "Usage",
    "Users",
    "XidSeen",
    "meaning",
    "resolution",
]


@dataclass(frozen=True, slots=True)
class Contact:
    """How the broker reaches a machine through its agent; known on the broker's side only.

    `release` is the version of gpuspawner there; "" if not known. `heard_at`: when it was heard last; None
    while it is connected, and if it never was. `refused`: its agent connects, but the broker can't work with
    it. `rival`: a sentence about another agent with the same certificate, which is refused; "" without one.
    """

    release: str = ""
    heard_at: datetime | None = None
    refused: bool = False
    rival: str = ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a machine has, according to the last listing of its GPUs.

    `fault`: why its GPUs can't be listed now; "" if they can. `left_out`: one sentence for each GPU that
    can't be read. `compute_modes`: of the whole GPUs, by UUID; None if it can't be read. `driver` is None
    if GPUs are simulated or can't be listed. `guard_obstacle`: why processes of containers can't be ended
    here, with the remedy. `mps_pipes`: the folder with a pipe folder for each GPU's MPS daemon; "" if MPS
    is not used. `memory_bytes`: the machine's main memory; None if it doesn't say. `turns_obstacle`: why GPUs
    can't be used in turns here, with the remedy; "" if nothing is known against it. `turns_move`: whether the
    driver can wake a program on another GPU. `away`: why the machine can't be reached now, for people; "" if
    it can. All the rest is then as it was when it could. `lease_folders`: the folder there that has those of
    the leases; "" if the broker writes them itself (`labs`). `contact` is how its agent is reached.
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
    memory_bytes: int | None = None
    turns_obstacle: str = ""
    turns_move: bool = True
    away: str = ""
    lease_folders: str = ""
    contact: Contact = field(default_factory=Contact)

    @property
    def incomplete(self) -> bool:
        """Whether the machine may have devices that are not listed."""
        return bool(self.fault or self.left_out)


@dataclass(frozen=True, slots=True)
class DaemonPlan:
    """An MPS daemon that should run for a GPU.

    `exclusive`: the GPU should be in compute mode EXCLUSIVE_PROCESS meanwhile. `in_use`: programs already
    compute through the daemon; if it must be restarted, their work is lost, and the event says so.
    """

    limits: MpsLimits
    exclusive: bool = False
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The complete desired state of a node. It replaces the earlier one completely.

    `device_uuids`: devices whose health and use are watched; the node keeps looking for one that isn't
    listed. `quotas`: what the guard enforces. `daemons`: the MPS daemons that should run, by the UUID of
    their GPU. `undecided`: GPUs whose daemon and compute mode must not change, because it isn't known yet who
    uses them. On all other GPUs, no daemon of this broker runs and the machine's own compute mode is set.
    """

    device_uuids: frozenset[str] = frozenset()
    quotas: QuotaPlan = field(default_factory=QuotaPlan)
    daemons: Mapping[str, DaemonPlan] = field(default_factory=lambda: MappingProxyType({}))
    undecided: frozenset[str] = frozenset()


class MpsState(StrEnum):
    """The state of a GPU's MPS daemon. FAILED: it should run, but doesn't; the node keeps trying."""

    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class MpsEvent:
    """A GPU's MPS daemon has changed. `reason` says why it FAILED.

    `died`: it ran before, and the programs that used it have ended. `restarted`: it had to be restarted
    although programs used it. `notice` is then the sentence for their users; "" otherwise.
    """

    uuid: str
    state: MpsState
    reason: str = ""
    died: bool = False
    restarted: bool = False
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Readings:
    """The node's last readings. `usage` by UUID, without devices that don't answer.

    `blind`: devices where no quota is enforced at the moment, and why. `xids`: of each device the newest
    since the node began, the newest first, also those that need no action.
    """

    usage: Mapping[str, Usage] = field(default_factory=lambda: MappingProxyType({}))
    blind: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    xids: Mapping[str, tuple[XidSeen, ...]] = field(default_factory=lambda: MappingProxyType({}))


NodeEvent = NodeFacts | DeviceHealth | GuardEvent | MpsEvent | Readings
"""What a node reports. NodeFacts: the list of devices has changed, for example because a GPU answers
again."""


class Node(Protocol):
    """A machine with GPUs. Call all methods on one event loop; no call waits for a GPU that hangs."""

    async def start(self) -> NodeFacts:
        """Starts the node and returns what the machine has. If NVML doesn't answer in time, `fault` says so.

        When it does, the node sends the facts as an event. Raises ConfigError for settings that can't work
        here.
        """
        ...

    async def apply(self, desired: DesiredState) -> None:
        """Sets the desired state. When this returns, quotas are enforced and new devices were checked once.

        MPS daemons and compute modes are changed in the background; `settle` waits for them.
        """
        ...

    async def settle(self, uuid: str) -> None:
        """Tries now, and returns when daemon and compute mode of that GPU are in the desired state.

        Raises DeviceFault if that fails; the node then retries by itself.
        """
        ...

    async def health(self) -> tuple[DeviceHealth, ...]:
        """The current health of every watched device, after all earlier events."""
        ...

    async def way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        """How containers of an engine with these `/info` and `/version` get these devices.
        Raises ConfigError, with the remedy, if they get none of them.
        """
        ...

    async def service_way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        """As `way_in`, for tasks of a Swarm's services, which take no device requests."""
        ...

    async def processes(self, uuid: str) -> tuple[Process, ...]:
        """The processes that use the device now, without those that have just ended.

        Raises DeviceFault if NVML doesn't say in time.
        """
        ...

    async def reload_stamp(self) -> int | None:
        """A number that changes when systemd loads its units again; None without systemd."""
        ...

    async def disks(self, docker_root: str) -> tuple[Disk, ...]:
        """The disks with Docker's folder (of the engine's `/info`) and with the broker's state."""
        ...

    def labs(self) -> Labs | None:
        """The machine's own Docker and lease folders; None if the broker's are used, as on its machine."""
        ...

    def turn_hands(self) -> TurnHands | None:
        """How leases in turns are read, paused, moved and woken; None while no real GPUs are listed."""
        ...

    async def check_turns(self, uuids: Sequence[str]) -> str:
        """Why these GPUs can't be used in turns now, for people; "" if they can, or are simulated.

        The first time with a version of the driver it tries it with a program of its own, for about 5 s.
        """
        ...

    def events(self) -> AsyncIterator[NodeEvent]:
        """Yields events in order, for one reader; earlier events are kept until it reads."""
        ...

    async def close(self) -> None:
        """Stops the node. MPS daemons and compute modes don't change, because notebooks keep running."""
        ...
