"""Makes what is watched and kept: what the guard did, what each lease uses, free disk space, old history."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from traitlets.config import Config

from ..observe.disks import DiskWatch
from ..observe.failures import LoopFailures
from ..observe.images import ImageWatch
from ..observe.journal import Journal
from ..observe.metrics import Metrics
from ..observe.pruning import Pruning
from ..observe.sampler import Sampler
from .ground import Ground
from .machines import Machines


@dataclass(frozen=True, slots=True)
class Observing:
    """One a broker."""

    journal: Journal
    sampler: Sampler
    disks: DiskWatch
    pruning: Pruning
    images: ImageWatch
    metrics: Metrics
    log: logging.Logger

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs until the broker ends, by name."""
        return {
            "sampler": self.sampler.run(self._failures("sampler")),
            "disks": self.disks.run(),
            "pruning": self.pruning.run(self._failures("pruning")),
            "images": self.images.run(),
        }

    def _failures(self, loop: str) -> LoopFailures:
        return LoopFailures(loop, self.metrics, self.log)


def make_observing(ground: Ground, machines: Machines) -> Observing:
    """Nothing is read yet."""
    return Observing(
        journal=Journal(ground.ledger, ground.log),
        sampler=Sampler(machines.uses),
        disks=DiskWatch(ground.engine.facts, machines.disks, ground.metrics, ground.log),
        pruning=Pruning(ground.ledger, ground.settings.history_days, ground.log),
        images=ImageWatch(
            _images(ground),
            ground.engine.image_size_bytes,
            LoopFailures("images", ground.metrics, ground.log),
        ),
        metrics=ground.metrics,
        log=ground.log,
    )


def _images(ground: Ground) -> list[str]:
    """The images of the settings: the spawner's, whatever its class is called, and those of the tiers."""
    sections = [each for each in ground.settings.config.values() if isinstance(each, Config)]
    named = [each["image"] for each in sections if isinstance(each.get("image"), str)]
    return [image for image in (*named, *(tier.image for tier in ground.settings.tiers)) if image]
