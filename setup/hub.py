"""`make hub`: sets up what is missing, starts the hub, says how to use it, and stops it on Ctrl-C."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import quote

import docker
from docker.errors import DockerException
from gpuspawner.core import labels

from setup.children import adopt_orphans, end_children, end_with_parent
from setup.demo import Demo, check_ports, lock, read_demo, remember, with_base_url
from setup.hublog import HubLog, LogFile
from setup.proxy import search_path
from setup.steps import ROOT, SetupError, Step, step

READY_SECONDS = 90.0
STOP_SECONDS = 20.0
_NO_ENVIRONMENT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    """Returns the exit status: 0 after a requested stop."""
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        demo = with_base_url(read_demo(os.environ))
        descriptor = lock(demo.state_dir)
        try:
            check_ports(demo)
            _set_up(demo)
            remember(demo, os.environ)
            return Launch(demo, stop).run()
        finally:
            os.close(descriptor)
    except SetupError as error:
        print(error.block(), file=sys.stderr)
        return 1


def _set_up(demo: Demo) -> None:
    # A separate process: an engine that it starts has no parent here afterwards, and outlives the hub.
    command = [sys.executable, "-m", "setup.ready", "proxy", "engine", "images"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "GPUSPAWNER_IMAGE": demo.image})
    if done.returncode != 0:
        raise SystemExit(done.returncode)  # it has said why
    with step("the labs' network") as current:
        _prepare_docker(demo, current)


def _prepare_docker(demo: Demo, current: Step) -> None:
    """Refuses beside another hub of this name, before anything is changed; then the labs' network."""
    from gpuspawner.core.errors import ConfigError, EngineFault
    from gpuspawner.hub.docker import calls_of
    from gpuspawner.hub.network import ensure_network
    from gpuspawner.hub.other_hub import check_alone

    client = docker.from_env(timeout=60)
    try:
        check_alone(calls_of(client.api), demo.name, str(demo.state_dir))
        address = ensure_network(calls_of(client.api), demo.name, demo.subnet)
        current.note = f"{demo.name}, {address} is this machine"
    except ConfigError as error:
        raise SetupError(str(error), "then run this again") from error
    except EngineFault as error:
        raise SetupError(f"Docker Engine fails: {error}", "check its log, then run this again") from error
    finally:
        client.close()


