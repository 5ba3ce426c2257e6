"""How a container gets its leased devices: chosen from the engine's abilities, written as a ContainerPatch.

Pure: Docker's `info()` and `version()` are passed in as plain dicts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..core.errors import ConfigError
from ..core.labels import lease_labels
from ..core.model import ContainerPatch, Lease
from .cdi_spec import DEFAULT_DIRS, NVIDIA_KIND, CdiSpecs, read_specs
from .driver_files import GENERATE, DriverFiles, read_driver_files

HOOK = "nvidia-container-runtime-hook"
"""The engine registers its classic GPU driver if it finds this on its PATH (moby 20.10 to 28,
`daemon/nvidia_linux.go`)."""
LEASE_MOUNT = "/run/gpuspawner"
"""The lease's folder in the container, read-only."""
CDI_ENGINE = 25
"""First Docker Engine with CDI."""


class Injection(StrEnum):
    """How devices get into a container: CDI, NVIDIA's classic device request, or none (simulated).

    RUNTIME is for services of a Swarm, which take no device requests: NVIDIA's runtime, as the engine's
    default one, reads the UUIDs from the environment.
    """

    CDI = "cdi"
    NVIDIA = "nvidia"
    RUNTIME = "runtime"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine reports, and what was found on its machine.

    `cdi_enabled`: `CDISpecDirs` in `/info` is not empty (API 1.44; on by default from Engine 28.3,
    `features.cdi` from 25). `cdi_devices`: names after `nvidia.com/gpu=`, from `DiscoveredDevices`
    (API 1.50) and from the spec files if the engine is local. `cdi_obstacles`: why no container can start
    with one of them, by name. `driver_obstacle`: why no new container can use any GPU.
    """

    version: str
    api_version: str
    cdi_enabled: bool = False
    cdi_spec_dirs: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    cdi_problems: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    default_runtime: str = ""
    hook_path: str | None = None
    cgroup_version: str | None = None
    cgroup_driver: str = ""
    cdi_obstacles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    driver_obstacle: str = ""

    @property
    def classic(self) -> bool:
        """Whether nvidia-container-toolkit is installed for the classic request."""
        return self.hook_path is not None or "nvidia" in self.runtimes


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """What was found on a local engine's machine: CDI specs, NVIDIA's hook, and the driver's versions."""

    cdi: CdiSpecs = field(default_factory=lambda: CdiSpecs((), ()))
    hook_path: str | None = None
    driver: DriverFiles = field(default_factory=DriverFiles)


def read_local(spec_dirs: Iterable[str] = ()) -> LocalFacts:
    """Reads the CDI specs and looks for the hook on our PATH. Blocks; only for an engine on this host."""
    driver = read_driver_files()
    specs = read_specs(tuple(spec_dirs) or DEFAULT_DIRS, driver.module_version)
    return LocalFacts(specs, shutil.which(HOOK), driver)


def engine_facts(
    info: Mapping[str, Any], version: Mapping[str, Any], local: LocalFacts | None = None
) -> EngineFacts:
    """Facts from the Engine API's `/info` and `/version`; `local` is None for a remote engine."""
    local = local or LocalFacts()
    prefix = f"{NVIDIA_KIND}="
    discovered = {
        str(device["ID"]).removeprefix(prefix)
        for device in info.get("DiscoveredDevices") or ()
        if device.get("Source") == "cdi" and str(device.get("ID", "")).startswith(prefix)
    }
    dirs = tuple(info.get("CDISpecDirs") or ())
    return EngineFacts(
        version=str(version.get("Version", "")),
        api_version=str(version.get("ApiVersion", "")),
        cdi_enabled=bool(dirs),
        cdi_spec_dirs=dirs,
        cdi_devices=tuple(sorted(discovered | set(local.cdi.devices))),
        cdi_problems=local.cdi.problems,
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        default_runtime=str(info.get("DefaultRuntime") or ""),
        hook_path=local.hook_path,
        cgroup_version=str(info["CgroupVersion"]) if info.get("CgroupVersion") else None,
        cgroup_driver=str(info.get("CgroupDriver") or ""),
        cdi_obstacles=local.cdi.obstacles,
        driver_obstacle=local.driver.obstacle(),
    )


def cdi_obstacle(facts: EngineFacts, uuids: Iterable[str]) -> str:
    """Why CDI can't inject the devices `uuids`, and what to do; "" if it can."""
    if not facts.cdi_enabled:
        major = facts.version.partition(".")[0]
        if major.isdecimal() and int(major) < CDI_ENGINE:
            return (
                f"Docker Engine {facts.version} has no CDI (it came with Engine {CDI_ENGINE}): "
                "use Engine 28.3 or newer"
            )
        return (
            f"Docker Engine {facts.version} has CDI switched off: use Engine 28.3 or newer, or set "
            '{"features": {"cdi": true}} in /etc/docker/daemon.json (Engine 25 or newer)'
        )
    uuids = tuple(uuids)
    missing = [uuid for uuid in uuids if uuid not in facts.cdi_devices]
    if not missing:
        return next((facts.cdi_obstacles[uuid] for uuid in uuids if uuid in facts.cdi_obstacles), "")
    dirs = ", ".join(facts.cdi_spec_dirs)
    if not facts.cdi_devices:
        return f"No CDI spec in {dirs} names an NVIDIA GPU: {GENERATE}"
    return f"The CDI specs in {dirs} don't name {missing[0]} by its UUID: {GENERATE}"


