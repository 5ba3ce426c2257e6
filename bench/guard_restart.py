"""How soon a killed broker's successor guards: from the start of its process to its first verdict.

A container on this machine's Docker Engine, a slice of a scripted GPU, and a process far over its quota: the
guard ends it at its second look, 0.25 s after its first. In each round a second process only imports what the
broker imports before it opens anything, so that load hits both halves of a pair alike. Run it as root: the
processes wait for no others (SCHED_RR), as far as that is allowed.

    python bench/guard_restart.py                 # 20 pairs
    python bench/guard_restart.py --source FOLDER # the broker of another checkout: its folder `spawner`
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import docker
import pytest
import rich

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.docker.test_guard import alive
from tests.docker.test_guard_restart import START_SECONDS, Brokers, brokers_of
from tests.docker.test_slices import GIB, slice_site
from tests.prompt import go_first, going_first
from tests.soon import until

IMAGE = "gpuspawner-bench/tiny"
IMPORTS = """
import time
began = time.monotonic()
import gpuspawner.broker.__main__
print(time.monotonic() - began)
"""


def import_tiny_image(engine: docker.APIClient) -> None:
    """An image with a static busybox alone."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("busybox is missing: apt-get install busybox-static")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
    engine.import_image_from_data(data.getvalue(), repository=IMAGE, tag="latest")


def importing(environment: dict[str, str]) -> float:
    """Seconds in which another process imports what a broker does before it opens anything."""
    command = [sys.executable, "-c", IMPORTS]
    return float(subprocess.check_output(command, env=environment, preexec_fn=go_first))


async def verdicts(brokers: Brokers, pairs: int) -> list[tuple[float, float]]:
    """For each round: seconds from the start to the verdict, and seconds of the imports alone."""
    site = brokers.site
    brokers.start()
    await until((site.folder / "broker.sock").exists, START_SECONDS)
    _, box = await site.start("anna")
    found = []
    for number in range(pairs):
        kernel = box.sleeper(f"kernel-{number}")
        brokers.kill()
        line = site.script.process(kernel, 20 * GIB, mps=1)
        with going_first():
            began = time.monotonic()
            brokers.start()
            while alive(kernel):
                time.sleep(0.005)
            took = time.monotonic() - began
            found.append((took, importing(brokers.environment())))
        site.script.drop(line)
        rich.print(f"{number + 1}: {found[-1][0]:.2f} s, imports {found[-1][1]:.2f} s")
    return found


async def measured(pairs: int) -> list[tuple[float, float]]:
    """The rounds, on a site of their own."""
    engine = docker.APIClient(timeout=60)
    import_tiny_image(engine)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        async with slice_site(engine, IMAGE, Path(folder), patch) as site:
            with brokers_of(site, Path(folder) / "tools") as brokers:
                return await verdicts(brokers, pairs)


def main() -> None:
    """Prints medians, and the imports' share within a pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--source", type=Path)
    wanted = parser.parse_args()
    if wanted.source is not None:
        sys.path.insert(0, str(wanted.source.absolute()))
    found = asyncio.run(measured(wanted.pairs))
    took, imports = ([pair[at] for pair in found] for at in (0, 1))
    share = statistics.median(alone / whole for whole, alone in found)
    rich.print(
        f"from the start to the verdict: {statistics.median(took):.2f} s (p50), {max(took):.2f} s at most; "
        f"its imports alone: {statistics.median(imports):.2f} s, {100 * share:.0f} % within a pair"
    )


if __name__ == "__main__":
    main()
