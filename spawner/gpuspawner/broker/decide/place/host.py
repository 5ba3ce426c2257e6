"""What the machine has, as the assignment of devices to pools needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ....node.api import ComputeMode, MpsProgram, NodeFacts


@dataclass(frozen=True, slots=True)
class Host:
    """What the machine has. `guard_obstacle`: why the guard can't end processes here, with the remedy.

    `incomplete`: some GPU could not be read, so what is missing may be there. `modes` are the GPUs'
    compute modes by UUID; None where it can't be read. `memory_bytes` is its main memory; None: not known.
    `turns_obstacle`: why GPUs can't be used in turns here, with the remedy; `turns_move`: whether a program
    can wake on another GPU. `others`: there are other machines, so what is missing here may be there.
    `name` and `labels` are those of the machine.
    """

    simulated: bool
    mps: MpsProgram
    guard_obstacle: str = ""
    incomplete: bool = False
    modes: Mapping[str, ComputeMode | None] = field(default_factory=dict)
    memory_bytes: int | None = None
    turns_obstacle: str = ""
    turns_move: bool = True
    others: bool = False
    name: str = ""
    labels: frozenset[str] = frozenset()


def host_of(facts: NodeFacts, *, others: bool = False, labels: frozenset[str] = frozenset()) -> Host:
    """What the node says of its machine, as the pools need it."""
    return Host(
        facts.simulated, facts.mps, facts.guard_obstacle, facts.incomplete, facts.compute_modes,
        facts.memory_bytes, facts.turns_obstacle, facts.turns_move, others,
        facts.name, labels,
    )  # fmt: skip
