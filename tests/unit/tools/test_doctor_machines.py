"""What doctor says of the other machines, and on one of them."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.core.finding import Finding, Level
from gpuspawner.protocol.history import FindingDocument, MachineFindings
from gpuspawner.tools.doctor import Facts, examine_machine
from gpuspawner.tools.doctor.facts import MetadataFacts
from gpuspawner.tools.doctor.machines import machine_findings, swarm_metadata_findings
from gpuspawner.tools.doctor.swarm_network import wall_of

OK = FindingDocument(level="ok", subject="Docker", text="Engine 28", remedy="")
LOST = FindingDocument(
    level="problem", subject="Image lab:1", text="is not on this machine", remedy="Pull it"
)
FIREWALL = (
    "Run `python -m gpuspawner.tools.block_metadata --swarm` as root, after each boot; hub and agents that "
    "run as root do it by themselves"
)


def test_it_says_on_which_machine_what_is_missing() -> None:
    machines = (
        MachineFindings(name="b", findings=(OK, LOST)),
        MachineFindings(name="c", findings=(OK, OK)),
        MachineFindings(name="d", fault="the machine d can't be reached: cut"),
    )
    assert list(machine_findings(machines)) == [
        Finding(Level.PROBLEM, "Machine b: Image lab:1", "is not on this machine", "Pull it"),
        Finding(Level.OK, "Machine c", "2 checks, nothing is missing"),
        Finding(
            Level.PROBLEM, "Machine d", "the machine d can't be reached: cut",
            "Start its agent or mend the network; `gpuspawner node list` says more",
        ),
    ]  # fmt: skip


def test_on_a_machine_with_an_agent_nothing_of_the_hub_is_checked() -> None:
    facts = Facts(engine_error="Docker doesn't answer", driver_error="no driver", simulated=True)
    subjects = [each.subject for each in examine_machine(facts)]
    assert subjects == ["NVIDIA driver", "GPUs", "Docker", "MPS", "CUDA checkpoint"]
    (broken,) = examine_machine(Facts(config_error="pools: no"))
    assert (broken.level, broken.subject) == (Level.PROBLEM, "Settings")


@pytest.mark.parametrize(
    ("facts", "level", "remedy"),
    [
        (MetadataFacts(answers=False), Level.OK, ""),
        (MetadataFacts(answers=True, rules_missing=0), Level.OK, ""),
        (MetadataFacts(answers=True, rules_missing=6), Level.PROBLEM, FIREWALL),
        (MetadataFacts(answers=True), Level.NOTE, FIREWALL),
    ],
)
def test_a_cloud_s_keys_on_a_machine_of_a_swarm(facts: MetadataFacts, level: Level, remedy: str) -> None:
    (found,) = swarm_metadata_findings(facts)
    assert (found.level, found.subject, found.remedy) == (level, "Metadata service", remedy)
    assert list(swarm_metadata_findings(None)) == []


def test_the_wall_is_for_the_network_by_which_labs_leave() -> None:
    asked: list[tuple[Any, ...]] = []

    def call(*words: Any) -> Any:
        asked.append(words)
        return {"IPAM": {"Config": [{"Subnet": "fd00::/64"}, {"Subnet": "172.18.0.0/16"}]}}

    wall = wall_of(call)
    assert wall is not None
    assert (wall.subnet, asked) == ("172.18.0.0/16", [("inspect_network", "docker_gwbridge")])


@pytest.mark.parametrize("status", [404, 500])
def test_a_machine_outside_of_a_swarm_has_no_such_network(status: int) -> None:
    def call(*words: Any) -> Any:
        raise EngineFault("no", status)

    if status == 404:
        assert wall_of(call) is None
        return
    with pytest.raises(EngineFault):
        wall_of(call)
