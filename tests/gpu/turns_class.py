"""A class on real GPUs: students with bursty work, in turns, with static GPUs and a queue, and time-slicing.

    PYTHONPATH=spawner:PACKAGES python tests/gpu/turns_class.py --minutes 2 --students 6 turns static sliced

The seeds are the same for each way. The plan and the keeper of turns are the broker's own; students are plain
processes in cgroups of their own, as in turns_hardware.py. A student trains for 5 to 30 s of GPU time (as it
takes alone), then thinks for 10 to 60 s. Losses and memory are compared with those of an undisturbed run.
`static`: of the students of a GPU one has it, for an equal part of the whole time, and then the next.
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
from dataclasses import dataclass, field
from typing import Any

import turns_hardware
from gpuspawner.broker.decide.turns import Gpu, Step, TurnRules
from gpuspawner.broker.enforce.turns import Told, TurnKeeper
from gpuspawner.node.checkpoint.book import SleepBook
from gpuspawner.node.checkpoint.hands import LocalHands
from gpuspawner.node.checkpoint.mover import Mover, MoverRules
from gpuspawner.node.checkpoint.outcome import Outcome
from turns_hardware import GIB, LOG, Bench, Student

RULES = TurnRules(
    pause_after_seconds=1.0, min_turn_seconds=1.0, max_turn_seconds=15.0, sleep_after_seconds=120.0
)
RESERVE_BYTES = 3 * GIB
LOOK_SECONDS = 0.1


@dataclass
class Results:
    """What a way came to. Waits are from pressing Run to the first result."""

    waits: list[float] = field(default_factory=list)
    steps: int = 0
    wrong: list[str] = field(default_factory=list)
    switches: dict[str, list[float]] = field(default_factory=dict)
    failed_steps: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Class:
    """One run of one way."""

    def __init__(self, bench: Bench, count: int, seconds: float, gib: float) -> None:
        self.bench, self.count, self.seconds, self.gib = bench, count, seconds, gib
        self.results = Results()
        self.steps_a_second = 0.0
        self.reference = 0.0

    async def run(self, way: str) -> Results:
        """All students from start to end."""
        students = await self._start(way)
        keeping = None
        if way == "turns":
            keeping = asyncio.create_task(self._keep(students))
            await asyncio.sleep(5.0)
        began = time.monotonic()
        end = began + self.seconds
        gpus = [asyncio.Lock() for _ in self.bench.uuids]
        lives = [
            self._live(n, each, end, gpus[n % len(gpus)] if way == "static" else None)
            for n, each in enumerate(students)
        ]
        await asyncio.gather(*lives)
        self.results.seconds = time.monotonic() - began
        for number, student in enumerate(students):
            if not await student.whole():
                self.results.wrong.append(f"memory of {number}")
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        self.bench.end(students)
        return self.results

    async def _start(self, way: str) -> list[Student]:
        """All at once; each on its home GPU."""
        students = []
        for number in range(self.count):
            home = self.bench.uuids[number % len(self.bench.uuids)]
            students.append(Student(self.bench, self.gib, {"CUDA_VISIBLE_DEVICES": home}))
        self.bench.students += students
        await asyncio.gather(*(student.ready() for student in students))
        return students

    async def _live(self, number: int, student: Student, end: float, gpu: asyncio.Lock | None) -> None:
        """Trains and thinks until the end; with static GPUs only while it holds one."""
        draw = random.Random(number)
        await asyncio.sleep(draw.uniform(0, 10))
        pressed = time.monotonic()
        if gpu is None:
            await self._work(student, draw, pressed, end)
            return
        share = self.seconds / -(-self.count // len(self.bench.uuids))
        async with gpu:
            if time.monotonic() < end:
                await self._work(student, draw, pressed, min(end, time.monotonic() + share))
            else:
                self.results.waits.append(end - pressed)

    async def _work(self, student: Student, draw: random.Random, pressed: float, end: float) -> None:
        """Cell after cell; the first was asked for when it was pressed."""
        while time.monotonic() < end:
            await self._cell(student, draw, pressed, end)
            await asyncio.sleep(max(0.0, min(draw.uniform(10, 60), end - time.monotonic())))
            pressed = time.monotonic()

    async def _cell(self, student: Student, draw: random.Random, pressed: float, end: float) -> None:
        """The first step's end is the first result."""
        steps = int(draw.uniform(5, 30) * self.steps_a_second)
        answer = await student.ask(f"cell {steps} {max(0.1, end - time.monotonic()):.1f}", 900.0)
        self.results.waits.append(answer["first"] - pressed)
        self.results.steps += answer["steps"]
        if answer["steps"] >= 200 and answer["loss"] != self.reference:
            self.results.wrong.append(f"loss of {student.process.pid}: {answer['loss']!r}")

    async def measure_alone(self) -> None:
        """Steps in a second of one alone, and its loss after 200."""
        (student,) = await self.bench.start(1)
        await student.ask("cell 400 60")
        answer = await student.ask("cell 4000 60")
        self.steps_a_second = answer["steps"] / (answer["at"] - answer["began"])
        self.reference = answer["loss"]
        self.bench.end([student])

    async def _keep(self, students: list[Student]) -> None:
        """The broker's own keeper of turns."""
        book = SleepBook(self.bench.folder / "class.json")
        mover = Mover(self.bench.driver, self.bench.host, book, MoverRules())
        hands = LocalHands(mover, self.bench.host, self.bench.inventory, book)
        sizes = {device.uuid: device.memory_bytes for device in self.bench.devices}
        gpus = tuple(Gpu(uuid, sizes[uuid] - RESERVE_BYTES) for uuid in self.bench.uuids)
        told = Told(notice=self._notice, step=self._stepped)
        keeper = TurnKeeper(hands, gpus, RULES, time.monotonic, LOG, told)
        for number, student in enumerate(students):
            keeper.admit(f"student-{number}", student.seat, int((self.gib + 4) * GIB))
        try:
            while True:
                with contextlib.suppress(ConnectionError):
                    await keeper.tick()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await keeper.settled()
            for student in students:
                await mover.wake(student.seat, self.bench.uuids[0])
            hands.close()

    async def _notice(self, lease_id: str, sentence: str) -> None:
        self.results.failed_steps.append(f"{lease_id}: {sentence}")

    def _stepped(self, step: Step, outcome: Outcome) -> None:
        kind = step.value + (" with memory" if outcome.moved_bytes else "")
        self.results.switches.setdefault(kind, []).append(outcome.seconds)
        if not outcome.done:
            self.results.failed_steps.append(f"{step.value}: {outcome.log_text()}")


