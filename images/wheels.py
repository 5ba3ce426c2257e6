"""Python packages for an image, downloaded on the host with the host's own pip settings."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from images.stock import Goods, Stock
from setup.steps import SetupError, Step

OFFER_SECONDS = 15.0
PIP = [sys.executable, "-m", "pip"]


@dataclass(frozen=True)
class Target:
    """The Python inside an image: its version ("3.11") and its C library's ("2.36")."""

    python: str
    glibc: str

    def pip_options(self) -> list[str]:
        """Options of `pip download` that take wheels for this Python instead of the host's."""
        return ["--only-binary=:all:", *self.platform_options()]

    def platform_options(self) -> list[str]:
        """The same, but packages that are published as source only are taken too."""
        machine = platform.machine()
        minor = int(self.glibc.split(".")[1])
        tags = [f"manylinux_2_{n}_{machine}" for n in range(minor, 4, -1)]
        tags += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
        options = ["--implementation", "cp", "--python-version", self.python]
        for tag in [*tags, f"linux_{machine}"]:
            options += ["--platform", tag]
        return options


@dataclass(frozen=True)
class Lock:
    """The exact Python packages of an image: lines `name==version`, and which of them are source only."""

    name: str
    text: str
    source: tuple[str, ...] = ()

    def requirement(self, package: str) -> str:
        """The line of one package. Raises ValueError if the lock has none."""
        line = re.search(rf"(?m)^{re.escape(package)}={{2,3}}.*$", self.text)
        if line is None:
            raise ValueError(f"the lock of {self.name} has no {package}: run `make lock`")
        return line[0]

    def goods(self, target: Target) -> Goods:
        """What its wheels are filed under."""
        return Goods("wheels", self.name, f"{target}\n{self.text}")


def pin(lock: str, name: str, version: str) -> str:
    """The lock with another version of one package."""
    return re.sub(rf"(?m)^{re.escape(name)}==.*$", f"{name}=={version}", lock)


def wheelhouse(stock: Stock, lock: Lock, target: Target, step: Step) -> Path:
    """A folder with exactly the wheels of `lock`, downloaded if it isn't there yet.

    Raises SetupError with pip's last output and the remedy.
    """

    def fill(folder: Path) -> None:
        build_source([lock.requirement(name) for name in lock.source], target, folder, step)
        listed = folder / "requirements.lock"
        listed.write_text(lock.text)
        command = [*PIP, "download", "--no-deps", "--progress-bar=off", "--find-links", str(folder)]
        run_pip([*command, *target.pip_options(), "-d", str(folder), "-r", str(listed)], step)

    return stock.get(lock.goods(target), fill)


def build_source(requirements: Sequence[str], target: Target, folder: Path, step: Step) -> None:
    """Puts wheels into `folder` of those packages that are published as source only.

    Raises SetupError if one is not pure Python: what is compiled here might not run in the image.
    """
    missing = [requirement for requirement in requirements if not offers(requirement, target)]
    if not missing:
        return
    names = ",".join(requirement.split("=")[0] for requirement in missing)
    command = [*PIP, "wheel", "--no-deps", "--progress-bar=off", "--no-binary", names, "-w", str(folder)]
    run_pip([*command, *missing], step)
    compiled = sorted(path.name for path in folder.glob("*.whl") if not path.name.endswith("-none-any.whl"))
    if compiled:
        raise SetupError(
            f"{', '.join(compiled)} was compiled on this machine, and may not run in the image",
            "take its name out of `source` in images/images.toml",
        )


def offers(requirement: str, target: Target) -> bool:
    """Whether pip, as this machine has it set up, offers a wheel of `requirement`. No answer is a no."""
    command = [*PIP, "install", "--dry-run", "--no-deps", "--ignore-installed", "--retries=0", "--timeout=5"]
    command += ["--quiet", "--target", "/nonexistent", *target.pip_options(), requirement]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=OFFER_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def run_pip(command: list[str], step: Step) -> None:
    """Runs pip, showing what it collects. Raises SetupError with its own words if it fails."""
    errors: list[str] = []
    count = 0
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Collecting "):
                count += 1
                step.detail(f"package {count}: {line.split()[1]}")
            elif "ERROR" in line:
                errors.append(line.strip())
    if process.returncode != 0:
        reason = " ".join(errors) or f"pip ended with status {process.returncode}"
        raise SetupError(
            f"the Python packages could not be downloaded: {reason}",
            "see that pip works on this machine (`.venv/bin/pip download pip`) and that there is room on "
            "the disk, then run the command again",
        )