class Launch:
    """One run of the hub with its proxy and broker, from start to stop."""

    def __init__(self, demo: Demo, stop: Event) -> None:
        self._demo = demo
        self._stop = stop
        self._log = HubLog()
        self._ending = False

    def run(self) -> int:
        """Starts the hub, waits until it can be used, prints the block, and stays until the stop."""
        if self._stop.is_set():
            return 130
        adopt_orphans()
        hub = self._start()
        try:
            with step("the hub starts") as current:
                ready = self._wait_ready(hub, current)
                if not ready:
                    current.mark, current.note = "–", "it was stopped, or has ended"
            self._log.ready = ready
            if ready:
                print(block(self._demo, gpus(self._demo.state_dir / "broker.sock")), flush=True)
            while hub.poll() is None and not self._stop.wait(0.2):
                pass
        finally:
            asked = self._stop.is_set()
            waited = waiting(self._demo.state_dir / "broker.sock") if asked else 0
            self._end(hub)
        if asked:
            print(farewell(running_notebooks(self._demo.name), waited), flush=True)
            return 0
        raise SetupError(
            f"the hub has ended unexpectedly, with status {hub.returncode}. Last log lines:\n"
            + "\n".join(f"    {line}" for line in self._log.last_words()),
            f"see {self._demo.log}",
        )

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, **self._demo.environment(), "PATH": search_path()}
        command = [sys.executable, "-m", "jupyterhub", "-f", str(self._demo.config)]
        # A session of its own: Ctrl-C reaches this program alone, which then ends the hub in order.
        hub = subprocess.Popen(
            command, cwd=self._demo.state_dir, env=environment, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
            start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        Thread(target=self._keep_log, args=(hub,), daemon=True, name="hub-log").start()
        return hub

    def _keep_log(self, hub: subprocess.Popen[str]) -> None:
        """Writes all lines to the log file; warnings and errors, with the lines after them, also here."""
        assert hub.stdout is not None
        log = LogFile(self._demo.log)
        for line in hub.stdout:
            with contextlib.suppress(OSError):  # a full disk must not stop the hub
                log.write(line)
            if self._log.take(line) and not self._ending:
                print(line, end="", flush=True)
        with contextlib.suppress(OSError):
            log.close()

    def _wait_ready(self, hub: subprocess.Popen[str], current: Step) -> bool:
        """True once hub and broker answer; False if the hub has ended, or was told to."""
        deadline = time.monotonic() + READY_SECONDS
        while hub.poll() is None and not self._stop.wait(0.2):
            current.detail("waiting for its first answer")
            if gpus(self._demo.state_dir / "broker.sock") and hub_answers(self._demo.url):
                return True
            if time.monotonic() > deadline:
                if not hub_answers(self._demo.url):
                    raise SetupError(
                        f"the hub did not answer within {READY_SECONDS:.0f} s", f"see {self._demo.log}"
                    )
                current.note = "without its broker"
                return True
        return False

    def _end(self, hub: subprocess.Popen[str]) -> None:
        """Ends hub, proxy and broker. A second Ctrl-C ends them at once."""
        self._ending = True
        self._stop.clear()
        if hub.poll() is None:
            print("\nStopping the hub …", flush=True)
            hub.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while hub.poll() is None and time.monotonic() < deadline and not self._stop.wait(0.1):
            pass
        if hub.poll() is None:
            hub.kill()
            hub.wait()
        end_children(seconds=5.0)
        self._stop.set()


def hub_answers(url: str) -> bool:
    """Whether the hub's API answers through the proxy."""
    try:
        with _NO_ENVIRONMENT_PROXY.open(f"{url}hub/api/", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("broker", timeout=2)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def gpus(socket_path: Path) -> str:
    """The broker's devices, as text; "" while it does not answer."""
    status = next(_status(socket_path), None)
    return describe(status) if status else ""


def waiting(socket_path: Path) -> int:
    """How many servers wait for a GPU; 0 while the broker does not answer."""
    return sum(len(page["queue"]) for page in _status(socket_path))


def _status(socket_path: Path) -> Iterator[dict[str, Any]]:
    """The pages of the broker's status document; ends where it does not answer."""
    query: str | None = ""
    while query is not None:
        with contextlib.closing(_UnixConnection(socket_path)) as connection:
            try:
                connection.request("GET", f"/api/status{query}")
                answer = connection.getresponse()
                if answer.status != 200:
                    return
                page = json.loads(answer.read())
            except (OSError, ValueError, http.client.HTTPException):
                return
        yield page
        query = f"?cursor={quote(page['next'])}" if page.get("next") else None


def describe(status: dict[str, Any]) -> str:
    """The devices of a status document: "2 × H100 80GB, simulated: notebooks run on the CPU"."""
    counts: dict[str, int] = {}
    for device in status["devices"]:
        counts[device["model"]] = counts.get(device["model"], 0) + 1
    what = ", ".join(f"{count} × {model}" for model, count in counts.items()) or "none"
    return what + (", simulated: notebooks run on the CPU" if status["simulated"] else ", real")


def block(demo: Demo, devices: str) -> str:
    """What a person needs to know when the hub is ready."""
    rows = [
        ("Address", demo.url),
        ("Log in", f"any name (e.g. ada), password  {demo.password}"),
        ("", f"admin,                password  {demo.admin_password}"),
        ("GPUs", devices or "unknown: the broker does not answer, only CPU servers start (see the log)"),
        ("Log", str(demo.log)),
        ("Stop", "Ctrl-C; running notebooks keep running"),
    ]
    line = "─" * 78
    return "\n".join([line, *(f"  {head:<9}{text}" for head, text in rows), line])


def farewell(running: int | None, waited: int = 0) -> str:
    """What happens to `running` notebooks, and to those who `waited`.

    `running` is None if Docker did not say how many there are.
    """
    said = "Hub, proxy and broker have stopped."
    if waited:
        said += f" {_lost(waited)}"
    if running is None:
        return f"{said} Docker does not answer, so it is unknown whether notebooks still run."
    if running == 0:
        return f"{said} No notebook is running. Homes and settings are kept."
    one = running == 1
    which = "1 notebook keeps" if one else f"{running} notebooks keep"
    them = "it" if one else "them"
    return f"{said} {which} running: `make hub` finds {them} again, `make clean-demo` ends {them}."


def _lost(waited: int) -> str:
    if waited == 1:
        return "1 server that waited for a GPU has lost its place in line."
    return f"{waited} servers that waited for a GPU have lost their places in line."


def running_notebooks(name: str) -> int | None:
    """How many containers of this hub run; None if Docker does not say."""
    try:
        with contextlib.closing(docker.from_env(timeout=10)) as client:
            return len(client.api.containers(filters={"label": f"{labels.HUB}={name}"}))
    except DockerException:
        return None


if __name__ == "__main__":
    sys.exit(main())
