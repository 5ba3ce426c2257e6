"""A real browser, and helpers that start a real hub on free ports with a state directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback on which nobody listens; all are found before the first is let go."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def answers(url: str) -> bool:
    """Whether `url` answers with a success."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@dataclass
class RunningHub:
    """A hub that runs: its address up to and with the base URL's last slash, and its log."""

    url: str
    log_path: Path
    process: subprocess.Popen[bytes]

    def log_in(self, context: BrowserContext, user: str, password: str) -> Page:
        """A new page of a browser context in which `user` is logged in."""
        page = context.new_page()
        page.goto(f"{self.url}hub/login")
        page.fill("#username_input", user)
        page.fill("#password_input", password)
        page.click("#login_submit")
        page.wait_for_load_state()
        return page


@contextmanager
def running_hub(config: Path, url: str, folder: Path, environment: dict[str, str]) -> Iterator[RunningHub]:
    """Runs `jupyterhub -f config` in `folder` until the block ends; its log is shown if it doesn't start."""
    if shutil.which("configurable-http-proxy") is None:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")
    log_path = folder / "hub.log"
    paths = os.pathsep.join(filter(None, [str(ROOT / "spawner"), os.environ.get("PYTHONPATH", "")]))
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(config)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{url}services/gpu/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the hub did not start:\n{log_path.read_text()[-5000:]}")
            time.sleep(0.2)
        yield RunningHub(url, log_path, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium. Of module scope: playwright's loop must not outlive the synchronous tests."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser with no cookies, in light colours."""
    made = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
    yield made
    made.close()
