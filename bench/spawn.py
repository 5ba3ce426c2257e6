"""Click to ready, and thirty at once: gpuspawner against stock DockerSpawner, in pairs on one machine.

Both hubs run at the same time with the same image; spawns alternate between them, and which goes
first alternates too, so that drift of the machine hits both alike. "Click" is the request that
starts the server, "ready" the hub's own word for it in the progress stream that a browser follows.

    python bench/spawn.py                     # 20 pairs and 3 rounds of 30
    python bench/spawn.py --pairs 40 --rounds 0
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

import rich
from hub import Hub, running
from rich.table import Table

STOCK: dict[str, Any] = {}
TIER = {"profile": "gpu"}


def percentile(values: list[float], percent: float) -> float:
    """The value below which `percent` of them lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


async def pairs(stock: Hub, ours: Hub, count: int) -> dict[str, list[float]]:
    """Click-to-ready seconds by hub, `count` spawns each, one at a time, after one warm-up each."""
    seconds: dict[str, list[float]] = {stock.kind: [], ours.kind: []}
    for round_number in range(count + 1):
        order = [(stock, STOCK), (ours, TIER)]
        if round_number % 2:
            order.reverse()
        for hub, options in order:
            taken = await hub.click(0, options)
            await hub.stop(0)
            if round_number:
                seconds[hub.kind].append(taken)
    return seconds


async def burst(hub: Hub, users: int, options: dict[str, Any]) -> tuple[float, int]:
    """(seconds until the last of `users` simultaneous clicks is ready, how many failed)."""
    begin = time.perf_counter()
    results = await asyncio.gather(
        *(hub.click(number, options) for number in range(users)), return_exceptions=True
    )
    drained = time.perf_counter() - begin
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in failures[:3]:
        rich.print(f"[red]{hub.kind}: {failure}[/]")
    await asyncio.gather(*(hub.stop(number) for number in range(users)))
    return drained, len(failures)


def show_pairs(seconds: dict[str, list[float]]) -> None:
    """Prints p50 and p95 of both hubs and their ratios."""
    table = Table("click to ready", "spawns", "p50 s", "p95 s", "min s", "max s")
    for kind, values in seconds.items():
        cells = (statistics.median(values), percentile(values, 95), min(values), max(values))
        table.add_row(kind, str(len(values)), *(f"{cell:.3f}" for cell in cells))
    stock, ours = seconds["stock"], seconds["ours"]
    p50 = statistics.median(ours) / statistics.median(stock)
    p95 = percentile(ours, 95) / percentile(stock, 95)
    table.add_row("ratio ours/stock", "", f"{p50:.3f}", f"{p95:.3f}")
    rich.print(table)


async def main() -> None:
    """Runs both measurements and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--image", default="gpuspawner/lab-base:0.1.0")
    parser.add_argument("--stock-command", default="jupyterhub-singleuser")
    arguments = parser.parse_args()
    environment = {"BENCH_IMAGE": arguments.image, "BENCH_STOCK_COMMAND": arguments.stock_command}
    async with (
        running("stock", environment, arguments.users) as stock,
        running("ours", environment, arguments.users) as ours,
    ):
        if arguments.pairs:
            show_pairs(await pairs(stock, ours, arguments.pairs))
        table = Table("all at once", "users", "stock s", "ours s", "stock/ours", "failures")
        for _ in range(arguments.rounds):
            stock_seconds, stock_failed = await burst(stock, arguments.users, STOCK)
            ours_seconds, ours_failed = await burst(ours, arguments.users, TIER)
            table.add_row(
                "drained",
                str(arguments.users),
                f"{stock_seconds:.1f}",
                f"{ours_seconds:.1f}",
                f"{stock_seconds / ours_seconds:.2f}",
                f"{stock_failed} / {ours_failed}",
            )
        if arguments.rounds:
            rich.print(table)


if __name__ == "__main__":
    asyncio.run(main())
