"""Makes what is watched and kept: what the guard did, what each lease uses, free disk space, old history."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from ..observe.disks import DiskWatch
from ..observe.journal import Journal
from ..observe.pruning import Pruning
from ..observe.sampler import Sampler
from .ground import Ground
from .machine import Machine


@dataclass(frozen=True, slots=True)
class Observing:
    """One a broker."""

    journal: Journal
    sampler: Sampler
    disks: DiskWatch
    pruning: Pruning

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs until the broker ends, by name."""
        return {"sampler": self.sampler.run(), "disks": self.disks.run(), "pruning": self.pruning.run()}


def make_observing(ground: Ground, machine: Machine) -> Observing:
    """Nothing is read yet."""
    return Observing(
        journal=Journal(ground.ledger, ground.log),
        sampler=Sampler(machine.uses, ground.log),
        disks=DiskWatch(ground.engine.facts, machine.node.disks, ground.metrics, ground.log),
        pruning=Pruning(ground.ledger, ground.settings.history_days, ground.log),
    )
