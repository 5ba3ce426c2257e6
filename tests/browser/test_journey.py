"""The whole way in a real browser: hub, broker and Docker as `make hub` runs them, two simulated GPUs.

One story told in order: each test stands on the ones before. With SCREENSHOTS=1 it takes the pictures
of the documents (docs/images).
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from images.table import read_table
from tests.browser.login import log_in
from tests.running import ROOT, System, running_system

pytestmark = [pytest.mark.browser, pytest.mark.docker]

PICTURES = ROOT / "docs" / "images"
READY_MS = 120_000
IMAGE = read_table().default_image.reference
"""What `make hub` runs: the starters need PyTorch."""
PRODUCT = "import numpy as np; a = np.arange(12).reshape(3, 4); print('trace', np.trace(a @ a.T))"


class Story:
    """The running system with one browser window for each user."""

    def __init__(self, system: System, browser: Browser) -> None:
        self.system = system
        self._browser = browser
        self._pages: dict[str, Page] = {}

    def page(self, user: str) -> Page:
        """The user's window; the first call logs in."""
        if user not in self._pages:
            context = self._browser.new_context(viewport={"width": 1200, "height": 720}, color_scheme="light")
            page = self._pages[user] = context.new_page()
            log_in(page, self.system.url, user, self.system.password(user))
        return self._pages[user]

    def go(self, user: str, path: str) -> Page:
        """The user's window at an address of the site."""
        page = self.page(user)
        page.goto(self.system.url + path)
        return page

    def choose(self, user: str, tier: str) -> Page:
        """Chooses a tier on the spawn page and presses Start."""
        page = self.go(user, "hub/spawn")
        page.check(f"input[name=profile][value={tier}]")
        page.click("#spawn_form [type=submit]")
        return page

    def close(self) -> None:
        """Closes the windows."""
        for page in self._pages.values():
            page.context.close()


@pytest.fixture(scope="module")
def story(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("j")
    with running_system(folder, GPUSPAWNER_IMAGE=IMAGE, GPUSPAWNER_SIMULATED="2 x H100 80GB") as system:
        found = Story(system, browser)
        yield found
        found.close()


def picture(page: Page, name: str, height: int) -> None:
    """Writes the upper `height` pixels to docs/images/<name>.png if SCREENSHOTS is set."""
    if os.environ.get("SCREENSHOTS"):
        page.wait_for_timeout(500)  # colours fade in
        clip = {"x": 0, "y": 0, "width": 1200, "height": height}
        page.screenshot(path=PICTURES / f"{name}.png", clip=clip)  # type: ignore[arg-type]


def test_the_spawn_page_offers_the_tiers(story: Story) -> None:
    page = story.go("anna", "hub/spawn")
    expect(page.get_by_label("One GPU")).to_be_enabled()
    expect(page.locator("#tier-gpu-about")).to_contain_text("2 of 2 simulated GPUs free now.")
    page.check("#tier-gpu")


def test_jupyterlab_opens_and_multiplies(story: Story) -> None:
    page = story.choose("anna", "gpu")
    page.wait_for_url("**/user/anna/**", timeout=READY_MS)
    page.get_by_role("menuitem", name="File", exact=True).wait_for(timeout=READY_MS)
    answer = page.evaluate(RUN_IN_KERNEL, PRODUCT)
    assert answer == "trace 506\n"


RUN_IN_KERNEL = """async (code) => {
  const base = JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl;
  const xsrf = document.cookie.match(/_xsrf=([^;]*)/)[1];
  const headers = {"X-XSRFToken": xsrf};
  const made = await fetch(base + "api/kernels", {method: "POST", headers, body: "{}"});
  const kernel = await made.json();
  const socket = new WebSocket(location.origin.replace("http", "ws") + base
    + `api/kernels/${kernel.id}/channels?session_id=journey`);
  await new Promise((done, failed) => { socket.onopen = done; socket.onerror = failed; });
  const header = {msg_id: "journey-1", msg_type: "execute_request", session: "journey", username: "",
    version: "5.3", date: ""};
  let text = "";
  const finished = new Promise((done) => { socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.parent_header.msg_id !== "journey-1") return;
    if (message.msg_type === "stream") text += message.content.text;
    if (message.msg_type === "error") text += message.content.traceback.join("\\n");
    if (message.msg_type === "status" && message.content.execution_state === "idle") done();
  }; });
  socket.send(JSON.stringify({channel: "shell", header, parent_header: {}, metadata: {},
    content: {code, silent: false, store_history: false, allow_stdin: false}}));
  await finished;
  socket.close();
  return text;
}"""


def test_a_starter_says_what_the_server_has(story: Story) -> None:
    page = story.go("anna", "user/anna/lab/tree/starters/01-what-gpu-do-i-have.ipynb?reset")
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=READY_MS)
    news = page.get_by_role("button", name="No", exact=True)
    if news.is_visible():
        news.click()
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    shown = page.locator(".jp-Notebook .jp-OutputArea").first
    expect(shown).to_contain_text("simulated", timeout=READY_MS)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=READY_MS)
    picture(page, "lab-starter", 720)


