"""Opens the inventory of a site: real GPUs or simulated ones."""

from __future__ import annotations

import logging
from pathlib import Path

from ...config.site import GpuSite
from ...core.errors import ConfigError, DeviceFault
from .calls import is_absent, is_not_loaded
from .nvml import NvmlInventory
from .protocol import Inventory

_log = logging.getLogger(__name__)


def open_inventory(site: GpuSite, machine: str | None = None, joined_as: str = "") -> Inventory:
    """Opens the inventory for `c.GpuSite.inventory`. Blocks; raises ConfigError with the remedy.

    `auto` uses simulated GPUs only if there is no driver or no GPU. A driver that fails is an error: a
    machine with GPUs must not offer simulated ones after a failed upgrade, or before its driver is loaded.
    `machine`: whose simulated GPUs, if the setting names several; by default the first one's. `joined_as`:
    the name of a machine with a broker elsewhere; its simulated GPUs have UUIDs of their own.
    """
    from .simulated import SimulatedInventory

    if site.inventory == "simulated":
        return SimulatedInventory.from_site(site, machine, joined_as)
    try:
        inventory = NvmlInventory()
    except DeviceFault as fault:
        if site.inventory == "nvml" or is_broken(fault):
            raise _no_nvml(fault) from fault
        _log.info("GPUs are simulated: %s", fault)
        return SimulatedInventory.from_site(site, machine, joined_as)
    try:
        if inventory.devices():
            return inventory
    except DeviceFault as fault:
        inventory.close()
        raise _no_nvml(fault) from fault
    inventory.close()
    if site.inventory == "nvml":
        raise _no_nvml(DeviceFault("NVML lists no GPU"))
    _log.info("GPUs are simulated: NVML lists no GPU")
    return SimulatedInventory.from_site(site, machine, joined_as)


def is_broken(fault: DeviceFault) -> bool:
    """Whether the machine has GPUs that may work after a repair, or once their driver is loaded. Blocks."""
    if is_not_loaded(fault):
        return bool(nvidia_pci_devices())  # at a boot, the hub may start before the driver
    return not is_absent(fault)


def _no_nvml(fault: DeviceFault) -> ConfigError:
    return ConfigError(
        f'{fault}. Until that is fixed, c.GpuSite.inventory = "simulated" starts without real GPUs'
    )


def nvidia_pci_devices(root: Path = Path("/sys/bus/pci/devices")) -> tuple[str, ...]:
    """PCI addresses of NVIDIA display controllers, with or without a driver (vendor 0x10de, class 0x03)."""
    found = []
    for device in sorted(root.glob("*")):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            found.append(device.name)
    return tuple(found)
