"""What hub and broker must both know, read by both from one `jupyterhub_config.py`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from traitlets import Dict, Enum, Float, List, Unicode, default
from traitlets.config import Configurable

from .errors import ConfigError
from .model import Mode, Tier
from .units import parse_bytes

DEFAULT_TIERS: list[dict[str, Any]] = [
    {
        "name": "cpu",
        "title": "CPU",
        "description": "No GPU. Starts at once.",
    },
    {
        "name": "gpu",
        "title": "One GPU",
        "description": "A whole GPU of your own.",
        "devices": 1,
    },
]

_TIER_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")
_TIER_KEYS = {
    "name", "title", "description", "devices", "model", "mode", "image", "mem_limit", "cpu_limit",
}  # fmt: skip


class GpuSite(Configurable):
    """Settings of the whole installation: `c.GpuSite.<name>` in `jupyterhub_config.py`."""

    tiers = List(
        Dict(),
        help="""
        What users can pick on the spawn page, in this order; the first is preselected.

        Each is a dict: `name` (lower case; also what the admin page shows), `title`, and, where
        wanted, `description`, `devices` (how many GPUs; 0, the default, is a CPU server), `model`
        (part of the GPU's name, "H100"), `mode` ("whole" for now), `image`, `mem_limit` ("16G",
        main memory), `cpu_limit` (cores).

        Default: `cpu` and `gpu` (one whole device). A name that is not in the list is refused.

        Example::

            c.GpuSite.tiers = [
                {"name": "cpu", "title": "CPU"},
                {"name": "gpu", "title": "One GPU", "devices": 1},
                {"name": "pair", "title": "Two H100", "devices": 2, "model": "H100"},
            ]
        """,
    ).tag(config=True)

    @default("tiers")
    def _tiers_default(self) -> list[dict[str, Any]]:
        return [dict(tier) for tier in DEFAULT_TIERS]

    state_dir = Unicode(
        help="""
        Folder of the ledger, the socket and what the broker writes for each lease.

        Default: `$GPUSPAWNER_STATE_DIR`, else `/var/lib/gpuspawner`. It must outlast restarts: a
        lost ledger is rebuilt from the running containers, but the history is gone.
        Example: `c.GpuSite.state_dir = "/srv/gpuspawner"`
        """,
    ).tag(config=True)

    @default("state_dir")
    def _state_dir_default(self) -> str:
        return os.environ.get("GPUSPAWNER_STATE_DIR", "/var/lib/gpuspawner")

    socket_path = Unicode(
        help="""
        Unix socket on which the broker answers the spawner. Mode 0600: only the hub's own user.

        Default: `broker.sock` in `state_dir`.
        Example: `c.GpuSite.socket_path = "/run/gpuspawner/broker.sock"`
        """,
    ).tag(config=True)

    @default("socket_path")
    def _socket_path_default(self) -> str:
        return str(Path(self.state_dir) / "broker.sock")

    inventory = Enum(
        ("auto", "nvml", "simulated"),
        default_value="auto",
        help="""
        Where devices come from: `nvml` (real GPUs), `simulated` (none; containers run on the CPU), `auto`.

        Default `auto`: real ones where NVML finds any, else simulated. Pages, status
        and notebooks say "simulated" wherever a simulated GPU is shown.
        Example: `c.GpuSite.inventory = "nvml"` refuses to start on a machine without GPUs.
        """,
    ).tag(config=True)

    simulated_devices = Unicode(
        "2 x H100 80GB",
        help="""
        The simulated GPUs: "count x model memory", several kinds separated by commas.

        Default: two, enough to see the queue with three users.
        Example: `c.GpuSite.simulated_devices = "4 x H100 80GB, 2 x A100 40GB"`
        """,
    ).tag(config=True)

    injection = Enum(
        ("auto", "cdi", "nvidia", "none"),
        default_value="auto",
        help="""
        How a leased device gets into its container: `cdi` (Docker Engine 25 or newer with a CDI
        spec), `nvidia` (nvidia-container-toolkit's hook), `none` (simulated devices only).

        Default `auto`: what a probe of the engine finds, CDI first; `gpuspawner doctor` shows it.
        Example: `c.GpuSite.injection = "cdi"`
        """,
    ).tag(config=True)

    queue_timeout = Float(
        900.0,
        min=1.0,
        help="""
        Seconds that a spawn waits for a device before it ends with a sentence and the offer of CPU.

        Default: 15 minutes, longer than most people wait in front of a page. The spawner's
        `start_timeout` is raised to cover it.
        Example: `c.GpuSite.queue_timeout = 300`
        """,
    ).tag(config=True)

    def parsed_tiers(self) -> tuple[Tier, ...]:
        """The tiers as values. Raises ConfigError with the remedy for what can't work."""
        return parse_tiers(self.tiers)


def parse_tiers(raw: list[dict[str, Any]]) -> tuple[Tier, ...]:
    """Tiers from their settings. Raises ConfigError, naming tier and key, for what can't work."""
    if not raw:
        raise ConfigError("c.GpuSite.tiers is empty: give at least one tier, or leave the default")
    tiers = tuple(_parse_tier(item) for item in raw)
    names = [tier.name for tier in tiers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"c.GpuSite.tiers has {twice[0]!r} twice: give each tier a name of its own")
    return tiers


def _parse_tier(raw: dict[str, Any]) -> Tier:
    name = raw.get("name")
    if not isinstance(name, str) or not _TIER_NAME.fullmatch(name):
        raise ConfigError(
            f"c.GpuSite.tiers: name {name!r} can't be used: take lower-case letters, digits, '-', '_'"
        )
    where = f"c.GpuSite.tiers: tier {name!r}"
    unknown = sorted(set(raw) - _TIER_KEYS)
    if unknown:
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}: use {', '.join(sorted(_TIER_KEYS))}")
    devices = raw.get("devices", 0)
    if not isinstance(devices, int) or isinstance(devices, bool) or not 0 <= devices <= 64:
        raise ConfigError(f"{where}: devices is {devices!r}: give a whole number from 0 (CPU) to 64")
    mode = raw.get("mode", Mode.WHOLE)
    if mode != Mode.WHOLE:
        raise ConfigError(f"{where}: mode is {mode!r}: this version shares devices in mode 'whole' only")
    cpu_limit = raw.get("cpu_limit")
    if cpu_limit is not None and (not isinstance(cpu_limit, int | float) or cpu_limit <= 0):
        raise ConfigError(f"{where}: cpu_limit is {cpu_limit!r}: give a number of cores, like 2 or 0.5")
    mem_limit = raw.get("mem_limit")
    return Tier(
        name=name,
        title=str(raw.get("title") or name),
        description=str(raw.get("description", "")),
        device_count=devices,
        model=str(raw["model"]) if raw.get("model") else None,
        image=str(raw["image"]) if raw.get("image") else None,
        mem_limit_bytes=None if mem_limit is None else parse_bytes(mem_limit, f"{where}: mem_limit"),
        cpu_limit=None if cpu_limit is None else float(cpu_limit),
    )
