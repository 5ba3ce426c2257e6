"""What doctor says of machines with an agent: there, and on the broker's machine of all of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...core.finding import Finding, Level
from ...protocol.history import MachineFindings
from .facts import MetadataFacts
from .network import metadata_finding

_BUILD_FOR_SWARM = (
    "Run `python -m gpuspawner.tools.block_metadata --swarm` as root, after each boot; hub and agents that "
    "run as root do it by themselves"
)


def swarm_metadata_findings(facts: MetadataFacts | None) -> Iterator[Finding]:
    """Whether labs of a Swarm get the keys of this machine; nothing outside of a Swarm."""
    if facts is not None:
        yield metadata_finding(facts, False, _BUILD_FOR_SWARM)


def machine_findings(machines: Sequence[MachineFindings]) -> Iterator[Finding]:
    """Of each other machine what is missing there, or that nothing is."""
    for machine in machines:
        name = f"Machine {machine.name}"
        if machine.fault:
            remedy = "Start its agent or mend the network; `gpuspawner node list` says more"
            yield Finding(Level.PROBLEM, name, machine.fault, remedy)
            continue
        wrong = [each for each in machine.findings if each.level != "ok"]
        for each in wrong:
            yield Finding(Level(each.level), f"{name}: {each.subject}", each.text, each.remedy)
        if not wrong:
            yield Finding(Level.OK, name, f"{len(machine.findings)} checks, nothing is missing")
