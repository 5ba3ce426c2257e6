"""The action for an XID of the driver, by NVIDIA's catalogue. Pure.

NVIDIA, "Analyzing Xid Errors with the Xid Catalog" (docs.nvidia.com/deploy/xid-errors, which names drivers up
to R575), for Ampere and newer GPUs: its column "Resolution Bucket (Immediate Action)". If it names a
workflow, the table has the workflow's result. An XID that isn't in the catalogue counts as a fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class XidSeen:
    """An XID that the driver reported of a device, and when."""

    at: datetime
    xid: int


class Resolution(StrEnum):
    """NVIDIA's immediate action. Only with the first two the GPU stays in use."""

    IGNORE = "ignore"
    RESTART_APP = "restart the application"
    RESET_GPU = "reset the GPU"
    RESTART_MACHINE = "restart the machine"
    CONTACT_SUPPORT = "contact support"

    @property
    def is_fault(self) -> bool:
        """Whether the GPU may not be used until somebody has checked it."""
        return self not in (Resolution.IGNORE, Resolution.RESTART_APP)


_CATALOGUE: dict[Resolution, tuple[int | range, ...]] = {
    # 45 is the clean-up after another one (WORKFLOW_XID_45).
    Resolution.IGNORE: (
        14, 37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 157, 160,
        161,
    ),
    Resolution.RESTART_APP: (
        8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, range(82, 87), 88, 89,
        94, range(96, 106), range(126, 136), 139,
    ),
    # 48, 74 and 144 to 150 are workflows (ECC, NVLink) that begin with a reset; 154 says that the driver
    # wants one, or a restart, or neither any more: NVML, asked before a GPU comes back, decides.
    Resolution.RESET_GPU: (
        46, 48, 62, 64, 74, 95, 109, 110, 119, 120, 136, 140, 143, range(144, 151), 154, 155, 156, 158,
    ),
    Resolution.RESTART_MACHINE: (79, 151),
}  # fmt: skip

_RESOLUTIONS = {
    xid: resolution
    for resolution, entries in _CATALOGUE.items()
    for entry in entries
    for xid in (entry if isinstance(entry, range) else (entry,))
}
_ADVICE = {
    Resolution.RESET_GPU: "An admin has to reset it (`nvidia-smi --gpu-reset`)",
    Resolution.RESTART_MACHINE: "An admin has to restart the machine",
    Resolution.CONTACT_SUPPORT: "An admin has to check it (`dmesg`)",
}


def resolution(xid: int) -> Resolution:
    """What to do about an XID; an unknown one is a fault."""
    return _RESOLUTIONS.get(xid, Resolution.CONTACT_SUPPORT)


def meaning(xid: int) -> str:
    """What an XID says of the GPU, in a few words, for the map of devices."""
    match resolution(xid):
        case Resolution.IGNORE:
            return "needs no action, GPU stays in service"
        case Resolution.RESTART_APP:
            return "error of a program, GPU stays in service"
        case found:
            return f"fault of the GPU: {found.value}"


def sentence(xid: int) -> str:
    """Why the GPU is out of service, for its holder and the admin. Only for a fault."""
    return f"The driver reported a fault of the GPU (XID {xid}). {_ADVICE[resolution(xid)]}"
