"""Which GPUs of the machine a run uses, and the file with the pools and tiers of its system."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gpuspawner.config.site import GpuSite
from gpuspawner.node.inventory import open_inventory

CHOSEN = "GPUSPAWNER_GPUS"
"""The numbers of the GPUs to be used; `apart.sh` sets it, so that two runs share a machine."""


def uuids() -> list[str]:
    """The GPUs of this run: those whose numbers GPUSPAWNER_GPUS names ("2,3"), or all of the machine."""
    inventory = open_inventory(GpuSite(inventory="nvml"))
    found = [device.uuid for device in inventory.devices()]
    inventory.close()
    chosen = os.environ.get(CHOSEN, "")
    return [found[int(number)] for number in chosen.split(",")] if chosen else found


def write_site(folder: Path, site: dict[str, Any]) -> Path:
    """The file with pools and tiers, read whenever hub or broker starts."""
    if CHOSEN in os.environ:
        pools = site.get("pools") or [{"name": "whole", "mode": "whole"}]
        site = {**site, "pools": [{"devices": uuids(), **pool} for pool in pools]}
    file = folder / "site.json"
    file.write_text(json.dumps(site))
    return file
