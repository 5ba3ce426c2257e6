"""How long the cells of a class wait for a GPU, in turns and with whole GPUs: a forecast of bounded length.

Pure. The forecast takes longer with GPUs x students x seconds. So of a long class the beginning is
simulated, and of a large one some of its GPUs, with as many students for each GPU as in the whole class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..turns import TurnRules
from .replay_turns import BurstyClass, ClassOutcome, SharedGpus, in_turns, whole_gpus

MOST_SECONDS = 1800.0
"""No more of a class is simulated in turns: waits are about the same from some minutes on."""
MOST_WORK = 216_000.0
"""GPUs x students x seconds of one forecast: about 3 s, 5 s where memory moves at each turn."""


@dataclass(frozen=True, slots=True)
class TurnTerms:
    """The rules of a pool of turns, and what its tiers promise to who is awake; () if it has no tiers."""

    rules: TurnRules
    promises_bytes: tuple[int, ...] = ()

    def promise(self, memory_bytes: int | None) -> int | None:
        """The smallest promise that is large enough; what is needed itself if none is."""
        enough = [each for each in self.promises_bytes if memory_bytes is None or each >= memory_bytes]
        return min(enough, default=memory_bytes)


@dataclass(frozen=True, slots=True)
class CellWaits:
    """What was simulated, and what came out: each cell's wait is from pressing Run to its first result.

    `used_fraction` (0-1) is the part of the GPUs' time in which somebody's work was done.
    """

    students: int
    gpus: int
    simulated_seconds: float
    median_wait_seconds: float
    p95_wait_seconds: float
    used_fraction: float


@dataclass(frozen=True, slots=True)
class CellForecast:
    """The same class in turns and with whole GPUs, each held to the end of the class."""

    turns: CellWaits
    whole: CellWaits


def forecast(course: BurstyClass, seats: int, machine: SharedGpus, rules: TurnRules) -> CellForecast:
    """The class, of which `seats` are admitted to turns. With whole GPUs all of it is simulated."""
    part, gpus = part_of(replace(course, students=min(seats, course.students)), machine)
    return CellForecast(
        _waits(part, gpus, in_turns(part, gpus, rules)), _waits(course, machine, whole_gpus(course, machine))
    )


def part_of(course: BurstyClass, machine: SharedGpus) -> tuple[BurstyClass, SharedGpus]:
    """What of the class is simulated in turns, and on how many GPUs."""
    seconds, gpus = min(course.lasts_seconds, MOST_SECONDS), machine.count

    def students() -> int:
        return math.ceil(course.students * gpus / machine.count)

    while gpus > 1 and gpus * students() * seconds > MOST_WORK:
        gpus -= 1
    seconds = min(seconds, MOST_WORK / (gpus * students()))
    arrive = min(course.arrive_seconds, seconds / 2)
    part = replace(course, students=students(), lasts_seconds=seconds, arrive_seconds=arrive)
    return part, replace(machine, count=gpus)


def _waits(course: BurstyClass, machine: SharedGpus, outcome: ClassOutcome) -> CellWaits:
    return CellWaits(
        course.students,
        machine.count,
        course.lasts_seconds,
        outcome.wait_seconds(0.5),
        outcome.wait_seconds(0.95),
        outcome.used_fraction,
    )
