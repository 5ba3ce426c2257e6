"""The GPU page in a real browser behind a real hub, with a status that the test writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.text import plain
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.login import log_in
from tests.browser.looks import check_looks
from tests.hubstart import free_ports
from tests.running import running_hub

pytestmark = pytest.mark.browser


def device(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-0000000{number}", "model": "H100 80GB", "index": number, "memory_bytes": 80 << 30,
        "compute_capability": "9.0", "healthy": True, "reason": "", "since": None, "guarantee": "none",
        "simulated": True, "lease_id": None, "user": None, "server": None, **changes,
    }  # fmt: skip


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def lease(name: str, user: str, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "user": user, "server": "", "hub": "h", "tier": "gpu", "state": "running",
        "device_uuids": [f"GPU-0000000{number}"], "memory_bytes": 80 << 30, "compute_percent": 100.0,
        "since": now(), "notice": "", **changes,
    }  # fmt: skip


def place(name: str, user: str, position: int) -> dict[str, Any]:
    return {"id": name, "user": user, "server": "", "tier": "gpu", "position": position, "since": now()}


class Status:
    """The file that the page's service reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.free()

    def write(
        self,
        leases: list[dict[str, Any]],
        queue: list[dict[str, Any]],
        whole: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        """`whole` changes the document and its first device, `changes` its second one."""
        devices = [device(0, **(whole or {})), device(1, **changes)]
        for item in leases:
            for shown in devices:
                if shown["uuid"] in item["device_uuids"]:
                    shown.update(lease_id=item["id"], user=item["user"], server=item["server"])
        document = {
            "simulated": True,
            "devices": devices,
            "leases": leases,
            "queue": queue,
            "ended": [],
        }
        document |= whole or {}
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(document), "utf-8")
        fresh.replace(self.path)

    def free(self) -> None:
        self.write([], [])


@pytest.fixture(scope="module")
def page_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("page-hub")
    port = free_ports()
    status = folder / "status.json"
    Status(status)
    url = f"http://127.0.0.1:{port}/faculty/"
    environment = {"PAGE_HUB_PORT": str(port), "PAGE_STATUS": str(status)}
    with running_hub(
        Path(__file__).with_name("page_hub_config.py"), f"{url}services/gpu/", folder, environment
    ):
        yield url, status


@pytest.fixture
def url(page_hub: tuple[str, Path]) -> str:
    """Where the hub is, with its base URL."""
    return page_hub[0]


@pytest.fixture
def status(page_hub: tuple[str, Path]) -> Status:
    return Status(page_hub[1])


def open_page(url: str, context: BrowserContext, user: str) -> Page:
    """Logs in and goes to the GPU page through the hub's navigation."""
    page = log_in(context.new_page(), url, user)
    page.get_by_role("button", name="Services").click()
    page.get_by_role("link", name="gpu").click()
    expect(page).to_have_url(f"{url}services/gpu/")
    expect(page).to_have_title("My GPU")
    return page


def test_it_follows_without_reload(url: str, status: Status, context: BrowserContext) -> None:
    errors: list[str] = []
    page = open_page(url, context, "anna")
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    expect(page.locator("#gpu-summary")).to_have_text("2 of 2 simulated GPUs free, nobody waits.")
    expect(page.locator("#gpu-mine")).to_contain_text("You hold no GPU")
    page.evaluate("window.sameDocument = true")
    status.write([lease("a", "anna", 0), lease("b", "bob", 1)], [])
    expect(page.locator("#gpu-mine h2")).to_have_text("H100 80GB #0 simulated")
    expect(page.locator("#gpu-summary")).to_have_text("0 of 2 simulated GPUs free, nobody waits.")
    status.write([lease("b", "bob", 1), lease("c", "carl", 0)], [place("a", "anna", 1)])
    expect(page.locator("#gpu-mine h2")).to_have_text("You are 1st in line for a GPU simulated")
    assert page.evaluate("window.sameDocument")
    assert "bob" not in page.content()
    assert "carl" not in page.content()
    assert errors == []


def test_focus_stays_while_the_page_changes(url: str, status: Status, context: BrowserContext) -> None:
    status.write([lease("a", "anna", 0)], [])
    page = open_page(url, context, "anna")
    page.focus("#open-a")
    status.write([lease("a", "anna", 0, notice="Your GPU does not answer: stop the server.")], [])
    expect(page.locator("#gpu-notices")).to_contain_text("Your default server: Your GPU does not answer")
    status.write([lease("a", "anna", 0, server="train")], [])
    expect(page.locator("#gpu-mine")).to_contain_text("train")
    expect(page.locator("#open-a")).to_be_focused()


