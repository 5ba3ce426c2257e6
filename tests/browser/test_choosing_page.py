"""The spawn page in a browser, under a base URL: what it says of each tier, and who can use it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.login import log_in
from tests.browser.looks import check_looks, take_picture
from tests.hub.conftest import engine, images  # noqa: F401  (fixtures)
from tests.running import System, running_system

pytestmark = [pytest.mark.browser, pytest.mark.docker]

CONFIG = Path(__file__).with_name("choosing_config.py")
SETTINGS = {"GPUSPAWNER_IMAGE": "gpuspawner-hubtest/lab", "GPUSPAWNER_CONFIG": str(CONFIG)}
START_MS = 60_000
LIVE_MS = 60_000
"""The page asks again after 38 s at the latest."""


@pytest.fixture(scope="module")
def system(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:  # noqa: F811
    folder = tmp_path_factory.mktemp("c")
    with running_system(folder, config=CONFIG, base_url="/jupyter/", **SETTINGS) as found:
        yield found


@pytest.fixture
def windows(browser: Browser, system: System) -> Iterator[Windows]:
    found = Windows(browser, system)
    yield found
    found.close()


class Windows:
    """One window for each user, at the spawn page."""

    def __init__(self, browser: Browser, system: System) -> None:
        self._browser, self._system = browser, system
        self._pages: list[Page] = []

    def open(self, user: str, javascript: bool = True) -> Page:
        """A window in which `user` is logged in."""
        context = self._browser.new_context(
            viewport={"width": 1280, "height": 800}, java_script_enabled=javascript
        )
        page = context.new_page()
        self._pages.append(page)
        return log_in(page, self._system.url, user, self._system.password(user), then="hub/spawn")

    def start(self, user: str, tier: str) -> Page:
        """A window whose user has started a server of the tier."""
        page = self.open(user)
        page.check(f"#tier-{tier}")
        page.click("#spawn_form [type=submit]")
        page.wait_for_url(f"**/user/{user}/**", timeout=START_MS)
        return page

    def stop(self, page: Page) -> None:
        """Stops the default server of the window's user."""
        page.goto(f"{self._system.url}hub/home")
        page.click("#stop")
        expect(page.locator("#start")).to_contain_text("Start", timeout=START_MS)

    def close(self) -> None:
        """Closes the windows."""
        for page in self._pages:
            page.context.close()


def card(page: Page, tier: str) -> str:
    """What a tier's card says, on one line."""
    return " ".join(page.locator(f"#tier-{tier}-card").inner_text().split())


def test_each_card_says_what_one_gets(windows: Windows) -> None:
    page = windows.open("anna")
    assert card(page, "cpu") == "CPU Starts at once Write and test code. No GPU."
    assert card(page, "slice") == (
        "A slice of a GPU Free now Exercises and small models. 8 of 8 simulated slices free now. "
        "One hour costs 0.125 GPU-hours. H100 80GB GPU memory 9.9 GiB of 80 GiB Compute up to 25 %"
    )
    assert card(page, "mig") == (
        "A small GPU Free now Inference. 4 of 4 simulated MIG instances free now. "
        "One hour costs 0.125 GPU-hours. A100 40GB MIG 1g.5gb GPU memory 5.0 GiB"
    )
    assert card(page, "eight").startswith(
        "Eight GPUs Not available For the whole lab. "
        "Needs 8 simulated GPUs; 2 are in service for this tier now."
    )
    said = (
        r"Simulated: this hub has no such GPU\. Code that asks for a GPU finds none\.",
        r"With a GPU: A server that starts now ends on .* \(UTC\)\. That is the longest session .*",
        r"Your server gets .* of memory, up to .* of it in /dev/shm; 4096 processes\.",
    )  # the last one comes later, if Docker takes its time
    expect(page.locator("#gpu-said li")).to_have_text([re.compile(each) for each in said], timeout=LIVE_MS)
    expect(page.locator("#gpu-quota")).to_contain_text(
        "10.0 of 10 left this week; new ones on Monday at 00:00 (UTC)"
    )
    expect(page.locator("#tier-slice")).to_be_checked()
    expect(page.locator("#tier-eight")).to_be_disabled()
    assert page.locator("#server-image option").all_inner_texts() == [
        "Default image", "PyTorch", "R", "Julia (pulled first)",
    ]  # fmt: skip
    check_looks(page, "spawn-form")


