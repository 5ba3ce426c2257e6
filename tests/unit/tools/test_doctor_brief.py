"""doctor says briefly what a machine without GPUs doesn't need, and truly what an old engine lacks."""

from __future__ import annotations

from dataclasses import replace

from gpuspawner.node.injection import EngineFacts
from gpuspawner.node.inventory.simulated import parse_simulated
from gpuspawner.tools.doctor import BrokerFacts, Facts, Finding, Level, brief, examine


def test_what_only_real_gpus_need_is_one_line_on_a_simulated_machine() -> None:
    facts = Facts(
        simulated=True,
        devices=parse_simulated("1 x Odd 1GB"),
        engine=EngineFacts("20.10.24", "1.41", cgroup_version="1"),
        broker=BrokerFacts("/s", "It isn't running."),
    )
    findings = examine(facts)
    assert [finding.subject for finding in brief(findings, facts)] == [
        "GPUs", "GPU 0", "Docker", "Injection", "Broker", "Left out",
    ]  # fmt: skip
    assert brief(findings, facts)[-1] == Finding(
        Level.OK,
        "Left out",
        "not needed for simulated GPUs: NVIDIA driver, cgroup, CDI, Classic request, MPS, CUDA checkpoint "
        "(--all shows them)",
    )
    plugged = replace(facts, pci_gpus=("0000:01:00.0",))
    assert brief(examine(plugged), plugged)[0].subject == "NVIDIA driver"
    real = replace(facts, simulated=False)
    assert brief(findings, real) == findings
    assert brief(findings[1:3], facts) == findings[1:3]


def test_an_engine_before_25_has_no_cdi() -> None:
    for version, text in (
        ("20.10.24+dfsg1", "Docker Engine 20.10.24+dfsg1 has no CDI (it came with Engine 25)"),
        ("27.1.0", "Docker Engine 27.1.0 has CDI switched off"),
    ):
        (finding,) = [
            each for each in examine(Facts(engine=EngineFacts(version, "1.41"))) if each.subject == "CDI"
        ]
        assert finding.text.startswith(text)
