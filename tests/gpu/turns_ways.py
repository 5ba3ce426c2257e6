"""Runs the class of `test_turns_lab.py` in several ways, one after the other, and prints their table.

    python tests/gpu/turns_ways.py OUT turns:8:"60 helper sleep, 150 broker wake" pressure:3
    python tests/gpu/turns_ways.py OUT whole:3 sliced:3 mps:3 turns:3

Each way is NAME:MINUTES[:KILLS]. The results are JSON files in OUT; the table has all that lie there, so that
it also holds those of earlier calls. The exit status is how many ways failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HEAD = (
    "| way | minutes | GiB each | cells | used part of the GPUs | against whole GPUs | wait p50 (s) | p95 | "
    "most | killed |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Way:
    """One run: the name of the way, how long, and what is killed when."""

    name: str
    minutes: float
    kills: str = ""

    @classmethod
    def parse(cls, text: str) -> Way:
        """From "turns:8:60 helper, 120 broker". Raises ValueError."""
        name, minutes, *kills = text.split(":", 2)
        return cls(name, float(minutes), *kills)

    def run(self, out: Path, number: int) -> int:
        """The exit status of the test; its output and results are in the folder."""
        stem = f"{number:02}-{self.name}"
        environment = {
            **os.environ,
            "GPUSPAWNER_TURNS_WAY": self.name,
            "GPUSPAWNER_TURNS_MINUTES": str(self.minutes),
            "GPUSPAWNER_TURNS_KILLS": self.kills,
            "GPUSPAWNER_RESULTS": str(out / f"{stem}.json"),
            "GPUSPAWNER_REQUIRE_GPU": "1",
            "PYTHONUNBUFFERED": "1",  # what was seen is in the file also if the run is cut off
        }
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
        with (out / f"{stem}.txt").open("w") as output:
            done = subprocess.run(
                [*command, str(HERE / "test_turns_lab.py")],
                env=environment, stdout=output, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        return done.returncode


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The rows of all results; the work is compared with that of whole GPUs, if that was run."""
    whole = [each["used part of the GPUs' time"] for each in results if each["way"] == "whole"]
    rows = [HEAD]
    for each in results:
        used = each["used part of the GPUs' time"]
        ratio = f"{used / whole[0]:.2f}" if whole and whole[0] else "not run"
        p50, p95, most = each["waits p50, p95, most (s)"]
        minutes = each["seconds until the last cell ended"] / 60
        killed = ", ".join(f"{count} x {what}" for what, count in each["killed"].items()) or "nothing"
        rows.append(
            f"| {each['way']} | {minutes:.1f} | {each['GiB of each']:.0f} | {each['cells']} | {used:.0%} | "
            f"{ratio} | {p50:.2f} | {p95:.1f} | {most:.1f} | {killed} |"
        )
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> int:
    """The command."""
    out, ways = Path(arguments[0]), [Way.parse(each) for each in arguments[1:]]
    out.mkdir(parents=True, exist_ok=True)
    begun, failed = len(list(out.glob("*.json"))), 0
    for number, way in enumerate(ways, begun):
        status = way.run(out, number)
        failed += status != 0
        print(f"{way.name}: {'passed' if status == 0 else f'FAILED ({status})'}", flush=True)
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    print(table([each for each in found if "way" in each]))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
