"""The facts for `doctor`, as plain values, so that its checks can be tested without the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...broker.decide.place.pooling import Pooling
from ...core.model import Device, Tier
from ...node.injection import EngineFacts
from ...node.inventory import ComputeMode, DriverFacts
from ...protocol.history import MachineFindings
from .lab import LabFacts
from .open_files import OpenFiles


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image that a tier starts. `cuda` and `min_driver` are its labels `gpuspawner.…`; "" if none."""

    reference: str
    present: bool
    cuda: str = ""
    min_driver: str = ""


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """The ledger's place; `lease_count` None: it doesn't exist yet; `error`: why it can't be read."""

    place: str
    lease_count: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """Whether a broker answers on the socket, and its devices."""

    socket_path: str
    error: str = ""
    simulated: bool = False
    device_count: int = 0
    withdrawn: tuple[str, ...] = ()
    fault: str = ""
    """Why it can't list the GPUs now."""


@dataclass(frozen=True, slots=True)
class MetadataFacts:
    """The cloud's metadata service: whether it answers this machine, and whether labs are kept from it.

    `rules_missing` None: this user can't read the firewall.
    """

    answers: bool
    block: bool = True
    """The setting `block_metadata`."""
    rules_missing: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """The labs' network, as the settings name it and as Docker has it; `error` if Docker doesn't say."""

    name: str
    subnet: str
    error: str = ""
    present: bool = False
    subnets: tuple[str, ...] = ()
    isolated: bool = True
    """Whether no lab reaches another."""
    hub_listens: bool = False
    """Whether the hub listens on the host's address in it."""
    address_here: bool = False
    running: tuple[str, ...] = ()
    """The names of the running containers in it."""
    metadata: MetadataFacts | None = None
    strangers: tuple[str, ...] = ()
    """Containers with the names of labs that no gpuspawner has made, as DockerSpawner leaves them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts; None or "" for an unknown one, with the reason in another field."""

    config_error: str = ""
    spawner_error: str = ""
    """Why the hub doesn't start with its settings of labs."""
    inventory_setting: str = "auto"
    injection_setting: str = "auto"
    simulated: bool = False
    devices: tuple[Device, ...] = ()
    inventory_error: str = ""
    driver: DriverFacts | None = None
    driver_error: str = ""
    pci_gpus: tuple[str, ...] = ()
    modes: Mapping[str, ComputeMode | None] = field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()
    pooling: Pooling | None = None
    pooling_error: str = ""
    engine: EngineFacts | None = None
    engine_error: str = ""
    cgroup_version: str | None = None
    mps_path: str | None = None
    mps_version: str | None = None
    cuda_bindings_version: str | None = None
    images: tuple[ImageFacts, ...] = ()
    ledger: LedgerFacts | None = None
    broker: BrokerFacts | None = None
    lab: LabFacts | None = None
    network: NetworkFacts | None = None
    open_files: tuple[OpenFiles, ...] = ()
    machines: tuple[MachineFindings, ...] = ()
    """What was found on the other machines, by their agents."""
    swarm_metadata: MetadataFacts | None = None
    """Of the network by which labs of a Swarm leave this machine; None outside of a Swarm."""