def test_the_gpu_page_shows_ones_own(story: Story) -> None:
    page = story.go("anna", "hub/home")
    page.get_by_role("button", name="Services").click()
    page.get_by_role("link", name="gpu").click()
    expect(page.locator("#gpu-mine h2")).to_have_text(re.compile(r".*H100.* #0\s+simulated"))
    expect(page.get_by_role("link", name="Open server")).to_be_visible()
    expect(page.locator("#gpu-summary")).to_have_text("1 of 2 simulated GPUs free, nobody waits.")


def test_the_third_stands_in_line(story: Story) -> None:
    story.choose("bob", "gpu").wait_for_url("**/user/bob/**", timeout=READY_MS)
    page = story.choose("carla", "gpu")
    expect(page.locator("#progress-message")).to_contain_text("1st in line", timeout=30_000)
    expect(story.go("carla", "services/gpu/").locator("#gpu-mine h2")).to_contain_text("You are 1st in line")


def test_a_student_sees_no_other_names(story: Story) -> None:
    page = story.go("anna", "services/gpu/")
    expect(page.locator("#gpu-summary")).to_have_text("0 of 2 simulated GPUs free, 1 server waits.")
    assert [name for name in ("bob", "carla") if name in page.content()] == []
    picture(page, "gpu-page-student", 500)


def test_the_admin_sees_all(story: Story) -> None:
    page = story.go("admin", "services/gpu/admin/")
    cells = page.locator("#admin-map .gpu-cell")
    expect(cells).to_have_text([re.compile("anna"), re.compile("bob")])
    expect(page.locator("#gpu-queue li")).to_have_text([re.compile("carla.*1st in line")])
    expect(page.get_by_role("link", name="Admin", exact=True)).to_be_visible()
    picture(page, "gpu-page-admin", 600)
    page.click("#dark-theme-toggle")
    expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
    picture(page, "gpu-page-admin-dark", 600)
    page.click("#dark-theme-toggle")


def test_the_admin_page_shows_the_tier(story: Story) -> None:
    page = story.go("admin", "hub/admin")
    expect(page.get_by_test_id("user-row-anna")).to_contain_text("anna", timeout=30_000)
    columns = page.locator("thead th").all_inner_texts()
    cells = page.get_by_test_id("user-row-anna").locator("td").all_inner_texts()
    assert dict(zip(columns, cells, strict=False))["Profile"] == "gpu"


def test_giving_up_frees_the_place(story: Story) -> None:
    page = story.go("carla", "services/gpu/")
    page.get_by_text("Leave the queue…").click()
    page.get_by_role("button", name="Leave the queue").click()
    expect(page.get_by_role("status").first).to_have_text("Left the queue.")
    admin = story.go("admin", "services/gpu/admin/")
    expect(admin.locator("#gpu-queue")).to_contain_text("Nobody is waiting.")


def test_stopping_frees_the_device_while_the_page_is_open(story: Story) -> None:
    admin = story.go("admin", "services/gpu/admin/")
    expect(admin.locator("#gpu-summary")).to_contain_text("0 of 2")
    page = story.go("bob", "services/gpu/")
    page.get_by_text("Stop…").click()
    page.get_by_role("button", name="Stop the server").click()
    expect(page.get_by_role("status").first).to_contain_text("Your GPU was given back", timeout=30_000)
    expect(admin.locator("#gpu-summary")).to_have_text(
        "1 of 2 simulated GPUs free, nobody waits.", timeout=30_000
    )
    expect(admin.locator("#admin-map .gpu-cell").nth(1)).to_contain_text("free")


def test_an_open_page_outlives_the_broker(story: Story) -> None:
    admin = story.go("admin", "services/gpu/admin/")
    admin.evaluate("window.sameDocument = true")
    broker = story.system.broker_pid()
    assert broker is not None
    os.kill(broker, signal.SIGKILL)
    story.go("anna", "hub/home").click("#stop")
    expect(admin.locator("#gpu-summary")).to_have_text(
        "2 of 2 simulated GPUs free, nobody waits.", timeout=60_000
    )
    expect(admin.locator("#gpu-lost")).to_be_hidden()
    assert admin.evaluate("window.sameDocument")
