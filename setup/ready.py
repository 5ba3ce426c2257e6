"""Installs what is missing on this machine, step by step; steps that are already done take no time.

Usage: python -m setup.ready STEP ...
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from setup import apt
from setup.engine import ensure_engine
from setup.proxy import ensure_proxy
from setup.steps import ROOT, SetupError, step

# Programs that the tests need beside Python: package -> a program that shows that it is installed.
TEST_PROGRAMS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "gcc": ("gcc",),
    "libc6-dev": ("/usr/include/stdio.h",),
    "busybox-static": ("busybox",),
    "file": ("file",),
    "git": ("git",),
    "docker-registry": ("docker-registry",),
    "postgresql": ("/usr/lib/postgresql",),
}
# Packages that start a service when they are installed, which is not wanted here.
UNWANTED_SERVICES = ("docker-registry", "postgresql")


def proxy() -> None:
    """configurable-http-proxy with a Node.js."""
    with step("proxy") as current:
        ensure_proxy(current)


def engine() -> None:
    """A Docker Engine that answers."""
    with step("Docker Engine") as current:
        ensure_engine(current)


def images() -> None:
    """The lab images: all, or the one that GPUSPAWNER_IMAGE names."""
    from images.build import build_images, choose_stock, connect, ensure_named
    from images.table import read_table

    client, table = connect(), read_table()
    wanted = os.environ.get("GPUSPAWNER_IMAGE", "")
    ours = {image.reference: image.name for image in table.images}
    try:
        if wanted and wanted not in ours:
            ensure_named(client, wanted)
        else:
            build_images(client, table, [ours[wanted]] if wanted else [], choose_stock(table))
    finally:
        client.close()


def programs() -> None:
    """Packages of the operating system for the tests."""
    with step("programs for the tests") as current:
        missing = [package for package, names in TEST_PROGRAMS.items() if not any(map(_there, names))]
        if missing:
            apt.install(missing, f"what the tests need ({', '.join(missing)})", current)
            for name in set(missing) & set(UNWANTED_SERVICES):
                _end_service(name)


def cdi() -> None:
    """The second, newer engine for the tests of CDI. If it is not available, these tests are skipped."""
    _unpack("newer Docker Engine for the tests of CDI", "engine-cdi.sh")


def prometheus() -> None:
    """Prometheus and promtool. If they are not available, the tests of the alert rules are skipped."""
    _unpack("Prometheus for the tests of the alert rules", "prometheus.sh")


STEPS: dict[str, Callable[[], None]] = {
    "proxy": proxy,
    "engine": engine,
    "images": images,
    "programs": programs,
    "cdi": cdi,
    "prometheus": prometheus,
}


def main(names: Sequence[str]) -> int:
    """Runs the named steps in this order; returns the exit status."""
    unknown = [name for name in names if name not in STEPS]
    if unknown or not names:
        print(f"usage: python -m setup.ready {{{','.join(STEPS)}}} ...", file=sys.stderr)
        return 2
    try:
        for name in names:
            STEPS[name]()
    except SetupError as error:
        print(error.block(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Finished steps are kept: run the same command to continue.", file=sys.stderr)
        return 130
    return 0


def _unpack(title: str, script: str) -> None:
    """Runs a script that fetches programs into .cache; without them, tests are skipped."""
    with step(title) as current:
        path = str(ROOT / "setup" / script)
        done = subprocess.run([path], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            current.note = f"not available, its tests are skipped: {' '.join(done.stderr.split())[-300:]}"


def _end_service(name: str) -> None:
    """Ends the service that a new package has started, and disables it at the start of the machine."""
    if os.path.isdir("/run/systemd/system"):
        commands = [["systemctl", "disable", "--now", name]]
    else:
        commands = [["service", name, "stop"], ["update-rc.d", name, "disable"]]
    for command in commands:
        with suppress(FileNotFoundError):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)


def _there(program: str) -> bool:
    return os.path.exists(program) if program.startswith("/") else shutil.which(program) is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