def test_dark_mode_is_the_hubs(url: str, context: BrowserContext) -> None:
    page = log_in(context.new_page(), url, "anna")
    page.click("#dark-theme-toggle")
    home = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.goto(f"{url}services/gpu/")
    expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == home


def test_it_fits_a_small_screen(url: str, status: Status, context: BrowserContext) -> None:
    server = "a-rather-long-name-" + "x" * 60
    status.write([lease("a", "anna", 0, server=server)], [place("c", "carl", 1)])
    page = open_page(url, context, "anna")
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_without_script_it_shows_the_state_of_its_load(
    url: str, status: Status, context: BrowserContext
) -> None:
    status.write([lease("a", "anna", 0)], [])
    open_page(url, context, "anna")
    assert context.browser is not None
    plain = context.browser.new_context(java_script_enabled=False, storage_state=context.storage_state())
    page = plain.new_page()
    page.goto(f"{url}services/gpu/")
    expect(page.locator("#gpu-mine h2")).to_have_text("H100 80GB #0 simulated")
    plain.close()


def test_it_says_when_the_broker_is_silent(url: str, status: Status, context: BrowserContext) -> None:
    page = open_page(url, context, "anna")
    for path in ("**/live", "**/events"):
        page.route(path, lambda route: route.abort())
    page.reload()
    expect(page.locator("#gpu-lost")).to_contain_text("No news from the broker since", timeout=30_000)
    expect(page.locator("#gpu-live")).to_have_class("gpu-stale")
    for path in ("**/live", "**/events"):
        page.unroute(path)
    expect(page.locator("#gpu-lost")).to_be_hidden(timeout=40_000)
    expect(page.locator("#gpu-live")).not_to_have_class("gpu-stale")


def test_without_events_it_polls(url: str, status: Status, context: BrowserContext) -> None:
    page = open_page(url, context, "anna")
    page.route("**/events", lambda route: route.abort())
    page.reload()
    status.write([lease("a", "anna", 0)], [])
    expect(page.locator("#gpu-mine h2")).to_have_text("H100 80GB #0 simulated", timeout=30_000)
    expect(page.locator("#gpu-lost")).to_be_hidden()


def test_it_says_when_the_login_has_ended(url: str, context: BrowserContext) -> None:
    page = open_page(url, context, "anna")
    context.clear_cookies()
    page.reload()
    expect(page).to_have_url(re.compile("/hub/login"))


def test_it_loads_again_by_itself_when_the_login_works_again(
    url: str, status: Status, context: BrowserContext
) -> None:
    """A hub that restarts knows nobody for a moment."""
    page = open_page(url, context, "anna")
    for path in ("**/live", "**/events"):
        page.route(path, lambda route: route.fulfill(status=403, body="no"))
    page.evaluate("window.before = true; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#gpu-lost")).to_contain_text("Your login has ended", timeout=30_000)
    expect(page.locator("#gpu-lost")).to_contain_text("a place in the queue may be lost")
    expect(page.locator("#gpu-live")).to_have_class("gpu-stale")
    expect(page.locator("#gpu-live")).to_have_js_property("inert", True)
    for path in ("**/live", "**/events"):
        page.unroute(path)
    page.wait_for_function("window.before === undefined", timeout=30_000)
    expect(page.locator("#gpu-lost")).to_be_hidden()


MIB = 1 << 20


def held(number: int, **changes: Any) -> dict[str, Any]:
    """A slice of anna's, as a real GPU would show it."""
    return lease(f"{number}" * 32, "anna", 0, **{
        "mode": "slice", "memory_bytes": 8192 * MIB, "compute_percent": 25.0, "used_bytes": 6350 * MIB,
        "busy_percent": 63.0, "ends_at": later(83), "ends_because": "session_limit", **changes,
    })  # fmt: skip


