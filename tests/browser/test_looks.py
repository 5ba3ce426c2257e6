"""The helper that looks at pages: it finds what it is there to find, and writes pictures only when asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from tests.browser import looks
from tests.browser.looks import LOOKS, Look, check_looks, serious_findings

pytestmark = pytest.mark.browser

GOOD = """<!doctype html><html lang="en"><head><title>A page</title></head>
<body><main><h1>A page</h1><p id="last">Text</p></main></body></html>"""


def test_a_good_page_passes_in_every_look(context: BrowserContext) -> None:
    page = context.new_page()
    page.set_content(GOOD)
    check_looks(page)
    assert page.viewport_size == {"width": 1200, "height": 800}
    assert page.evaluate("matchMedia('(prefers-color-scheme: light)').matches")


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ('<img src="data:,">', "image-alt"),
        ("<input>", "label"),
        ('<p style="color: #bbb; background: #fff">Pale</p>', "color-contrast"),
    ],
)
def test_what_keeps_people_out_is_found(context: BrowserContext, bad: str, rule: str) -> None:
    page = context.new_page()
    page.set_content(GOOD.replace("<p ", bad + "<p "))
    assert [finding.split()[0] for finding in serious_findings(page)] == [rule]
    assert serious_findings(page, ["main"]) == []


def test_what_is_seen_in_one_look_alone_is_found(context: BrowserContext) -> None:
    page = context.new_page()
    dark = "<style>@media (prefers-color-scheme: dark) { p { color: #333; background: #222 } }</style>"
    page.set_content(GOOD.replace("<title>", dark + "<title>"))
    check_looks(page, looks=[look for look in LOOKS if look.scheme == "light"])
    with pytest.raises(AssertionError, match="color-contrast"):
        check_looks(page)


def test_a_page_wider_than_a_phone_is_found(context: BrowserContext) -> None:
    page = context.new_page()
    page.set_content(GOOD.replace("<p ", '<div style="width: 600px">wide</div><p '))
    check_looks(page, looks=[Look("light", 1280, 800)])
    with pytest.raises(AssertionError, match="wider than the window"):
        check_looks(page)


def test_pictures_are_written_when_asked(
    context: BrowserContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "PICTURES", tmp_path)
    page = context.new_page()
    page.set_content(GOOD)
    monkeypatch.delenv("SCREENSHOTS", raising=False)
    check_looks(page, "page")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SCREENSHOTS", "1")
    check_looks(page, "page", clip="#last")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "page-dark.png", "page-phone-dark.png", "page-phone.png", "page.png",
    ]  # fmt: skip
