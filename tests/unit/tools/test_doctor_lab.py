"""What doctor says of labs, their settings and the disk, from facts alone and from real settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.disk import Disk
from gpuspawner.core.limits import ConfiguredLimits, LabRules, Machine
from gpuspawner.tools.doctor import Finding, Level
from gpuspawner.tools.doctor.lab import LabFacts, lab_findings, read_lab
from traitlets.config import Config

GIB = 1 << 30
TIERS = parse_tiers(
    [
        {"name": "cpu"},
        {"name": "big", "mem_limit": "16G", "cpu_limit": 4, "shm": "12G", "pids": 100},
    ]
)
GOOD = LabFacts(LabRules(), Machine(128 * GIB, 16), {"user": "1000:100"}, {"cap_drop": ["ALL"]})
MEMORY = Finding(
    Level.OK,
    "Memory of labs",
    "a lab without its own mem_limit gets 14 GiB: 128 GiB less 13 GiB for the host, shared among 8 seats",
)
CPU = Finding(
    Level.OK, "Labs of tier cpu", "14 GiB of memory, up to 7.2 GiB of it in /dev/shm; 4096 processes"
)
BIG = Finding(
    Level.OK,
    "Labs of tier big",
    "16 GiB of memory, up to 12 GiB of it in /dev/shm; 4 cores; 100 processes",
)


def test_a_good_machine() -> None:
    assert tuple(lab_findings(GOOD, TIERS)) == (MEMORY, CPU, BIG)


def test_labs_without_a_limit() -> None:
    facts = replace(GOOD, rules=LabRules(limit_memory=False))
    memory, *_ = lab_findings(facts, ())
    assert memory == Finding(
        Level.NOTE,
        "Memory of labs",
        "a lab without its own mem_limit may use all memory of the machine, also the hub's",
        "Set c.GpuLab.limit_memory = True, or c.Spawner.mem_limit",
    )
    memory, *_ = lab_findings(replace(facts, general=ConfiguredLimits(GIB)), ())
    assert memory.level is Level.OK


@pytest.mark.parametrize(
    ("changes", "findings"),
    [
        (
            {"host": {**GOOD.host, "privileged": True}},
            [
                Finding(
                    Level.PROBLEM,
                    "Past the lease",
                    "privileged is True: this gives a lab access to every GPU of this machine, "
                    "regardless of its lease: no lab starts",
                    'Remove it, or, to allow it, set c.GpuLab.past_lease = ["privileged"]',
                )
            ],
        ),
        (
            {
                "host": {**GOOD.host, "pid_mode": "host"},
                "rules": LabRules(past_lease=frozenset({"pid_mode"})),
            },
            [
                Finding(
                    Level.NOTE,
                    "Past the lease",
                    "pid_mode is host: a lab has access to the processes of other labs, as "
                    "c.GpuLab.past_lease allows",
                    "Remove both, if this is no longer intended",
                )
            ],
        ),
        (
            {"host": {**GOOD.host, "devices": ["/dev/nvidia0"]}},
            [
                Finding(
                    Level.NOTE,
                    "Past the lease",
                    "devices has /dev/nvidia0: labs start without it",
                    'Remove it, or allow "devices" in c.GpuLab.past_lease',
                )
            ],
        ),
        (
            {"host": {**GOOD.host, "security_opt": ["seccomp:unconfined"], "network_mode": "host"}},
            [
                Finding(
                    Level.NOTE,
                    "Labs' isolation",
                    "security_opt has seccomp:unconfined: labs can attack more of the kernel",
                    "Remove it from extra_host_config, if it isn't needed",
                ),
                Finding(
                    Level.NOTE,
                    "Labs' isolation",
                    "network_mode is host: labs reach every port of this machine, also "
                    "those of the hub and its "
                    "proxy",
                    "Remove it from extra_host_config: labs have their own network",
                ),
            ],
        ),
        (
            {"machine": replace(GOOD.machine, raises_limits=False)},
            [
                Finding(
                    Level.NOTE,
                    "Limits of processes",
                    "Docker can't raise them: labs have Docker's own limits of locked "
                    "memory, stack and open "
                    "files",
                    "Run Docker with CAP_SYS_RESOURCE to give labs the limits that NVIDIA recommends",
                )
            ],
        ),
    ],
    ids=["refused", "allowed", "left out", "weaker", "limits"],
)
def test_each_thing_that_somebody_should_know(changes: dict[str, Any], findings: list[Finding]) -> None:
    assert list(lab_findings(replace(GOOD, **changes), ())) == [MEMORY, *findings]


@pytest.mark.parametrize(
    ("free", "total", "level"),
    [
        (GIB - 1, 1000 * GIB, Level.PROBLEM),
        (GIB, 1000 * GIB, Level.NOTE),
        (10 * GIB - 1, 1000 * GIB, Level.NOTE),
        (10 * GIB, 1000 * GIB, Level.OK),
        (4 * GIB, 30 * GIB, Level.OK),
        (2 * GIB, 30 * GIB, Level.NOTE),
    ],
)
def test_a_disk_that_gets_full(free: int, total: int, level: Level) -> None:
    facts = replace(GOOD, disks=(Disk("homes", "/var/lib/docker", free, total),))
    *_, finding = lab_findings(facts, ())
    assert (finding.level, finding.subject) == (level, "Disk of homes")


def test_facts_of_real_settings(tmp_path: Path) -> None:
    config = Config()
    config.JupyterHub.active_server_limit = 20
    config.Spawner.mem_limit = "3G"
    config.DockerSpawner.extra_host_config = {"privileged": True}
    config.GpuDockerSpawner.extra_create_kwargs = lambda spawner: {}
    config.GpuDockerSpawner.volumes = {"/dev": "/dev"}
    config.GpuLab.shm = "2G"
    info = {
        "MemTotal": 64 * GIB,
        "NCPU": 8,
        "DockerRootDir": "/no/such",
        "SecurityOptions": ["name=rootless"],
    }
    facts = read_lab(config, info, str(tmp_path / "made later"))
    (disk,) = facts.disks
    assert (disk.holds, disk.folder) == ("the broker's state", str(tmp_path / "made later"))
    assert 0 < disk.free_bytes <= disk.total_bytes
    assert replace(facts, disks=()) == LabFacts(
        rules=LabRules(seats=20, shm_bytes=2 * GIB, private=(str(tmp_path / "made later"),)),
        machine=Machine(64 * GIB, 8, "", False),
        create={"user": "1000:100"},
        host={"cap_drop": ["ALL"], "binds": {"/dev": "/dev"}, "privileged": True},
        general=ConfiguredLimits(3 * GIB),
        computed=("extra_create_kwargs",),
    )