def test_a_name_that_is_too_long_is_a_sentence(windows: Windows) -> None:
    page = windows.open("u" * 256)
    expect(page.locator(".gpu-unusable")).to_contain_text("The user name has 256 characters")
    expect(page.locator("[type=submit]")).to_be_hidden()
    check_looks(page)


def test_what_may_not_be_used_is_greyed_with_the_reason(windows: Windows) -> None:
    page = windows.open("limited")
    for tier in ("slice", "mig", "gpu"):
        expect(page.locator(f"#tier-{tier}")).to_be_disabled()
        assert "Your quota" in card(page, tier)
    expect(page.locator("#tier-cpu")).to_be_checked()
    check_looks(page)
    take_picture(page, "spawn-form-limited")


def test_by_keyboard_alone(windows: Windows, system: System) -> None:
    page = windows.open("kim")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "profile":
            break
    assert page.evaluate("document.activeElement.id") == "tier-slice"  # Tab goes to the chosen one
    page.keyboard.press("ArrowUp")
    expect(page.locator("#tier-cpu")).to_be_checked()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{system.url}user/kim/**", timeout=START_MS)
    windows.stop(page)


def test_the_last_choice_is_there_the_next_time(windows: Windows, system: System) -> None:
    page = windows.start("lea", "mig")
    windows.stop(page)
    page.goto(f"{system.url}hub/spawn")
    expect(page.locator("#tier-mig")).to_be_checked()
    page.goto(f"{system.url}hub/spawn/lea/another?display_name=Mein%20%3Cb%3EKurs")
    expect(page.locator("#tier-mig")).to_be_checked()
    expect(page.locator("form")).to_contain_text("For your server Mein <b>Kurs")


def test_a_click_before_the_home_page_s_script_is_there_is_not_lost(windows: Windows, system: System) -> None:
    page = windows.start("ida", "cpu")
    held: list[Route] = []
    page.route("**/js/home.js*", lambda route: held.append(route))
    page.goto(f"{system.url}hub/home", wait_until="commit")
    page.click("#stop")
    expect(page.locator("#stop")).to_have_class(re.compile(r"\bdisabled\b"))
    for each in held:
        each.continue_()
    page.unroute("**/js/home.js*")
    expect(page.locator("#start")).to_contain_text("Start", timeout=START_MS)
    page.goto(f"{system.url}hub/home")
    expect(page.locator("#stop")).to_have_count(0)


@pytest.mark.parametrize("how", ["click", "Enter"])
def test_a_new_server_of_the_home_page_is_chosen_under_the_name_that_was_typed(
    windows: Windows, system: System, how: str
) -> None:
    page = windows.open("eva")
    page.goto(f"{system.url}hub/home")
    page.get_by_role("button", name="Add New Server").click()  # without a name
    expect(page.locator(".new-server-name")).to_be_focused()
    page.fill(".new-server-name", f'Mein "<b>{how}</b>" %41 שלום')
    if how == "click":
        page.get_by_role("button", name="Add New Server").click()
    else:
        page.keyboard.press("Enter")
    page.wait_for_url(f"{system.url}hub/spawn/eva/**")
    expect(page.locator("form")).to_contain_text(f'For your server Mein "<b>{how}</b>"')
    check_looks(page)


