"""A notebook in JupyterLab, in a browser: written, opened, and its cells run as a user does."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

READY_MS = 120_000
_WRITE = """async ([name, sources]) => {
  const base = JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl;
  const headers = {"X-XSRFToken": document.cookie.match(/_xsrf=([^;]*)/)[1]};
  const cells = sources.map((source) => (
    {cell_type: "code", source, metadata: {}, outputs: [], execution_count: null}));
  const kernelspec = {name: "python3", display_name: "Python 3 (ipykernel)", language: "python"};
  const content = {cells, metadata: {kernelspec}, nbformat: 4, nbformat_minor: 4};
  const body = JSON.stringify({type: "notebook", format: "json", content});
  await fetch(base + "api/contents/" + name, {method: "PUT", headers, body});
}"""


def start_lab(page: Page, hub_url: str, user: str, tier: str) -> None:
    """Starts the user's server with this tier on the spawn page, and waits for JupyterLab."""
    page.goto(f"{hub_url}hub/spawn")
    page.check(f"input[name=profile][value={tier}]")
    page.click("#spawn_form [type=submit]")
    page.wait_for_url(f"**/user/{user}/**", timeout=READY_MS)
    page.get_by_role("menuitem", name="File", exact=True).wait_for(timeout=READY_MS)


def open_notebook(page: Page, hub_url: str, user: str, name: str) -> None:
    """Opens a notebook of the user's home and waits for its kernel."""
    page.goto(f"{hub_url}user/{user}/lab/tree/{name}?reset")
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=READY_MS)
    news = page.get_by_role("button", name="No", exact=True)
    if news.is_visible():
        news.click()


def write_notebook(page: Page, hub_url: str, user: str, *cells: str) -> None:
    """Writes `work.ipynb` with these cells, opens it and waits for its kernel. `page` shows JupyterLab."""
    page.evaluate(_WRITE, ["work.ipynb", list(cells)])
    open_notebook(page, hub_url, user, "work.ipynb")


def run_cell(page: Page, number: int = 0) -> Locator:
    """Runs a cell of the open notebook; returns its output."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    return cell.locator(".jp-OutputArea")


def restart_kernel(page: Page) -> None:
    """By the menu, as after a computation that has gone wrong; returns when the new kernel is idle."""
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Restart Kernel…")).click()
    with page.expect_response("**/restart*", timeout=READY_MS) as restarted:
        page.get_by_role("dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    assert restarted.value.ok, restarted.value.text()
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=READY_MS)
