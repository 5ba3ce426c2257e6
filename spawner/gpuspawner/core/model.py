"""The data types of gpuspawner, as frozen dataclasses: what hub, broker and node exchange.

Sizes are bytes, percentages 0-100, times timezone-aware UTC. "Not available" is None, never zero.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from .turn import TurnSettings
from .want import NO_GPU, Mode, Want

__all__ = [
    "ContainerPatch", "Device", "DeviceHealth", "GpuRequest", "Guarantee", "Lease", "LeaseState", "Mode",
    "Pool", "Tier", "Want", "guarantee_of", "is_lease_id",
]  # fmt: skip

_LEASE_ID = re.compile(r"[0-9a-f]{32}")


class Guarantee(StrEnum):
    """How a quota is enforced: by hardware, by the guard outside the container, or not at all (simulated)."""

    HARD = "hard"
    GUARDED = "guarded"
    NONE = "none"


def guarantee_of(mode: Mode, simulated: bool) -> Guarantee:
    """The guarantee of a quota in this mode (design, section 6); NONE for simulated devices."""
    if simulated:
        return Guarantee.NONE
    return Guarantee.GUARDED if mode in (Mode.SLICE, Mode.TURNS) else Guarantee.HARD


def is_lease_id(value: object) -> bool:
    """Whether `value` has the form of a lease's id: 32 lower-case hexadecimal digits."""
    return isinstance(value, str) and _LEASE_ID.fullmatch(value) is not None


class LeaseState(StrEnum):
    """`waiting → reserved → running ⇄ asleep → releasing → closed`."""

    WAITING = "waiting"
    RESERVED = "reserved"
    RUNNING = "running"
    ASLEEP = "asleep"
    RELEASING = "releasing"
    CLOSED = "closed"

    @property
    def holds_devices(self) -> bool:
        """Whether a lease in this state keeps its devices from everybody else."""
        return self in _HOLDING


_HOLDING = frozenset({LeaseState.RESERVED, LeaseState.RUNNING, LeaseState.ASLEEP, LeaseState.RELEASING})


@dataclass(frozen=True, slots=True)
class Device:
    """A physical GPU or a MIG instance, named by its UUID.

    `index` is for display only: it changes when a driver is reloaded. `memory_clock_hz` is the
    maximum; with `memory_bus_width_bits` it gives the bandwidth. `parent_uuid` and `mig_profile`
    ("1g.10gb") are set for MIG. `node` is the name of its machine. `gpu_fraction` (0-1) is the part of the
    physical GPU that it is: 1 for a whole GPU, less for a MIG instance.
    """

    uuid: str
    model: str
    memory_bytes: int
    compute_capability: tuple[int, int] | None = None
    sm_count: int | None = None
    memory_bus_width_bits: int | None = None
    memory_clock_hz: int | None = None
    index: int | None = None
    parent_uuid: str | None = None
    simulated: bool = False
    mig_profile: str | None = None
    node: str = ""
    gpu_fraction: float = 1.0

    @property
    def is_mig(self) -> bool:
        """Whether it is a MIG instance."""
        return self.parent_uuid is not None or self.mig_profile is not None

    @property
    def bandwidth_bytes_per_second(self) -> int | None:
        """Peak memory bandwidth: two transfers per clock over the whole bus, as all GDDR and HBM do."""
        if self.memory_bus_width_bits is None or self.memory_clock_hz is None:
            return None
        return 2 * self.memory_clock_hz * self.memory_bus_width_bits // 8


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """Whether a device may be leased, and if not, a sentence that says why.

    `healthy=False` means out of service: nobody new gets it, and its holder is told. A device that
    could not be read is out of service too: an unknown state never counts as free. `new_only`: containers
    that use it already are not affected, so their users are told nothing. `needs_admin`: it stays so until
    an admin has done what `reason` says, so nobody is put in the queue for it. `machine_away`: its machine
    can't be reached; labs there go on, and its holder is told so.
    """

    uuid: str
    healthy: bool
    reason: str = ""
    since: datetime | None = None
    new_only: bool = False
    needs_admin: bool = False
    machine_away: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """Devices that are shared in one mode, as the settings name them.

    `uuids` lists them. Without it, the pool takes `count` devices whose name contains `model` (in upper or
    lower case; None: any name; `count` None: all of them that no other pool names). Without `uuids`, `model`
    and `count`, it takes all devices that no other pool names. A slice pool has `slices` equal slices, or
    slices of the `sizes_bytes`. `mps` None: MPS is used if it is installed. `turns` is for mode `turns`.
    `nodes` are the machines that it has devices of; () for all.
    """

    name: str
    mode: Mode = Mode.WHOLE
    uuids: tuple[str, ...] = ()
    model: str | None = None
    count: int | None = None
    slices: int | None = None
    sizes_bytes: tuple[int, ...] = ()
    compute_percent: float | None = None
    mps: bool | None = None
    manage_compute_mode: bool = False
    turns: TurnSettings | None = None
    nodes: tuple[str, ...] = ()

    @property
    def takes_all(self) -> bool:
        """Whether it takes all devices that no other pool names."""
        return not self.uuids and self.model is None and self.count is None


