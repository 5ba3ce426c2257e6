"""A class on real GPUs: students with bursty work, in turns, with static GPUs and a queue, and time-slicing.

    PYTHONPATH=spawner:PACKAGES python tests/gpu/turns_class.py --minutes 2 --students 8 turns static sliced

The seeds and the steps of each cell are the same for each way. The plan and the keeper of turns are the
broker's own; students are plain processes in cgroups of their own, as in turns_hardware.py. A student trains
for 5 to 30 s of GPU time (as it takes alone), then thinks for 10 to 60 s. Losses and memory are compared with
those of an undisturbed run. `static`: as many students as GPUs have one each to the end, since people keep
their server; the others wait. `sliced`: as many students as fit compute side by side, without MPS.
`turns:20` is with 20 GiB each instead of `--gib`: if the GPUs don't hold all, some sleep in host memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import turns_hardware
from gpuspawner.broker.decide.turns import Gpu, Step, TurnRules
from gpuspawner.broker.enforce.turns import Told, TurnKeeper
from gpuspawner.node.checkpoint.book import SleepBook
from gpuspawner.node.checkpoint.hands import LocalHands
from gpuspawner.node.checkpoint.host import Seat
from gpuspawner.node.checkpoint.mover import Mover, MoverRules
from gpuspawner.node.checkpoint.outcome import Outcome
from turns_hardware import GIB, LOG, Bench, Student

RULES = TurnRules(max_turn_seconds=15.0)
RESERVE_BYTES = 3 * GIB
WORK_GIB = 2.0
"""What a cell and the context take besides."""
COMPARED_STEPS = 100
ALONE_STEPS = 1000


@dataclass(frozen=True)
class Cell:
    """One press of Run: whose, its number, when, its first result and end (0: none), steps asked and done."""

    student: int
    number: int
    pressed: float
    first: float
    ended: float
    asked: int
    done: int

    def text(self, found: Results) -> str:
        """A line of the log."""
        first = f"{self.first - self.pressed:.3f}" if self.first else "none"
        ended = f"{self.ended - found.began:.2f}" if self.ended else "never"
        return (
            f"  student {self.student} cell {self.number}: pressed {self.pressed - found.began:.2f}, "
            f"first {first}, ended {ended}, {self.done} of {self.asked} steps"
        )


@dataclass(frozen=True)
class Switch:
    """A step of the keeper with one container."""

    container_id: str
    step: Step
    began: float
    seconds: float
    moved: bool
    done: bool


@dataclass
class Results:
    """What a way came to."""

    began: float = 0.0
    end: float = 0.0
    cells: list[Cell] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    compared: int = 0
    notices: list[str] = field(default_factory=list)
    containers: dict[int, str] = field(default_factory=dict)

    def waits(self) -> list[float]:
        """From pressing Run to the first result, or to the end."""
        return [min(each.first or self.end, self.end) - each.pressed for each in self.cells]

    def by_student(self, quantile: float) -> float:
        """A quantile of the waits in which each student counts the same, however often it pressed Run."""
        counts: dict[int, int] = {}
        for cell in self.cells:
            counts[cell.student] = counts.get(cell.student, 0) + 1
        weighted = sorted(
            (wait, 1.0 / counts[cell.student]) for cell, wait in zip(self.cells, self.waits(), strict=True)
        )
        left = quantile * len(counts)
        for wait, weight in weighted:
            left -= weight
            if left < 1e-9:
                return wait
        return weighted[-1][0] if weighted else 0.0


class SeenHands(LocalHands):
    """The broker's own, and every step is written down."""

    switches: list[Switch]

    async def pause(self, seat: Seat) -> Outcome:
        return self._note(seat, Step.PAUSE, time.monotonic(), await super().pause(seat))

    async def sleep(self, seat: Seat) -> Outcome:
        return self._note(seat, Step.SLEEP, time.monotonic(), await super().sleep(seat))

    async def wake(self, seat: Seat, gpu_uuid: str) -> Outcome:
        began = time.monotonic()
        return self._note(seat, Step.WAKE, began, await super().wake(seat, gpu_uuid))

    def _note(self, seat: Seat, step: Step, began: float, outcome: Outcome) -> Outcome:
        began = min(began, time.monotonic() - outcome.seconds)
        moved = outcome.moved_bytes > 0
        self.switches.append(Switch(seat.container_id, step, began, outcome.seconds, moved, outcome.done))
        return outcome