def test_two_names_that_jupyterhub_would_shorten_to_one_are_two_servers(
    windows: Windows, system: System
) -> None:
    page, begin = windows.open("ben"), "a-name-of-more-than-30-characters"
    home = f"{system.url}hub/home"
    for name, address in (("first", begin[:30].rstrip("-")), ("second", f"{begin[:28].rstrip('-')}-2")):
        page.goto(home)
        page.fill(".new-server-name", f"{begin} {name}")
        page.get_by_role("button", name="Add New Server").click()
        page.wait_for_url(f"{system.url}hub/spawn/ben/{address}?**")
        expect(page.locator("form")).to_contain_text(f"For your server {begin} {name}")
        page.check("#tier-cpu")
        page.click("#spawn_form [type=submit]")
        page.wait_for_url(f"{system.url}user/ben/{address}/**", timeout=START_MS)
    page.goto(home)
    for name in ("first", "second"):
        expect(page.locator("tr[data-server-name]").filter(has_text=f"{begin} {name}")).to_have_count(1)
    page.fill(".new-server-name", f"{begin} first")  # one that is there
    page.get_by_role("button", name="Add New Server").click()
    page.wait_for_url(f"{system.url}user/ben/{begin[:30].rstrip('-')}/**", timeout=START_MS)


def test_the_numbers_follow_while_the_choice_stays(windows: Windows) -> None:
    page = windows.open("otto")
    page.evaluate("window.sameDocument = true")
    page.check("#tier-gpu")
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()
    holders = [windows.start(user, "gpu") for user in ("one", "two")]
    expect(page.locator("#tier-gpu-card")).to_contain_text("0 of 2 simulated GPUs free now.", timeout=LIVE_MS)
    expect(page.locator("#tier-gpu-card")).to_contain_text("You will wait in line")
    expect(page.get_by_role("button", name="Join the queue")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="One GPU: Queue")).to_have_count(1)
    check_looks(page)
    take_picture(page, "spawn-form-queue")
    for holder in holders:
        windows.stop(holder)
    expect(page.locator("#tier-gpu-card")).to_contain_text("2 of 2 simulated GPUs free now.", timeout=LIVE_MS)
    expect(page.locator("#tier-gpu")).to_be_checked()
    assert page.evaluate("window.sameDocument")


def test_without_javascript_one_chooses_and_starts(windows: Windows, system: System) -> None:
    page = windows.open("nora", javascript=False)
    expect(page.locator("#noscript")).to_be_hidden()
    page.check("#tier-cpu")
    page.click("#spawn_form [type=submit]")
    page.wait_for_url(f"{system.url}user/nora/**", timeout=START_MS)


def test_without_the_broker_a_cpu_starts_and_its_page_comes_back_by_itself(
    windows: Windows, system: System
) -> None:
    page, choosing = windows.open("admin"), windows.open("pia")
    page.goto(f"{system.url}services/gpu/")
    broker = system.broker_pid()
    assert broker is not None
    keeper = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(broker)], text=True))
    os.kill(keeper, signal.SIGSTOP)  # so that it doesn't start another one at once
    try:
        os.kill(broker, signal.SIGKILL)
        time.sleep(0.5)
        page.goto(f"{system.url}services/gpu/")
        expect(page.locator("h1")).to_have_text("Nothing answers here now")
        expect(page.locator("main")).to_contain_text("Your server is not affected.")
        expect(page.get_by_text("Your server may have ended")).to_be_hidden()
        expect(page.get_by_text("If you wanted")).to_have_count(0)
        check_looks(page)
        take_picture(page, "gpu-page-down")
        choosing.reload()
        expect(choosing.locator("#gpu-problem")).to_contain_text("the GPU broker isn't running")
        expect(choosing.locator("#tier-gpu")).to_be_disabled()
        expect(choosing.locator("#tier-cpu")).to_be_checked()
        check_looks(choosing)
    finally:
        os.kill(keeper, signal.SIGCONT)
    expect(page.locator("h1")).to_contain_text("GPU", timeout=LIVE_MS)
    expect(choosing.locator("#tier-gpu")).to_be_enabled(timeout=2 * LIVE_MS)
    expect(choosing.locator("#gpu-problem")).to_be_hidden()