def later(minutes: float) -> str:
    return (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_meters_move_without_a_new_page(url: str, status: Status, context: BrowserContext) -> None:
    real = {"simulated": False}
    mine = held(1)
    status.write([mine], [], **real, whole=real)
    page = open_page(url, context, "anna")
    memory = page.locator("[data-kind=memory]")
    expect(memory).to_contain_text("6.2 GiB of 8.0 GiB · 1.8 GiB left")
    expect(page.get_by_text("shows the whole GPU (80 GiB)")).to_be_visible()
    page.evaluate("document.querySelector('[data-kind=memory]').dataset.same = 'yes'")
    status.write([mine | {"used_bytes": 7800 * MIB}], [], **real, whole=real)
    expect(memory).to_contain_text("7.6 GiB of 8.0 GiB · 392 MiB left")
    expect(memory.locator(".progress-bar")).to_have_class("progress-bar bg-warning")
    expect(memory.get_by_role("meter")).to_have_attribute("aria-valuetext", "7.6 GiB of 8.0 GiB")
    assert page.evaluate("document.querySelector('[data-kind=memory]').dataset.same") == "yes"


def test_a_question_stays_open_while_the_page_changes(
    url: str, status: Status, context: BrowserContext
) -> None:
    status.write([held(1)], [])
    page = open_page(url, context, "anna")
    page.get_by_text("Stop…").click()
    button = page.get_by_role("button", name="Stop the server")
    expect(button).to_be_visible()
    button.focus()
    status.write([held(1, notice="Save your work.")], [])
    expect(page.locator("#gpu-notices")).to_contain_text("Save your work.")
    expect(button).to_be_visible()
    expect(button).to_be_focused()


def test_with_the_keyboard_alone(url: str, status: Status, context: BrowserContext) -> None:
    status.write([held(1)], [])
    page = open_page(url, context, "anna")
    page.focus(f"#open-{'1' * 32}")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop the server")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Stop the server")).to_be_focused()


def test_a_button_asks_the_hub_and_says_what_came_of_it(
    url: str, status: Status, context: BrowserContext
) -> None:
    """The hub stops it at once: no such server runs there."""
    status.write([held(1)], [])
    page = open_page(url, context, "anna")
    page.get_by_text("Stop…").click()
    page.get_by_role("button", name="Stop the server").click()
    expect(page.get_by_role("status").first).to_have_text("Stopped. Your GPU was given back.")


def test_a_double_click_sends_a_form_once(url: str, status: Status, context: BrowserContext) -> None:
    status.write([held(1)], [])
    page = open_page(url, context, "anna")
    page.get_by_text("Stop…").click()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.get_by_role("button", name="Stop the server").dblclick()
    expect(page.get_by_role("status").first).to_have_text("Stopped. Your GPU was given back.")
    assert len(sent) == 1


def test_how_my_gpu_looks(url: str, status: Status, context: BrowserContext) -> None:
    real = {"simulated": False}
    waiting = place("q", "anna", 2) | {"earliest_at": later(25), "latest_at": later(50), "server": "train"}
    status.write([held(1)], [place("p", "bob", 1), waiting], **real, whole=real)
    page = open_page(url, context, "anna")
    expect(page.locator("[data-kind=memory]")).to_contain_text("of 8.0 GiB")
    check_looks(page, "my-gpu")
    status.free()
    expect(page.locator("#gpu-mine")).to_contain_text("You hold no GPU")
    check_looks(page, "my-gpu-none")


AFTER_NAMES = """() => [...document.querySelectorAll("#gpu-mine bdi")].map((name) => {
  const after = document.createRange();
  after.selectNode(name.nextSibling);
  const [from, to] = [name.getClientRects(), after.getClientRects()];
  return from[from.length - 1].right - to[0].left;
})"""
"""By how many pixels the text after a name begins left of the name's end."""


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "\u202egnol",
        "\u2069\u202egnol",
        "שלום",
        "x" * 255,
        "a/../b",
        "o'\"`${1}",
        "\x1b[2J",
    ],
)
def test_hostile_names(url: str, status: Status, context: BrowserContext, name: str) -> None:
    alerts: list[str] = []
    status.write(
        [held(1, server=name, tier=name, notice=name), lease("b", name, 1, server=name)],
        [place("q", name, 1)],
    )
    context.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page = open_page(url, context, "anna")
    expect(page.locator("#gpu-mine")).to_contain_text(plain(name))
    if len(name) < 50:  # on one line
        assert max(page.evaluate(AFTER_NAMES)) < 1
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("main script, main img").count() == 0
    assert alerts == []