class Class:
    """One run of one way."""

    def __init__(
        self, bench: Bench, arguments: argparse.Namespace, gib: float, alone: tuple[float, float]
    ) -> None:
        self.bench, self.count, self.gib = bench, arguments.students, gib
        self.seconds, self.warm = arguments.minutes * 60, arguments.warm
        self.steps_a_second, self.reference = alone
        self.results = Results()
        book = SleepBook(bench.folder / f"class-{time.monotonic()}.json")
        self.mover = Mover(bench.driver, bench.host, book, MoverRules())
        self.hands = SeenHands(self.mover, bench.host, bench.inventory, book)
        self.hands.switches = self.results.switches

    async def run(self, way: str) -> Results:
        """All students from start to end."""
        students = await self._start(way)
        self.results.containers = {n: each.seat.container_id for n, each in enumerate(students)}
        keeping = asyncio.create_task(self._keep(students)) if way == "turns" else None
        await asyncio.sleep(1.0)
        self.results.switches.clear()
        self.results.began = time.monotonic()
        self.results.end = self.results.began + self.seconds
        lives = [self._live(n, students[n] if n < len(students) else None) for n in range(self.count)]
        await asyncio.gather(*lives)
        whole = await asyncio.gather(*(student.whole() for student in students))
        self.results.wrong += ["memory"] * whole.count(False)
        self.results.compared += len(whole)
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        self.bench.end(students)
        self.hands.close()
        return self.results

    async def _start(self, way: str) -> list[Student]:
        """On their home GPUs, as many at once as fit; in turns the others start when those sleep."""
        uuids = self.bench.uuids
        fit = int((self.bench.devices[0].memory_bytes - RESERVE_BYTES) / ((self.gib + WORK_GIB) * GIB))
        wave = len(uuids) * fit
        total = {"turns": self.count, "static": len(uuids), "sliced": min(self.count, wave)}[way]
        self.results.refused = self.count - total
        students: list[Student] = []
        for first in range(0, total, wave):
            if students:
                await asyncio.gather(*(self.mover.sleep(each.seat) for each in students))
            numbers = range(first, min(first + wave, total))
            new = [
                Student(self.bench, self.gib, {"CUDA_VISIBLE_DEVICES": uuids[n % len(uuids)]})
                for n in numbers
            ]
            self.bench.students += new
            await asyncio.gather(*(student.ready() for student in new))
            if self.warm:
                await asyncio.gather(*(student.ask("cell 5 60") for student in new))
            students += new
        return students

    async def _live(self, number: int, student: Student | None) -> None:
        """Trains and thinks until the end; without a GPU it waits until then."""
        draw, end = random.Random(number), self.results.end
        await asyncio.sleep(draw.uniform(0, 10))
        count = 1 if self.warm else 0
        while time.monotonic() < end:
            steps = int(draw.uniform(5, 30) * self.steps_a_second)
            pressed = time.monotonic()
            if student is None:
                self.results.cells.append(Cell(number, 0, pressed, 0.0, 0.0, steps, 0))
                return
            await self._cell(number, count, student, pressed, steps)
            count += 1
            await asyncio.sleep(max(0.0, min(draw.uniform(10, 60), end - time.monotonic())))

    async def _cell(self, number: int, count: int, student: Student, pressed: float, steps: int) -> None:
        """The first step's end is the first result."""
        answer = await student.ask(f"cell {steps} {max(0.1, self.results.end - pressed):.1f}", 300.0)
        done, ended = answer["steps"], answer["at"]
        self.results.cells.append(Cell(number, count, pressed, answer["first"], ended, steps, done))
        if done >= COMPARED_STEPS:
            self.results.compared += 1
            if answer["loss"] != self.reference:
                self.results.wrong.append(f"loss of {number}: {answer['loss']!r}")

    async def _keep(self, students: Sequence[Student]) -> None:
        """The broker's own keeper of turns."""
        sizes = {device.uuid: device.memory_bytes for device in self.bench.devices}
        gpus = tuple(Gpu(uuid, sizes[uuid] - RESERVE_BYTES) for uuid in self.bench.uuids)
        keeper = TurnKeeper(self.hands, gpus, RULES, time.monotonic, LOG, Told(notice=self._notice))
        for number, student in enumerate(students):
            keeper.admit(f"student-{number}", student.seat, int((self.gib + WORK_GIB) * GIB))
        try:
            while True:
                with contextlib.suppress(ConnectionError):
                    await keeper.tick()
                await asyncio.sleep(keeper.look_seconds)
        finally:
            print(f"learned: {keeper.seen}", flush=True)
            await keeper.settled()

    async def _notice(self, lease_id: str, sentence: str) -> None:
        self.results.notices.append(f"{lease_id}: {sentence}")


def after_turn(found: Results) -> str:
    """By kind: from the order to wake to the first result, of cells that waited for their turn."""
    kinds: dict[str, list[float]] = {}
    for cell in found.cells:
        wakes = [
            each
            for each in found.switches
            if each.step is Step.WAKE and each.done and cell.pressed <= each.began <= cell.first
            if each.container_id == found.containers.get(cell.student)
        ]
        if wakes:
            kind = "from host" if wakes[0].moved else "first cell" if cell.number == 0 else "resident"
            kinds.setdefault(kind, []).append(cell.first - wakes[0].began)
    return "; ".join(
        f"{kind}: {len(times)} first results, {turns_hardware.spread(times)} after the order to wake"
        for kind, times in sorted(kinds.items())
    )


