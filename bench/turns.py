"""What a class gets from GPUs in turns, from whole GPUs and from time-slicing: the forecast, over many seeds.

    python bench/turns.py                                   the classes of docs/measurements.md
    python bench/turns.py --students 30 --gpus 4 --busy 0.1 --minutes 60 --seeds 5

No GPU is used: `broker/decide/replay/replay_turns.py` runs the broker's own plan on a virtual clock.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

from gpuspawner.broker.decide.replay.replay_turns import (
    GIB,
    BurstyClass,
    ClassOutcome,
    SharedGpus,
    in_turns,
    time_sliced,
    whole_gpus,
)
from gpuspawner.broker.decide.turns import TurnRules

Way = Callable[[BurstyClass, SharedGpus], ClassOutcome]


def row(name: str, way: Way, course: BurstyClass, machine: SharedGpus, seeds: int) -> str:
    """Mean over the seeds; the used part also with its smallest and largest value."""
    outcomes = [way(replace(course, seed=seed), machine) for seed in range(seeds)]
    used = [100 * each.used_fraction for each in outcomes]
    p50, p95 = (statistics.mean(each.wait_seconds(part) for each in outcomes) for part in (0.5, 0.95))
    return (
        f"| {name} | {statistics.mean(used):.0f} % ({min(used):.0f} to {max(used):.0f}) | "
        f"{p50:.1f} s | {p95:.1f} s | {statistics.mean(each.moves for each in outcomes):.0f} |"
    )


def table(title: str, course: BurstyClass, machine: SharedGpus, rules: TurnRules, seeds: int) -> None:
    """The three ways for one class."""

    def turns(course: BurstyClass, machine: SharedGpus) -> ClassOutcome:
        return in_turns(course, machine, rules)

    print(f"\n{title}\n| way | of the GPUs' time | wait p50 | p95 | moves |\n|---|---|---|---|---|")
    ways: dict[str, Way] = {"turns": turns, "whole GPUs": whole_gpus, "time-slicing": time_sliced}
    for name, way in ways.items():
        print(row(name, way, course, machine, seeds), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", type=int)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--busy", type=float, default=1 / 3, help="part of the time that each would train")
    parser.add_argument("--gib", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=40)
    given = parser.parse_args()
    if given.students is not None:
        course = BurstyClass(given.students, given.minutes * 60, memory_bytes=given.gib * GIB)
        name = f"{given.students} students, each busy {100 * given.busy:.0f} %, {given.gpus} GPUs"
        table(name, course.with_busy(given.busy), SharedGpus(given.gpus), TurnRules(), given.seeds)
        return
    rules, machine = TurnRules(max_turn_seconds=15.0), SharedGpus(2, memory_bytes=77 * GIB)
    short = BurstyClass(8, 81.0, load_seconds=0.0)
    table("8 students with 9 GiB, libraries loaded", short, machine, rules, given.seeds)
    table("8 students, first cells load", replace(short, load_seconds=5.0), machine, rules, given.seeds)
    table("8 students with 21 GiB", replace(short, memory_bytes=21 * GIB), machine, rules, given.seeds)


if __name__ == "__main__":
    main()
