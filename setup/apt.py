"""Installs packages of the operating system with apt, as root; elsewhere a message says what to install."""

from __future__ import annotations

import os
import shutil
import subprocess

from setup.steps import SetupError, Step

OPTIONS = ["-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]


def may_install() -> bool:
    """Whether packages can be installed here: root, and apt."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: list[str], purpose: str, step: Step) -> None:
    """Installs `packages`. Raises SetupError without the rights, or if apt fails, with apt's reason."""
    names = " ".join(packages)
    if not may_install():
        why = "this is not root" if os.geteuid() != 0 else "there is no apt on this system"
        raise SetupError(
            f"{purpose} is missing, and {why}",
            f"install it (on Debian or Ubuntu, as root: apt-get install {names}), then run this again",
        )
    step.detail(f"installing {names}")
    # The package lists may be missing or old: they are fetched only if the installation fails without.
    for update_first in (False, True):
        if update_first:
            step.detail("fetching the lists of packages")
            _apt(["update", "-q"])
            step.detail(f"installing {names}")
        done = _apt(["install", *OPTIONS, *packages])
        if done.returncode == 0:
            return
    raise SetupError(
        f"{names} could not be installed: {_reason(done.stderr)}",
        "check that apt-get works on this machine (network, mirror, disk space), then run this again",
    )


def _apt(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        ["apt-get", *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def _reason(stderr: str) -> str:
    errors = [line[3:] for line in stderr.splitlines() if line.startswith("E: ")]
    return "; ".join(errors[:3]) or stderr.strip()[-300:] or "apt-get gave no reason"
