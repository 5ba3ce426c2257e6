"""An instructor and an admin in a real browser, behind a real hub with a base URL; see stage_service.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.login import log_in
from tests.browser.looks import check_looks
from tests.hubstart import free_ports
from tests.running import running_hub

pytestmark = pytest.mark.browser

CLASS = "services/gpu/classes/cs231n/"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_ports()
    url = f"http://127.0.0.1:{port}/jupyter/"
    config = Path(__file__).with_name("stage_hub_config.py")
    folder = tmp_path_factory.mktemp("stage")
    with running_hub(config, f"{url}services/gpu/", folder, {"PAGE_HUB_PORT": str(port)}):
        yield url


@pytest.fixture(scope="module")
def instructor(url: str, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield log_in(context.new_page(), url, "ines")
    context.close()


@pytest.fixture(scope="module")
def admin(url: str, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield log_in(context.new_page(), url, "admin")
    context.close()


def test_the_class_is_one_click_away_and_answers_at_a_glance(url: str, instructor: Page) -> None:
    page = instructor
    page.goto(f"{url}services/gpu/")
    page.get_by_role("link", name="Classes").click()
    expect(page).to_have_url(f"{url}{CLASS}")  # she has one
    stuck = page.get_by_role("region", name="Stuck")
    expect(stuck.get_by_role("listitem")).to_have_text(
        [re.compile("student13.*Waiting long"), re.compile("student02.*Out of GPU memory")]
    )
    expect(page.get_by_role("region", name="Waits longest")).to_contain_text("student13")
    expect(page.locator("#class-roster tbody tr")).to_have_count(24)
    check_looks(page, "class-people")


def test_marks_stay_while_the_page_changes(url: str, instructor: Page) -> None:
    page = instructor
    page.goto(f"{url}{CLASS}")
    page.get_by_label("Mark student05").check()
    with page.expect_response("**/live"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(500)
    expect(page.get_by_label("Mark student05")).to_be_checked()


def test_one_server_is_stopped_after_a_question(url: str, instructor: Page) -> None:
    page = instructor
    page.goto(f"{url}{CLASS}")
    page.get_by_label("Mark student12").check()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("heading", name="Stop 1 server of cs231n?")).to_be_visible()
    check_looks(page, "class-stop")
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator("#class-roster")).to_contain_text("student12")
    page.get_by_label("Mark student12").check()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Stop 1 server").click()
    expect(page.get_by_role("status").filter(has_text="1 server stopped.")).to_be_visible()
    page.reload()
    expect(page.get_by_role("status").filter(has_text="stopped")).to_have_count(0)


def test_a_server_on_cpu_is_stopped_by_the_hub(url: str, instructor: Page, browser: Browser) -> None:
    context = browser.new_context()
    student = log_in(context.new_page(), url, "student23")
    student.goto(f"{url}hub/spawn")
    student.wait_for_url(f"{url}user/student23/**")
    page = instructor
    row = page.locator("#class-roster tbody tr").filter(has_text="student23")
    page.goto(f"{url}{CLASS}")
    expect(row).to_contain_text("on CPU", timeout=30_000)
    page.get_by_label("Mark student23").check()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("main")).to_contain_text("student23, on CPU")
    page.get_by_label("Reason").fill("the class is over")
    page.get_by_role("button", name="Stop 1 server").click()
    expect(page.get_by_role("status").filter(has_text="1 server stopped.")).to_be_visible()
    expect(row).to_contain_text("never started")  # a GPU
    student.goto(f"{url}hub/home")
    expect(student.locator("#start")).to_be_visible()  # it runs no more
    context.close()


def test_a_message_reaches_the_page_and_is_taken_back(url: str, instructor: Page) -> None:
    page = instructor
    page.goto(f"{url}{CLASS}")
    page.get_by_label("Message", exact=True).fill("We continue at <b>14:15</b>.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#class-fault")).to_contain_text("ines: We continue at <b>14:15</b>.")
    page.get_by_role("button", name="Take back").click()
    expect(page.locator("#class-fault")).not_to_contain_text("14:15")


def test_a_lab_session_is_added_moved_and_cancelled(url: str, instructor: Page) -> None:
    page = instructor
    page.goto(f"{url}{CLASS}sessions/")
    expect(page.locator("#class-week")).to_contain_text("6 × Slice of a GPU")
    check_looks(page, "class-sessions")
    page.get_by_label("Name").fill("evening")
    page.get_by_label("When").fill("daily 19-21")
    page.get_by_label("Places").fill("999")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("status").filter(has_text="needs 999 places")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("evening")  # nothing has to be typed again
    expect(page.get_by_label("When")).to_have_value("daily 19-21")
    with page.expect_response("**/live"):  # nor after the page has changed
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_label("Places")).to_have_value("999")
    page.get_by_label("Places").fill("2")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#class-week")).to_contain_text("evening")
    page.get_by_text("Move or cancel evening").click()
    page.get_by_role("button", name="Cancel the session for good").locator("visible=true").click()
    page.get_by_role("button", name="Cancel the session").click()
    expect(page.locator("#class-week")).not_to_contain_text("evening")


def test_others_classes_and_the_admin_s_pages_are_closed(url: str, instructor: Page) -> None:
    for path in ("services/gpu/classes/ml/", "services/gpu/admin/", "services/gpu/admin/log/"):
        answer = instructor.goto(f"{url}{path}")
        assert answer is not None
        assert answer.status == 403
    check_looks(instructor, "refused")


def test_reading_works_without_a_script(url: str, instructor: Page, browser: Browser) -> None:
    plain = browser.new_context(java_script_enabled=False, storage_state=instructor.context.storage_state())
    page = plain.new_page()
    page.goto(f"{url}{CLASS}")
    expect(page.get_by_role("region", name="Waits longest")).to_contain_text(re.compile("student1[34]"))
    page.goto(f"{url}{CLASS}sessions/")
    expect(page.locator("#class-week")).to_contain_text("lab-a")
    plain.close()


def test_the_hub_s_admin_page_leads_to_the_map(url: str, admin: Page) -> None:
    page = admin
    page.goto(f"{url}hub/admin")
    page.click("#gpu-admin-link")
    expect(page).to_have_url(f"{url}services/gpu/admin/")
    cells = page.locator("#admin-map .gpu-cell")
    expect(cells).to_have_count(4)
    expect(cells.nth(1)).to_contain_text("XID 31")
    expect(cells.nth(3)).to_contain_text("drained")
    check_looks(page, "admin-devices")


def test_a_device_is_drained_by_keyboard(url: str, admin: Page) -> None:
    page = admin
    page.goto(f"{url}services/gpu/admin/")
    cell = page.locator("#admin-map .gpu-cell").nth(2)
    cell.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Reason").focus()
    page.keyboard.type("slow fan")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="Nothing new is placed")).to_be_visible()
    expect(page.locator("#admin-map .gpu-cell").nth(2)).to_contain_text("drained by admin: slow fan")
    page.goto(f"{url}services/gpu/admin/log/")
    expect(page.locator("#admin-log tbody tr").first).to_contain_text("drain device")
    check_looks(page, "admin-log")


@pytest.mark.parametrize("name", ["servers", "timeline", "rules", "guard", "machine"])
def test_each_page_can_be_used_by_everybody(url: str, admin: Page, name: str) -> None:
    admin.goto(f"{url}services/gpu/admin/{name}/")
    if name == "machine":
        expect(admin.locator("#admin-machine")).to_contain_text("1 problem needs a look.")
    check_looks(admin, f"admin-{name}")


def test_tables_are_sorted_by_the_server(url: str, admin: Page) -> None:
    admin.goto(f"{url}services/gpu/admin/servers/")
    admin.get_by_role("link", name="User", exact=True).click()
    first = admin.locator("#admin-servers tbody tr").first
    expect(first).to_contain_text("researcher")
    admin.get_by_role("link", name="User").click()
    expect(first).to_contain_text("student16")


def test_a_server_that_the_hub_does_not_know_is_ended(url: str, admin: Page) -> None:
    page = admin
    page.goto(f"{url}services/gpu/admin/")
    page.get_by_role("link", name="See and end").click()
    expect(page).to_have_url(f"{url}services/gpu/admin/unknown/")
    row = page.locator("#gpu-unknown tbody tr")
    expect(row).to_have_text(re.compile("researcher.*default server.*One GPU.*H100 80GB #2", re.DOTALL))
    check_looks(page, "admin-unknown")
    row.get_by_role("button", name="End").click()
    expect(page.get_by_role("heading", name="End the server of researcher?")).to_be_visible()
    check_looks(page)
    page.get_by_role("button", name="End").click()
    expect(page.get_by_role("status").filter(has_text="The server of researcher ends")).to_be_visible()
    expect(page.locator("#gpu-unknown")).to_contain_text("There is none.")
    check_looks(page)


def test_a_quota_that_ends_servers_shows_which_ones_first(url: str, admin: Page) -> None:
    """The last test of the file: it ends the servers of the class."""
    page = admin
    page.goto(f"{url}services/gpu/admin/rules/")
    page.get_by_label("Whom").fill("group:cs231n")
    page.get_by_label("What", exact=True).select_option("slices")
    page.get_by_label("Value").fill("0")
    page.locator("#quota-reason").fill("the GPUs are needed")
    box = page.get_by_label("End running servers that are over the new limit")
    expect(box).not_to_be_checked()
    box.check()
    page.get_by_role("button", name="Change", exact=True).click()
    expect(page.get_by_role("heading", name="End 12 running servers?")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="student01")).to_be_visible()
    expect(page.locator("#confirm-reason")).to_have_value("the GPUs are needed")
    check_looks(page, "admin-quota-ends")
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator("#admin-quotas")).not_to_contain_text("slices 0")
    page.get_by_label("Whom").fill("group:cs231n")
    page.get_by_label("What", exact=True).select_option("slices")
    page.get_by_label("Value").fill("0")
    box.check()
    page.get_by_role("button", name="Change", exact=True).click()
    page.get_by_role("button", name="Change it and end 12 running servers").click()
    said = page.get_by_role("status").filter(has_text="12 servers are warned and will end.")
    expect(said).to_be_visible()
    expect(page.locator("#admin-quotas")).to_contain_text("slices 0")
    expect(box).not_to_be_checked()
    page.goto(f"{url}services/gpu/admin/log/")
    expect(page.locator("#admin-log tbody tr").first).to_contain_text("group:cs231n")
