"""A course's link: it chooses the tier, waits in the queue, and ends in the repository (nbgitpuller)."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from gpuspawner.hub.network import gateway_of
from playwright.sync_api import Browser, Page, expect

from tests.browser.login import fill_login
from tests.hubstart import own_subnet
from tests.running import running_system

pytestmark = [pytest.mark.browser, pytest.mark.docker]

READY_MS = 120_000


class GitServer(BaseHTTPRequestHandler):
    """Repositories over HTTP by git's own `http-backend` (git 2.39, CGI). nbgitpuller asks for a depth."""

    root = ""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=ines", "-c", "user.email=ines@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@contextmanager
def served_repository(folder: Path, address: str) -> Iterator[str]:
    """A repository `course` with one notebook; gives the address from which it can be cloned."""
    work = folder / "work"
    work.mkdir()
    git(work, "init", "-b", "main")
    (work / "week-1.md").write_text("# Week 1\n")
    git(work, "add", ".")
    git(work, "commit", "-m", "Week 1")
    git(folder, "clone", "--bare", "work", "course")
    handler = type("Handler", (GitServer,), {"root": str(folder)})
    server = ThreadingHTTPServer((address, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True, name="repository").start()
    try:
        yield f"http://{address}:{server.server_address[1]}/course"
    finally:
        server.shutdown()
        server.server_close()


def open_page(browser: Browser, url: str, user: str, password: str, path: str) -> Page:
    """A window of its own for the user, who follows a link and logs in on the way."""
    page = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
    page.goto(url + path)
    fill_login(page, user, password)
    return page


def test_a_link_chooses_waits_and_lands_in_the_repository(browser: Browser, tmp_path: Path) -> None:
    subnet = own_subnet()
    settings = {"GPUSPAWNER_SIMULATED": "1 x H100 80GB", "GPUSPAWNER_SUBNET": subnet}
    with running_system(tmp_path, **settings) as system:
        files = tmp_path / "files"
        files.mkdir()
        with served_repository(files, gateway_of(subnet)) as repository:
            pull = f"/hub/user-redirect/git-pull?repo={quote(repository, safe='')}&branch=main"
            pull += "&urlpath=lab%2Ftree%2Fcourse%2Fweek-1.md"
            link = f"hub/spawn?opt-profile=gpu&next={quote(pull, safe='')}"

            bob = open_page(browser, system.url, "bob", system.user_password, "hub/spawn?opt-profile=gpu")
            bob.wait_for_url("**/user/bob/**", timeout=READY_MS)
            ada = open_page(browser, system.url, "ada", system.user_password, link)
            expect(ada.locator("#progress-message")).to_contain_text("1st in line", timeout=30_000)
            bob.goto(f"{system.url}hub/home")
            bob.click("#stop")

            ada.wait_for_url("**/user/ada/lab/tree/course/week-1.md**", timeout=READY_MS)
            expect(ada.get_by_role("tab", name="week-1.md")).to_be_visible(timeout=READY_MS)
            held = ada.context.new_page()
            held.goto(f"{system.url}services/gpu/")
            expect(held.locator("#gpu-mine .gpu-own h2")).to_be_visible()

            # The same link once more, with the server running, goes straight there.
            again = ada.context.new_page()
            again.goto(system.url + link)
            again.wait_for_url("**/user/ada/lab/tree/course/week-1.md**", timeout=READY_MS)
            bob.context.close()
            ada.context.close()