@dataclass(frozen=True, slots=True)
class Tier:
    """What a user picks on the spawn page: a name, what its servers want of the devices, an image, limits.

    `queue_timeout_seconds` is how long its servers wait for a device; None: as long as the site says.
    `shm_bytes` is the size of /dev/shm, `pids` the maximum number of processes, `cpu_shares` Docker's
    weight; for each, None means that the site's rule for all labs applies.
    """

    name: str
    title: str
    description: str = ""
    want: Want = NO_GPU
    image: str | None = None
    mem_limit_bytes: int | None = None
    cpu_limit: float | None = None
    queue_timeout_seconds: float | None = None
    shm_bytes: int | None = None
    pids: int | None = None
    cpu_shares: int | None = None
    default: bool = False
    """Whether it is preselected and used if nothing is chosen; without such a tier, the first one is."""

    @property
    def needs_gpu(self) -> bool:
        """Whether a server of this tier needs a lease."""
        return self.want.device_count > 0


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """What the spawner asks the broker for. The lease gets this id, so asking twice gives one lease.

    `lease_id` is 32 hexadecimal digits chosen by the hub's side; `groups` are the user's groups in the hub.
    `image` is the id of the image that the lab runs: machines that have it come first; "" if not known.
    """

    lease_id: str
    hub: str
    user: str
    server: str
    tier: str
    want: Want
    groups: tuple[str, ...] = ()
    image: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """What one server holds, or waits for.

    `want` is what was asked for; `device_uuids`, `memory_bytes` (the sum over the devices),
    `compute_percent` and `mps` are what it holds. In turns, `device_uuids` are all GPUs that its container
    can reach, first the one where it begins; `memory_bytes` is what it may have of one while it is awake.
    `since` is when the current state began; `created_at`
    orders the queue; `notice` is a sentence for the holder ("" when all is well).
    """

    id: str
    hub: str
    user: str
    server: str
    tier: str
    state: LeaseState
    want: Want
    created_at: datetime
    since: datetime
    device_uuids: tuple[str, ...] = ()
    memory_bytes: int = 0
    compute_percent: float = 100.0
    container_id: str | None = None
    notice: str = ""
    reason: str = ""
    """Why it ended; empty until then."""
    mps: bool = False
    """Whether MPS enforces `compute_percent` (or would, if the devices weren't simulated)."""
    groups: tuple[str, ...] = ()
    """The user's groups at the time of the request."""
    node: str = ""
    """The machine of its devices; "" while it holds none."""
    device_fractions: tuple[float, ...] = ()
    """For each of its devices, the part of the physical GPU (0-1) that it is charged for; () if not known."""
    kept_asleep: str = ""
    """Why it gets no turn on a GPU for now, for its user; "" if it gets its turns, or isn't in turns."""

    @property
    def gpu_fraction(self) -> float:
        """GPU-seconds charged per second; if the parts are not known, whole devices are charged."""
        return math.fsum(self.device_fractions) if self.device_fractions else float(len(self.device_uuids))

    @property
    def mode(self) -> Mode:
        """How it holds its devices: the mode of the request."""
        return self.want.mode


@dataclass(frozen=True, slots=True)
class ContainerPatch:
    """What a lease changes in its container: plain JSON values, as docker-py's create takes them.

    `device_requests` replaces the container's whole list. Each is a dict with the Engine API's
    keys (`Driver`, `DeviceIDs`, `Capabilities`, `Count`, `Options`). `mounts` are dicts with
    `source`, `target`, `type` and `read_only`.
    """

    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    mounts: tuple[dict[str, Any], ...] = ()
    device_requests: tuple[dict[str, Any], ...] = ()
    runtime: str | None = None
