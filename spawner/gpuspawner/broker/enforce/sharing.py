"""Which devices this machine has, and how the settings share them: at the start, and what comes later."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ...config.site import GpuSite
from ...core.errors import DeviceFault
from ...core.model import Device, Tier
from ...node.inventory import ComputeMode, DriverFacts, Inventory, NvmlInventory
from ...node.mps.control import MpsProgram, find_program
from ...node.processes import ending_obstacle
from ..decide.pooling import Host, Pooling, make_pooling


class Sharing:
    """One a broker. `find` and `find_late` block and are for one thread at a time."""

    def __init__(self, site: GpuSite, tiers: Sequence[Tier], inventory: Inventory) -> None:
        self._site, self._tiers, self._inventory = site, tiers, inventory
        self._listed: tuple[Device, ...] = ()
        self.mps: MpsProgram = find_program()
        self.driver: DriverFacts | None = None
        """The driver's versions, once `find` has run; None where devices are simulated."""
        self.pooling = Pooling((), {})
        """The devices that were taken up, and their terms."""

    def find(self) -> Pooling:
        """What is shared from the start on. Raises ConfigError for what can't work, DeviceFault."""
        self._listed = self._inventory.devices()
        if isinstance(self._inventory, NvmlInventory):
            self.driver = self._inventory.driver()
        self.pooling = self._pool(self._listed)
        return self.pooling

    def find_late(self, missing: bool) -> Pooling | None:
        """Also the devices that could not be read before; None if there are none.

        Looked for only where some device could not be read, or is `missing` to a lease. What was taken
        up stays where it is: the pools take those that they had first. Raises ConfigError, DeviceFault.
        """
        if not missing and not self._left_out():
            return None
        known = {device.uuid for device in self._listed}
        late = tuple(device for device in self._inventory.devices() if device.uuid not in known)
        if not late:
            return None
        pooling = self.pooling.with_late(self._pool((*self._listed, *late)))
        self._listed += tuple(device for device in late if device.uuid not in pooling.terms)  # in no pool
        return pooling if len(pooling.devices) > len(self.pooling.devices) else None

    def took(self, pooling: Pooling) -> None:
        """What `find_late` found was taken up."""
        self.pooling = pooling
        known = {device.uuid for device in self._listed}
        self._listed += tuple(device for device in pooling.devices if device.uuid not in known)

    def _left_out(self) -> tuple[str, ...]:
        return self._inventory.left_out if isinstance(self._inventory, NvmlInventory) else ()

    def _pool(self, devices: Sequence[Device]) -> Pooling:
        incomplete = bool(self._left_out())
        modes = modes_of(self._inventory, devices)
        host = Host(self._inventory.simulated, self.mps, ending_obstacle(), incomplete, modes)
        return make_pooling(self._site.parsed_pools(), self._tiers, devices, host)


def modes_of(inventory: Inventory, devices: Sequence[Device]) -> dict[str, ComputeMode]:
    """The compute modes of the whole GPUs that say so, by UUID. Blocks."""
    modes = {}
    for device in devices:
        if not device.is_mig:
            with suppress(DeviceFault):
                modes[device.uuid] = inventory.compute_mode(device.uuid)
    return modes
