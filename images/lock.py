"""`make lock`: writes the exact versions of every image's Python packages, for the oldest Python they meet,
and the digest of the base image.

Each image's `requirements.in` is resolved together with those of its parents; the lock has what it adds. If
an index can't be reached from here, the existing lock is kept, and a message says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from images.stock import CACHE
from images.table import IMAGES_DIR, Base, Image, pins_of, read_table
from images.wheels import PIP, Target, build_source, offers
from setup.steps import SetupError, Step, step

OLDEST = Target(python="3.11.2", glibc="2.36")  # Debian 12
HEAD = "# Exact versions of everything that this image adds. Written by `make lock`; don't edit.\n"
BASE_HEAD = "# The base image that is pulled, by digest. Written by `make lock`; don't edit.\n"
REGISTRY_SECONDS = 20


def main() -> int:
    """Resolves every image of the table, parents first; returns the exit status."""
    table = read_table()
    try:
        with step("base image") as current:
            current.note = lock_base(table.base, IMAGES_DIR / "base.lock")
            current.mark = "–" if "kept" in current.note else "✓"
        locked: dict[str, dict[str, str]] = {"base": {}}
        inputs: dict[str, list[str]] = {"base": []}
        for image in table.images:
            parent = locked[image.parent]
            inputs[image.name] = inputs[image.parent] + _requirements(image)
            with step(f"image {image.name}") as current:
                if missing := _out_of_reach(image):
                    current.mark = "–"
                    current.note = f"kept unchanged: NVIDIA's package index can't be reached (no {missing})"
                    locked[image.name] = {**parent, **pins_of(image.folder / image.lock)}
                    continue
                locked[image.name] = _lock(image, inputs[image.name], parent, current)
                current.note = f"{len(locked[image.name]) - len(parent)} packages"
    except SetupError as error:
        print(error.block(), file=sys.stderr)
        return 1
    return 0


def lock_base(base: Base, path: Path) -> str:
    """Writes the registry's digest of the image that is pulled; returns what it did.

    The digest is the list's, right for every architecture. Without registry or engine the file stays.
    """
    try:
        client = docker.from_env(timeout=REGISTRY_SECONDS)
        try:
            digest = client.images.get_registry_data(base.pull).id
        finally:
            client.close()
    except (DockerException, RequestException):
        kept = f"kept at {base.digest}" if base.digest else "kept without a digest: pulled by its tag"
        return f"{kept}, as {base.pull} can't be looked up in its registry"
    path.write_text(f"{BASE_HEAD}{base.pull} {digest}\n")
    return f"{base.pull} is {digest}"


def resolve(
    requirements: list[str], parent: dict[str, str], links: Path, cpu: bool = False
) -> dict[str, str]:
    """Names and versions of all that `requirements` need, with the parent's versions kept.

    `links` is a folder with wheels that no index has. `cpu` takes the build of PyTorch without CUDA that this
    machine's pip must offer. Raises SetupError if they don't fit together.
    """
    kept = [f"{name}=={version}" for name, version in parent.items()]
    command = [*PIP, "install", "--dry-run", "-qq", "--ignore-installed", "--find-links", str(links)]
    command += ["--report", "-", "--target", "/nonexistent", *OLDEST.pip_options()]
    report = subprocess.run([*command, *_exact(requirements, cpu), *kept], stdout=subprocess.PIPE)
    if report.returncode != 0:
        raise SetupError(
            "pip finds no versions that fit together", "see its output above, and each requirements.in"
        )
    packages = (item["metadata"] for item in json.loads(report.stdout)["install"])
    return {item["name"].lower().replace("_", "-"): item["version"] for item in packages}


def _lock(image: Image, requirements: list[str], parent: dict[str, str], current: Step) -> dict[str, str]:
    """Writes the locks of one image; returns the versions of the first, with its parents'."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        links = Path(folder)
        build_source([_line(requirements, name) for name in image.source], OLDEST, links, current)
        pins = resolve(requirements, parent, links)
        _write(image.folder / image.lock, image, pins, parent)
        if image.cpu_lock:
            cpu = resolve(requirements, parent, links, cpu=True)
            _write(image.folder / image.cpu_lock, image, cpu, parent)
    return pins


def _out_of_reach(image: Image) -> str:
    """The first requirement of the image that only NVIDIA's index has, and that pip does not find; or ""."""
    wanted = [_line(_requirements(image), name) for name in image.elsewhere]
    return next((requirement for requirement in wanted if not offers(requirement, OLDEST)), "")


def _line(requirements: list[str], name: str) -> str:
    """The requirement of one package, which must be exact. Raises SetupError if it is not."""
    line = next((line for line in requirements if line.split("==")[0] == name), "")
    if not line:
        raise SetupError(f"{name} has no exact version in requirements.in", f"write it as {name}==VERSION")
    return line


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


if __name__ == "__main__":
    sys.exit(main())
