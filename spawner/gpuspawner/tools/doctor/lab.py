"""Findings about labs: their limits, settings that bypass the lease, and full disks. Pure.

`read_lab` collects the facts from the disk and the process that listens on Docker's socket.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from traitlets.config import Config

from ...config.lab import GpuLab
from ...core.disk import Disk, DiskState
from ...core.finding import Finding, Level
from ...core.limits import ConfiguredLimits, LabRules, Machine, default_memory, default_sentence, limits_of
from ...core.model import Tier
from ...core.units import parse_bytes
from ...hub.engine_rights import may_raise_limits
from ...hub.reach import ways
from ...node.disks import read_disks

_WEAKER = ("seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined", "label=disable")


@dataclass(frozen=True, slots=True)
class LabFacts:
    """Settings and machine. `create` and `host` are the arguments that the site's settings add for Docker."""

    rules: LabRules
    machine: Machine
    create: Mapping[str, Any]
    host: Mapping[str, Any]
    general: ConfiguredLimits = field(default_factory=ConfiguredLimits)
    """`c.Spawner.mem_limit` and `cpu_limit`."""
    computed: tuple[str, ...] = ()
    """Settings that are functions: they are only called at a start."""
    disks: tuple[Disk, ...] = ()


def read_lab(config: Config, info: Mapping[str, Any], state_dir: str) -> LabFacts:
    """The facts, with Docker's `info`. Blocks on disk. Raises TraitError for a setting of `c.GpuLab`."""
    create: dict[str, Any] = {"user": "1000:100"}
    host: dict[str, Any] = {}
    computed: list[str] = []
    settings = _spawner_settings(config)
    for name, target in (("extra_create_kwargs", create), ("extra_host_config", host)):
        value = settings.get(name)
        if callable(value):
            computed.append(name)
        elif isinstance(value, Mapping):
            target.update(value)
    volumes = settings.get("volumes")
    binds = (
        {str(source): target for source, target in volumes.items()} if isinstance(volumes, Mapping) else {}
    )
    return LabFacts(
        rules=GpuLab(config=config).rules(state_dir),
        machine=Machine(
            info.get("MemTotal") or None,
            info.get("NCPU") or None,
            str(info.get("LoggingDriver") or ""),
            may_raise_limits(info),
        ),
        create=create,
        host={"cap_drop": ["ALL"], "binds": binds, **host},
        general=_general(settings),
        computed=tuple(computed),
        disks=read_disks(str(info.get("DockerRootDir") or ""), state_dir),
    )


def lab_findings(facts: LabFacts, tiers: tuple[Tier, ...]) -> Iterator[Finding]:
    """One finding for the default limit, one for each tier, and one for each remark."""
    yield from _memory(facts)
    for tier in tiers:
        configured = ConfiguredLimits(
            tier.mem_limit_bytes or facts.general.memory_bytes,
            tier.cpu_limit or facts.general.cpu_cores,
            tier.shm_bytes,
            tier.pids,
            tier.cpu_shares,
        )
        text = limits_of(configured, facts.rules, facts.machine).sentence()
        yield Finding(Level.OK, f"Labs of tier {tier.name}", text)
    if not facts.machine.raises_limits:
        yield Finding(
            Level.NOTE,
            "Limits of processes",
            "Docker can't raise them: labs have Docker's own limits of locked memory, stack and open files",
            "Run Docker with CAP_SYS_RESOURCE to give labs the limits that NVIDIA recommends",
        )
    yield from _reach(facts)
    for disk in facts.disks:
        yield _disk(disk)


def _memory(facts: LabFacts) -> Iterator[Finding]:
    text = default_sentence(facts.rules, facts.machine)
    if default_memory(facts.rules, facts.machine) is None and not facts.general.memory_bytes:
        yield Finding(
            Level.NOTE, "Memory of labs", text, "Set c.GpuLab.limit_memory = True, or c.Spawner.mem_limit"
        )
    else:
        yield Finding(Level.OK, "Memory of labs", text)


def _reach(facts: LabFacts) -> Iterator[Finding]:
    for way in ways(facts.create, facts.host, facts.rules.private):
        if way.name in facts.rules.past_lease:
            text = (
                f"{way.name} is {way.value}: a lab has access to {way.reaches}, as c.GpuLab.past_lease allows"
            )
            yield Finding(Level.NOTE, "Past the lease", text, "Remove both, if this is no longer intended")
        elif way.name == "devices":
            text = f"devices has {way.value}: labs start without it"
            yield Finding(
                Level.NOTE, "Past the lease", text, 'Remove it, or allow "devices" in c.GpuLab.past_lease'
            )
        else:
            sentence, _, remedy = way.sentence().partition(". ")
            yield Finding(Level.PROBLEM, "Past the lease", f"{sentence}: no lab starts", remedy)
    for option in facts.host.get("security_opt") or ():
        if str(option).replace(":", "=") in _WEAKER:
            text = f"security_opt has {option}: labs can attack more of the kernel"
            yield Finding(
                Level.NOTE, "Labs' isolation", text, "Remove it from extra_host_config, if it isn't needed"
            )
    if facts.host.get("network_mode") == "host":
        text = (
            "network_mode is host: labs reach every port of this machine, also those of the hub and its proxy"
        )
        yield Finding(
            Level.NOTE,
            "Labs' isolation",
            text,
            "Remove it from extra_host_config: labs have their own network",
        )
    for name in facts.computed:
        text = f"{name} is a function: its result is checked at each start"
        yield Finding(Level.OK, "Past the lease", text)


_LEVELS = {DiskState.OK: Level.OK, DiskState.LOW: Level.NOTE, DiskState.FULL: Level.PROBLEM}


def _disk(disk: Disk) -> Finding:
    subject, level = f"Disk of {disk.holds}", _LEVELS[disk.state]
    remedy = "`gpuspawner homes` shows the size of each home, `docker system df` the size of images and logs"
    return Finding(level, subject, disk.sentence(), "" if level is Level.OK else remedy)


def _general(settings: Mapping[str, Any]) -> ConfiguredLimits:
    """`mem_limit` and `cpu_limit` for all labs; a function isn't called."""
    memory, cores = settings.get("mem_limit"), settings.get("cpu_limit")
    return ConfiguredLimits(
        parse_bytes(memory, "mem_limit") if isinstance(memory, str | int) and memory else None,
        float(cores) if isinstance(cores, int | float) and cores else None,
    )


def _spawner_settings(config: Config) -> dict[str, Any]:
    """The spawner's settings as traitlets merges them: a subclass's settings override the others."""
    merged: dict[str, Any] = {}
    for section in ("Spawner", "DockerSpawner", "GpuDockerSpawner"):
        if config.has_key(section):
            merged.update(config[section])
    return merged
