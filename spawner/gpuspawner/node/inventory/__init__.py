"""Which devices this machine has, and what goes on on them: the only user of NVML.

Everything here blocks; callers give it threads of its own (`health.py` does). NVML's own calls are
thread-safe (NVML API Reference r580, "Known issues and thread safety").
"""

from .calls import is_absent
from .nvml import NvmlInventory
from .opening import nvidia_pci_devices, open_inventory
from .patience import Patience
from .protocol import ComputeMode, DriverFacts, GpuProcess, Inventory, XidEvent, modes_of

__all__ = [
    "ComputeMode",
    "DriverFacts",
    "GpuProcess",
    "Inventory",
    "NvmlInventory",
    "Patience",
    "XidEvent",
    "is_absent",
    "modes_of",
    "nvidia_pci_devices",
    "open_inventory",
]
