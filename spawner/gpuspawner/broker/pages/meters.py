"""Meters and curves: how much of a quota is in use, and was in the last hour. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.units import format_bytes
from ..observe.sampler import POINTS, Point

NEARLY_FULL_PERCENT = 90.0


@dataclass(frozen=True, slots=True)
class Meter:
    """A part of a whole. `percent` 0-100, None if it isn't known; then `text` says why.

    `level` colours it: "" as long as there is room, "warning" when it is nearly full, "danger" when it is.
    """

    percent: float | None
    text: str
    left: str = ""
    level: str = ""

    @property
    def width(self) -> str:
        """The length of the bar in per cent, as CSS takes it."""
        return "0" if self.percent is None else f"{min(100.0, self.percent):.1f}"


def memory_meter(used_bytes: int | None, quota_bytes: int, simulated: bool = False) -> Meter:
    """GPU memory that counts against the quota, of the quota."""
    whole = format_bytes(quota_bytes)
    if simulated:
        return Meter(None, f"{whole}; a simulated GPU has nothing to measure")
    if used_bytes is None:
        return Meter(None, f"not known now · {whole} are yours")
    percent = 100 * used_bytes / quota_bytes if quota_bytes else 0.0
    over = used_bytes > quota_bytes
    left = "over the quota" if over else f"{format_bytes(quota_bytes - used_bytes)} left"
    level = "danger" if over else "warning" if percent >= NEARLY_FULL_PERCENT else ""
    return Meter(percent, f"{format_bytes(used_bytes)} of {whole}", left, level)


def compute_meter(busy_percent: float | None) -> Meter:
    """How busy the GPU was in the last seconds."""
    if busy_percent is None:
        return Meter(None, "not known")
    return Meter(busy_percent, f"{busy_percent:.0f} % busy")


def reading(lease: Mapping[str, Any]) -> dict[str, Any]:
    """What the script writes into the meters of one lease: texts and widths."""
    memory = memory_meter(lease.get("used_bytes"), lease["memory_bytes"])
    busy = compute_meter(lease.get("busy_percent"))
    return {
        "memory": [memory.text, memory.width, memory.left, memory.level],
        "compute": [busy.text, busy.width, "", ""],
    }


@dataclass(frozen=True, slots=True)
class Curve:
    """The last hour as SVG paths in a box of `POINTS` × 100, and in words for those who don't see it.

    `line` is the upper edge and `area` what is below it; a time without readings is a gap.
    """

    line: str
    area: str
    words: str


def memory_curve(points: Sequence[Point], quota_bytes: int) -> Curve | None:
    """Memory as a part of the quota; None without readings."""
    values = [
        None if point.memory_bytes is None or not quota_bytes else 100 * point.memory_bytes / quota_bytes
        for point in points
    ]
    most = max((point.memory_bytes for point in points if point.memory_bytes is not None), default=None)
    if most is None:
        return None
    return _curve(values, f"in the last hour at most {format_bytes(most)} of {format_bytes(quota_bytes)}")


def compute_curve(points: Sequence[Point]) -> Curve | None:
    """How busy the GPU was; None without readings."""
    values = [point.busy_percent for point in points]
    known = [value for value in values if value is not None]
    if not known:
        return None
    return _curve(values, f"in the last hour {sum(known) / len(known):.0f} % busy on average")


def _curve(values: Sequence[float | None], words: str) -> Curve:
    """Newest at the right edge; a curve that is shorter than an hour begins in the middle."""
    left = POINTS - len(values)
    lines, areas = [], []
    for run in _runs(values):
        corners = [f"{left + x} {100 - min(100.0, value):.0f}" for x, value in run]
        first, last = left + run[0][0], left + run[-1][0] + 1
        corners.append(f"{last} {corners[-1].split()[1]}")
        lines.append("M" + " L".join(corners))
        areas.append(f"M{first} 100 L" + " L".join(corners) + f" L{last} 100 Z")
    return Curve(" ".join(lines), " ".join(areas), words)


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The parts without a gap, each with its positions."""
    runs: list[list[tuple[int, float]]] = []
    for x, value in enumerate(values):
        if value is None:
            continue
        if not runs or runs[-1][-1][0] != x - 1:
            runs.append([])
        runs[-1].append((x, value))
    return runs