def row(way: str, found: Results, gpus: int) -> str:
    """One line of the table."""
    waits = sorted(found.waits)
    p95 = waits[min(len(waits) - 1, int(len(waits) * 0.95))] if waits else 0.0
    switches = ", ".join(
        f"{len(each)} × {kind} p50 {1000 * statistics.median(each):.0f} ms"
        for kind, each in found.switches.items()
    )
    wrong = "; ".join(found.wrong) or "all equal"
    failed = (
        f"; {len(found.failed_steps)} steps failed: {found.failed_steps[:3]}" if found.failed_steps else ""
    )
    return (
        f"| {way} | {found.steps / found.seconds / gpus:.0f} | {len(waits)} | "
        f"{statistics.median(waits or [0]):.2f} | {p95:.2f} | {wrong} | {switches}{failed} |"
    )


async def run(arguments: argparse.Namespace) -> int:
    """Each way after the other."""
    turns_hardware.TOTAL_SECONDS = float("inf")
    bench = Bench(arguments.student_python)
    lines: list[str] = []
    wrong: list[Any] = []
    try:
        await bench.driver.start()
        for way in arguments.ways:
            one = Class(bench, arguments.students, arguments.minutes * 60, arguments.gib)
            await one.measure_alone()
            found = await one.run(way)
            wrong += found.wrong
            lines.append(row(way, found, len(bench.uuids)))
            print(f"alone {one.steps_a_second:.0f} steps/s; {lines[-1]}", flush=True)
    finally:
        await bench.close()
    print("\n| way | steps/s a GPU | cells | wait p50 (s) | p95 (s) | losses and memory | switches |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    return len(wrong)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student-python", default="/opt/torch/.venv/bin/python3")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--students", type=int, default=6)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("ways", nargs="*", default=["turns", "static", "sliced"])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    return 1 if asyncio.run(run(parser.parse_args())) else 0


if __name__ == "__main__":
    sys.exit(main())
