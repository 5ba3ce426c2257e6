"""Facts about one lab from settings and machine: its configured limits, its volumes, the machine's size."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dockerspawner import DockerSpawner

from ..core.limits import ConfiguredLimits, Limits, Machine
from ..core.model import Tier
from ..core.units import parse_bytes
from .engine_rights import may_raise_limits
from .home import Volume


@dataclass(frozen=True, slots=True)
class Configured:
    """`mem_limit` (bytes) and `cpu_limit` (cores) of a spawner; None or 0 if there is none."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None


def configured_limits(
    tier: Tier,
    general: Configured,
    own: Configured,
    extra_host: Mapping[str, Any],
    overridden: Collection[str] = (),
) -> ConfiguredLimits:
    """What is configured for a lab of this tier.

    Memory and CPU come from the first of these that is set: `extra_host_config`; a group's override of the
    settings `overridden`, or a hook on this spawner (`own` differs from `general`, the settings for all
    spawners); the tier; `general`. Raises ConfigError.
    """
    memory = own.memory_bytes
    if memory == general.memory_bytes and "mem_limit" not in overridden:
        memory = tier.mem_limit_bytes or memory
    if "mem_limit" in extra_host:
        memory = parse_bytes(extra_host["mem_limit"], "mem_limit of extra_host_config")
    cores = own.cpu_cores
    if cores == general.cpu_cores and "cpu_limit" not in overridden:
        cores = tier.cpu_limit or cores
    return ConfiguredLimits(memory or None, cores or None, tier.shm_bytes, tier.pids, tier.cpu_shares)


def limits_env(limits: Limits) -> dict[str, str]:
    """The environment variables with which JupyterHub tells a server its limits."""
    known = {"MEM_LIMIT": limits.memory_bytes, "CPU_LIMIT": limits.cpu_cores}
    return {name: str(value) for name, value in known.items() if value}


def volumes_of(spawner: DockerSpawner) -> tuple[Volume, ...]:
    """Every volume of DockerSpawner's settings, with the template of its name."""

    def fill(template: str) -> str:
        return str(spawner.format_volume_name(template, spawner))

    found = []
    for setting, read_only in ((spawner.volumes, False), (spawner.read_only_volumes, True)):
        for template, value in setting.items():
            bind = value if isinstance(value, dict) else {"bind": value}
            modes = str(bind.get("mode", "rw")).split(",")
            found.append(Volume(template, fill(template), fill(bind["bind"]), read_only or "ro" in modes))
    for mount, filled in zip(spawner.mounts, spawner.mount_binds, strict=True):
        source = str(filled["Source"] or "")
        found.append(Volume(str(mount["source"]), source, filled["Target"], bool(filled.get("ReadOnly"))))
    return tuple(found)


async def ask_machine(docker: Callable[[str], Awaitable[Any]]) -> Machine:
    """The machine that labs share, according to Docker.

    `docker` runs a method of docker-py's client. Raises EngineFault.
    """
    info = await docker("info")
    raises = await asyncio.to_thread(may_raise_limits, info)
    driver = str(info.get("LoggingDriver") or "")
    return Machine(info.get("MemTotal") or None, info.get("NCPU") or None, driver, raises)
