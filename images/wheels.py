"""Python packages for an image, downloaded on the host with the host's own pip settings."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from setup.steps import SetupError, Step


@dataclass(frozen=True)
class Target:
    """The Python inside an image: its version ("3.11") and its C library's ("2.36")."""

    python: str
    glibc: str

    def pip_options(self) -> list[str]:
        """Options of `pip download` that take wheels for this Python instead of the host's."""
        machine = platform.machine()
        minor = int(self.glibc.split(".")[1])
        tags = [f"manylinux_2_{n}_{machine}" for n in range(minor, 4, -1)]
        tags += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
        options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python]
        for tag in [*tags, f"linux_{machine}"]:
            options += ["--platform", tag]
        return options


def pin(lock: str, name: str, version: str) -> str:
    """The lock with another version of one package."""
    return re.sub(rf"(?m)^{re.escape(name)}==.*$", f"{name}=={version}", lock)


def wheelhouse(cache: Path, name: str, lock: str, target: Target, step: Step) -> Path:
    """A folder with exactly the wheels of `lock`, downloaded if it isn't there yet.

    Raises SetupError with pip's own last words and the remedy.
    """
    digest = hashlib.sha256(f"{target}\n{lock}".encode()).hexdigest()[:12]
    folder = cache / "wheels" / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "requirements.lock").write_text(lock)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--progress-bar=off"]
    command += [*target.pip_options(), "-d", str(partial), "-r", str(partial / "requirements.lock")]
    _run_pip(command, step)
    for old in folder.parent.glob(f"{name}-*"):
        if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", old.name):
            shutil.rmtree(old, ignore_errors=True)
    partial.rename(folder)
    return folder


def offers(requirement: str, target: Target) -> bool:
    """Whether pip, as this machine has it set up, offers a wheel of `requirement`."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    command += ["--quiet", "--target", "/nonexistent", *target.pip_options(), requirement]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def _run_pip(command: list[str], step: Step) -> None:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    errors: list[str] = []
    count = 0
    for line in process.stdout:
        if line.startswith("Collecting "):
            count += 1
            step.detail(f"package {count}: {line.split()[1]}")
        elif "ERROR" in line:
            errors.append(line.strip())
    if process.wait() != 0:
        reason = " ".join(errors) or f"pip ended with status {process.returncode}"
        raise SetupError(
            f"the Python packages of the image could not be downloaded: {reason}",
            "see that pip works on this machine (`.venv/bin/pip download pip`) and that there is room on "
            "the disk, then run the command again",
        )
