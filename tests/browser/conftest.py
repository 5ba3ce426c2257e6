"""A real browser; the helpers that start a hub are those of tests/running.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

expect.set_options(timeout=30_000)  # what comes soon may come late on a busy machine; the default is 5 s


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