def classic_obstacle(facts: EngineFacts) -> str:
    """Why NVIDIA's classic device request can't work, and what to do; "" if it can."""
    if facts.classic:
        return ""
    return f"{HOOK} is not on the engine's PATH: install nvidia-container-toolkit and restart Docker"


def runtime_obstacle(facts: EngineFacts) -> str:
    """Why the environment of a service can't name its devices, and what to do; "" if it can."""
    if facts.default_runtime == "nvidia":
        return ""
    return (
        "Labs are services of a Swarm, but the engine's default runtime is "
        f"{facts.default_runtime or 'unknown'}: run `nvidia-ctk runtime configure --runtime=docker "
        "--set-as-default` and restart Docker"
    )


def choose(setting: str, facts: EngineFacts, simulated: bool, uuids: Iterable[str] = ()) -> Injection:
    """The injection for `c.GpuSite.injection`. Raises ConfigError, with the remedy, if it can't work.

    `auto` uses CDI if the specs name every device of `uuids`, else the classic request.
    Simulated devices need no injection.
    """
    if simulated:
        return Injection.NONE
    if facts.driver_obstacle:
        raise ConfigError(facts.driver_obstacle)
    uuids = tuple(uuids)
    obstacles = {Injection.CDI: cdi_obstacle(facts, uuids), Injection.NVIDIA: classic_obstacle(facts)}
    if setting == Injection.RUNTIME:
        if obstacle := runtime_obstacle(facts):
            raise ConfigError(obstacle)
        return Injection.RUNTIME
    if setting == "auto":
        for way, obstacle in obstacles.items():
            if not obstacle:
                return way
        raise ConfigError(
            "No GPU can be injected into a container. CDI: "
            f"{obstacles[Injection.CDI]}. Classic: {obstacles[Injection.NVIDIA]}"
        )
    way = Injection(setting)
    if way is Injection.NONE:
        raise ConfigError(
            'c.GpuSite.injection is "none", but the devices are real: use "auto", or set '
            'c.GpuSite.inventory = "simulated"'
        )
    if obstacles[way]:
        raise ConfigError(f'c.GpuSite.injection is "{way}": {obstacles[way]}')
    return way


@dataclass(frozen=True, slots=True)
class Access:
    """How containers get devices, and why no new container gets some of them now, by UUID."""

    way: Injection
    obstacles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def find_access(setting: str, facts: EngineFacts, simulated: bool, uuids: Iterable[str] = ()) -> Access:
    """As `choose`, but a device that CDI can't inject doesn't keep the others from being leased.

    Raises ConfigError, with the remedy, if no device can be injected.
    """
    uuids = tuple(uuids)
    try:
        return Access(choose(setting, facts, simulated, uuids))
    except ConfigError:
        found = {uuid: obstacle for uuid in uuids if (obstacle := cdi_obstacle(facts, (uuid,)))}
        if setting not in ("auto", Injection.CDI) or facts.driver_obstacle or len(found) == len(set(uuids)):
            raise
        return Access(Injection.CDI, found)


def make_patch(
    lease: Lease, injection: Injection, simulated: bool, lease_folder: Path | str
) -> ContainerPatch:
    """What `lease` changes in its container: it gets only the lease's devices, by UUID.

    `NVIDIA_VISIBLE_DEVICES` is "void" unless the classic request or a service uses it: if the nvidia runtime
    is the default, it then adds no devices (nvidia-container-toolkit 1.17).
    """
    env = {
        "NVIDIA_VISIBLE_DEVICES": "void",
        "GPUSPAWNER_LEASE": lease.id,
        "GPUSPAWNER_TIER": lease.tier,
        "GPUSPAWNER_MODE": lease.want.mode.value,
        "GPUSPAWNER_DEVICES": ",".join(lease.device_uuids),
        "GPUSPAWNER_DEVICE_COUNT": str(lease.want.device_count),
        "GPUSPAWNER_MEMORY_BYTES": str(lease.memory_bytes),
        "GPUSPAWNER_COMPUTE_PERCENT": f"{lease.compute_percent:g}",
    }
    if simulated:
        env["GPUSPAWNER_SIMULATED"] = "1"
    if injection in (Injection.NVIDIA, Injection.RUNTIME):
        env["NVIDIA_VISIBLE_DEVICES"] = ",".join(lease.device_uuids)
        env["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    return ContainerPatch(
        env=env,
        labels=lease_labels(lease),
        mounts=({"source": str(lease_folder), "target": LEASE_MOUNT, "type": "bind", "read_only": True},),
        device_requests=_device_requests(injection, lease.device_uuids),
    )


def _device_requests(injection: Injection, uuids: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    # The Engine API's DeviceRequest (1.40; the driver "cdi" since 1.44). IDs, so Count stays 0.
    if injection in (Injection.NONE, Injection.RUNTIME) or not uuids:
        return ()
    if injection is Injection.CDI:
        ids, capabilities = [f"{NVIDIA_KIND}={uuid}" for uuid in uuids], []
    else:
        ids, capabilities = list(uuids), [["gpu"]]
    return (
        {
            "Driver": injection.value,
            "Count": 0,
            "DeviceIDs": ids,
            "Capabilities": capabilities,
            "Options": {},
        },
    )
