"""The labels of a container: their names, and the only code that writes and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from .errors import LeaseConflict
from .model import Lease, LeaseState, is_lease_id
from .want import Mode, Want

LEASE = "gpuspawner.lease"
"""On every container that holds a lease; its value is the lease's id."""
HUB = "gpuspawner.hub"
USER = "gpuspawner.user"
SERVER = "gpuspawner.server"
TIER = "gpuspawner.tier"
STATE_FOLDER = "gpuspawner.state-folder"
"""The state folder of the hub that made the container: two hubs by mistake of the same name differ in it."""
BROKER = "gpuspawner.broker"
"""The broker that the container belongs to (its state folder); other brokers leave the container alone."""
_DEVICES = "gpuspawner.devices"
"""The leased devices' UUIDs, comma-separated: a broker without its ledger adopts the lease from them."""
_MODE = "gpuspawner.mode"
"""The mode of the lease; without this label it is "whole". Only slices have the next two labels;
a lease in turns has the first of them, for what is promised to it while it is awake."""
_MEMORY = "gpuspawner.memory-bytes"
_COMPUTE = "gpuspawner.compute-percent"
NODE = "gpuspawner.node"
"""Of a Swarm's node, a lab's service and a home: the name of the machine."""
MEMORY_LIMIT = "gpuspawner.mem-limit-bytes"
"""How much main memory the lab may use; where there is a limit."""
HOME_SIZE = "gpuspawner.home-size-bytes"
"""Of a volume: how large this home may become; where its driver took the limit."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a container. The values are labels; we only remove containers whose labels match.

    `state_folder` is that of the hub; "" where no hub makes the container.
    """

    hub: str
    user: str
    server: str
    tier: str
    state_folder: str = ""

    def labels(self) -> dict[str, str]:
        """The labels of every container, with or without a lease."""
        folder = {STATE_FOLDER: self.state_folder} if self.state_folder else {}
        return {HUB: self.hub, USER: self.user, SERVER: self.server, TIER: self.tier, **folder}

    def owns(self, labels: Mapping[str, str] | None) -> bool:
        """Whether a container with these labels belongs to this hub, user and server; the tier may differ.

        One without a state folder in its labels belongs to whoever has the name.
        """
        mine = self.labels()
        if labels is None or any(labels.get(key) != mine[key] for key in (HUB, USER, SERVER)):
            return False
        return not self.state_folder or labels.get(STATE_FOLDER, self.state_folder) == self.state_folder


def lease_labels(lease: Lease) -> dict[str, str]:
    """The labels of a container that holds `lease`; `broker_label` adds the one that names its broker."""
    labels = {
        LEASE: lease.id,
        **Owner(lease.hub, lease.user, lease.server, lease.tier).labels(),
        _DEVICES: ",".join(lease.device_uuids),
    }
    if lease.mode is not Mode.WHOLE:
        labels[_MODE] = lease.mode.value
    if lease.mode in (Mode.SLICE, Mode.TURNS):
        labels[_MEMORY] = str(lease.memory_bytes)
    if lease.mode is Mode.SLICE and lease.mps:
        labels[_COMPUTE] = f"{lease.compute_percent:g}"
    return labels


def broker_label(broker: str) -> dict[str, str]:
    """The label that says to which broker a container belongs."""
    return {BROKER: broker}


@dataclass(frozen=True, slots=True)
class ContainerLabels:
    """The values of a container's labels, unchecked; "" for a missing label.

    Anybody who may use Docker can write them, so the last three may be any text.
    """

    lease_id: str = ""
    broker: str = ""
    hub: str = ""
    user: str = ""
    server: str = ""
    tier: str = ""
    device_uuids: tuple[str, ...] = ()
    mode: str = ""
    memory_bytes: str = ""
    compute_percent: str = ""

    @property
    def tells_lease(self) -> bool:
        """Whether they name the lease, its holder and its devices."""
        return bool(is_lease_id(self.lease_id) and self.hub and self.user and self.device_uuids)

    def lease(self, container_id: str, now: datetime, memory_bytes: int) -> Lease:
        """The lease that they describe, as running in that container since `now`.

        `memory_bytes` is the sum over its whole devices. Raises LeaseConflict for a slice if they don't
        don't tell.
        """
        want, held = self._held(memory_bytes)
        return Lease(
            id=self.lease_id,
            hub=self.hub,
            user=self.user,
            server=self.server,
            tier=self.tier,
            state=LeaseState.RUNNING,
            want=want,
            created_at=now,
            since=now,
            device_uuids=self.device_uuids,
            memory_bytes=held,
            compute_percent=100.0 if want.compute_percent is None else want.compute_percent,
            container_id=container_id,
            mps=want.compute_percent is not None,
        )

    def _held(self, memory_bytes: int) -> tuple[Want, int]:
        """The request, and the memory that the lease holds on all devices together."""
        count = len(self.device_uuids)
        if self.mode in ("", Mode.WHOLE):
            return Want(count), memory_bytes
        if self.mode == Mode.MIG:
            return Want(count, mode=Mode.MIG), memory_bytes
        try:
            mode, size = Mode(self.mode), int(self.memory_bytes)
            percent = float(self.compute_percent) if self.compute_percent else None
        except ValueError:
            raise LeaseConflict("Its labels don't say how much of its device it holds.") from None
        if mode is Mode.TURNS and size > 0:
            return Want(1, mode=mode, memory_bytes=size), size
        known = size > 0 and (percent is None or 0 < percent <= 100) and count == 1
        if mode is not Mode.SLICE or not known:
            raise LeaseConflict("Its labels don't say how much of its device it holds.")
        return Want(1, mode=mode, memory_bytes=size, compute_percent=percent), size


def parse(labels: Mapping[str, str] | None) -> ContainerLabels:
    """Reads a container's labels as text: an image or a user may have written them too."""
    found = labels or {}
    return ContainerLabels(
        lease_id=found.get(LEASE, ""),
        broker=found.get(BROKER, ""),
        hub=found.get(HUB, ""),
        user=found.get(USER, ""),
        server=found.get(SERVER, ""),
        tier=found.get(TIER, ""),
        device_uuids=tuple(uuid for uuid in found.get(_DEVICES, "").split(",") if uuid),
        mode=found.get(_MODE, ""),
        memory_bytes=found.get(_MEMORY, ""),
        compute_percent=found.get(_COMPUTE, ""),
    )
