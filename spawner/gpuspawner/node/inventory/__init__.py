"""The devices of this machine and their use. This folder is the only user of NVML.

All calls here block; callers run them in separate threads (as `health.py` does). NVML's own calls are
thread-safe (NVML API Reference r580, "Known issues and thread safety").
"""

from .calls import is_absent
from .nvml import NvmlInventory
from .opening import is_broken, nvidia_pci_devices, open_inventory
from .patience import Patience
from .protocol import (
    Climate,
    ComputeMode,
    DriverFacts,
    GpuProcess,
    Inventory,
    ProcessUse,
    XidEvent,
    modes_of,
)

__all__ = [
    "Climate",
    "ComputeMode",
    "DriverFacts",
    "GpuProcess",
    "Inventory",
    "NvmlInventory",
    "Patience",
    "ProcessUse",
    "XidEvent",
    "is_absent",
    "is_broken",
    "modes_of",
    "nvidia_pci_devices",
    "open_inventory",
]
