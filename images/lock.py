"""`make lock`: writes the exact versions of every image's Python packages, for the oldest Python they meet.

Each image's `requirements.in` is resolved together with those below it; the lock holds what it adds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from images.table import Image, read_table
from images.wheels import Target

OLDEST = Target(python="3.11.2", glibc="2.36")  # Debian 12
HEAD = "# Exact versions of everything that this image adds. Written by `make lock`; don't edit.\n"


def main() -> int:
    """Resolves every image of the table, parents first."""
    below: dict[str, dict[str, str]] = {"base": {}}
    inputs: dict[str, list[str]] = {"base": []}
    for image in read_table().images:
        parent = below[image.parent]
        inputs[image.name] = inputs[image.parent] + _requirements(image)
        pins = resolve(inputs[image.name], parent)
        below[image.name] = pins
        _write(image.folder / image.lock, image, pins, parent)
        if image.cpu_lock:
            cpu = resolve([f"{line}" for line in inputs[image.name]], parent, cpu=True)
            _write(image.folder / image.cpu_lock, image, cpu, parent)
    return 0


def resolve(requirements: list[str], parent: dict[str, str], cpu: bool = False) -> dict[str, str]:
    """Names and versions of all that `requirements` need, with the parent's versions kept.

    `cpu` takes the build of PyTorch without CUDA that this machine's pip must offer.
    """
    kept = [f"{name}=={version}" for name, version in parent.items()]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--report", "-", "--target", "/nonexistent", *OLDEST.pip_options()]
    report = subprocess.run([*command, *_exact(requirements, cpu), *kept], stdout=subprocess.PIPE, check=True)
    packages = (item["metadata"] for item in json.loads(report.stdout)["install"])
    return {item["name"].lower().replace("_", "-"): item["version"] for item in packages}


def _exact(requirements: list[str], cpu: bool) -> list[str]:
    """The requirements with `torch===X` as it is (no local build matches ===), or as the CPU build."""
    return [line.replace("===", "==") + "+cpu" if cpu and "===" in line else line for line in requirements]


def _requirements(image: Image) -> list[str]:
    lines = (image.folder / "requirements.in").read_text().splitlines()
    return [text for line in lines if (text := line.split("#")[0].strip())]


def _write(path: Path, image: Image, pins: dict[str, str], parent: dict[str, str]) -> None:
    plain = {line.split("===")[0] for line in _requirements(image) if "===" in line}
    added = {name: version for name, version in sorted(pins.items()) if name not in parent}
    lines = [f"{name}{'===' if name in plain and '+' not in v else '=='}{v}\n" for name, v in added.items()]
    path.write_text(HEAD + "".join(lines))
    print(f"{path}: {len(lines)} packages")


if __name__ == "__main__":
    sys.exit(main())
