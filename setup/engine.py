"""Docker Engine: used unchanged if one answers, else installed from the distribution and started."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import docker
from docker.errors import DockerException

from setup import apt
from setup.steps import SetupError, Step

START_SECONDS = 60.0
LOG = Path("/var/log/gpuspawner-dockerd.log")


def ensure_engine(step: Step) -> None:
    """Makes sure that an engine answers. Raises SetupError with the remedy if that is not possible."""
    refused = _ask(step)
    if refused is None:
        return
    _explain_what_root_cannot_fix(refused)
    if _dockerd() is None:
        apt.install(["docker.io", "iptables"], "Docker Engine", step)
    if _wait(step, seconds=3.0):
        return
    if os.geteuid() != 0:
        raise SetupError(
            "Docker Engine is installed but does not run", "start it, as root: systemctl start docker"
        )
    _start(step)


def _ask(step: Step) -> str | None:
    """None if the engine answers (noted in the step); else the reason why it does not."""
    try:
        client = docker.from_env(timeout=30)
        try:
            step.note = f"Docker Engine {client.version()['Version']} answers and is used unchanged"
        finally:
            client.close()
    except DockerException as error:
        return str(error)
    return None


def _explain_what_root_cannot_fix(refused: str) -> None:
    host = os.environ.get("DOCKER_HOST", "")
    if host:
        raise SetupError(
            f"the Docker Engine at DOCKER_HOST={host} does not answer",
            "start it, or unset DOCKER_HOST to use this machine's own",
        )
    if "ermission denied" in refused:
        raise SetupError(
            "Docker Engine runs, but this user may not use it",
            'run this as root, or join its group (`sudo usermod -aG docker "$USER"`) and log in again',
        )


def _dockerd() -> str | None:
    return shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _start(step: Step) -> None:
    """Starts it with systemd if that runs, else directly: engine and containers outlive this program."""
    dockerd = _dockerd()
    assert dockerd is not None
    step.detail("starting it")
    if Path("/run/systemd/system").is_dir():
        done = subprocess.run(["systemctl", "start", "docker"], capture_output=True, text=True)
        if done.returncode != 0:
            raise SetupError(
                f"systemd could not start docker: {done.stderr.strip()}", "see `journalctl -u docker`"
            )
        process = None
    else:
        with LOG.open("ab") as log:
            process = subprocess.Popen(
                [dockerd], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
    if not _wait(step, START_SECONDS, process):
        raise SetupError(
            f"Docker Engine did not start: {_last_words()}",
            f"see {LOG} (a container or a restricted machine may not be able to run an engine)",
        )
    step.note = f"{step.note.split(' answers')[0]} started" + (f", log in {LOG}" if process else "")


def _wait(step: Step, seconds: float, process: subprocess.Popen[bytes] | None = None) -> bool:
    deadline = time.monotonic() + seconds
    while _ask(step) is not None:
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            return False
        time.sleep(0.2)
    return True


def _last_words() -> str:
    try:
        lines = LOG.read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return lines[-1] if lines else "it left no log"