async def measure_alone(bench: Bench) -> tuple[float, float]:
    """Steps in a second of one alone, and its loss after the steps that are compared."""
    (student,) = await bench.start(1)
    await student.ask("cell 200 60")
    answer = await student.ask(f"cell {ALONE_STEPS} 60")
    bench.end([student])
    return answer["steps"] / (answer["at"] - answer["began"]), float(answer["loss"])


def row(way: str, found: Results, alone: float, gpus: int) -> str:
    """One line of the table."""
    waits = sorted(found.waits()) or [0.0]
    p95 = waits[min(len(waits) - 1, int(len(waits) * 0.95))]
    stretches = [
        (each.ended - each.pressed) / (each.asked / alone) for each in found.cells if each.done == each.asked
    ]
    steps = sum(each.done for each in found.cells)
    seconds = found.end - found.began
    stretch = f"{statistics.median(stretches):.2f}" if stretches else "none done"
    quick = sum(wait <= 0.05 for wait in waits)
    wrong = "; ".join(found.wrong) or f"{found.compared} equal"
    rate = steps / seconds / gpus
    by_student = f"{found.by_student(0.5):.2f} | {found.by_student(0.95):.2f}"
    return (
        f"| {way} | {rate:.1f} | {100 * rate / alone:.0f} % | "
        f"{len(waits)} ({len(stretches)}) | {statistics.median(waits):.2f} | {p95:.2f} | "
        f"{by_student} | {quick} | {stretch} | {found.refused} | {wrong} |"
    )


def switches(found: Results) -> str:
    """Steps by kind, and those that failed."""
    kinds: dict[str, list[float]] = {}
    for each in found.switches:
        name = each.step.value + (" with memory" if each.moved else "") + ("" if each.done else ", FAILED")
        kinds.setdefault(name, []).append(1000 * each.seconds)
    return "; ".join(
        f"{len(times)} x {name} p50 {statistics.median(times):.1f} most {max(times):.0f} ms"
        for name, times in sorted(kinds.items())
    )


def gaps(found: Results) -> str:
    """From the end of a pause to the order of the wake that follows it."""
    steps = sorted(found.switches, key=lambda each: each.began)
    between = [
        wake.began - pause.began - pause.seconds
        for pause in steps
        if pause.step is Step.PAUSE and pause.done
        for wake in [
            next((each for each in steps if each.step is Step.WAKE and each.began > pause.began), None)
        ]
        if wake is not None
    ]
    return f"pause to wake {turns_hardware.spread(between)}" if between else ""


HEAD = (
    "| way | steps/s a GPU | of one alone | presses (cells done) | wait p50 (s) | p95 (s) | p50 by student | "
    "p95 by student | under 50 ms | cell's time : alone, p50 | without a place | losses and memory |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


async def run(arguments: argparse.Namespace) -> int:
    """Each way after the other."""
    turns_hardware.TOTAL_SECONDS = float("inf")
    bench = Bench(arguments.student_python)
    lines: list[str] = []
    wrong: list[Any] = []
    try:
        await bench.driver.start()
        alone = await measure_alone(bench)
        print(f"alone {alone[0]:.1f} steps/s, loss {alone[1]!r}", flush=True)
        for name in arguments.ways:
            way, _, gib = name.partition(":")
            one = Class(bench, arguments, float(gib or arguments.gib), alone)
            began = time.monotonic()
            found = await one.run(way)
            wrong += found.wrong
            lines.append(row(name, found, alone[0], len(bench.uuids)))
            print(f"{name}, {time.monotonic() - began:.0f} s in all\n{lines[-1]}")
            print("\n".join([switches(found), gaps(found), after_turn(found), *found.notices]))
            print("\n".join(cell.text(found) for cell in found.cells))
            sys.stdout.flush()
    finally:
        await bench.close()
    seconds = arguments.minutes * 60
    print(f"\n{arguments.students} students, {arguments.gib} GiB each, {seconds:.0f} s each way\n{HEAD}")
    print("\n".join(lines))
    return len(wrong)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student-python", default="/opt/torch/.venv/bin/python3")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument(
        "--warm", action="store_true", help="each has run a cell before: libraries are loaded"
    )
    parser.add_argument("ways", nargs="*", default=["turns", "static", "sliced"], help="way or way:GiB")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    return 1 if asyncio.run(run(parser.parse_args())) else 0


if __name__ == "__main__":
    sys.exit(main())
