"""What the user of a slice sees in JupyterLab, in a real browser: the status bar has the numbers of "My GPU",
and who takes more than their slice is told so in the notebook, and the admin sees it.

Hub, broker, Docker and lab are the real ones. The GPU is scripted: it says of the notebook's own kernel that
it has 20 GiB, so the guard ends a real kernel in a real container.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.login import log_in
from tests.browser.looks import check_looks, take_picture
from tests.browser.notebook import READY_MS, run_cell, start_lab, write_notebook
from tests.nvml.scripted import Gpu, Script
from tests.running import System, running_system

pytestmark = [
    pytest.mark.browser,
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="the guard ends processes of containers only as root"),
]

GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000001"


@dataclass
class Class:
    """The running system, its GPU and a window for each user."""

    system: System
    script: Script
    browser: Browser

    def window(self, user: str) -> Page:
        """A window in which the user is logged in."""
        context = self.browser.new_context(viewport={"width": 1200, "height": 720}, color_scheme="light")
        return log_in(context.new_page(), self.system.url, user, self.system.password(user))

    def kernel_pid(self, user: str) -> int:
        """The host's pid of the user's only kernel."""
        engine = docker.APIClient(version="auto")
        try:
            labels = [f"gpuspawner.hub={self.system.name}", f"gpuspawner.user={user}"]
            (container,) = engine.containers(filters={"label": labels})
            processes = engine.top(container["Id"], ps_args="-o pid,args")["Processes"]
        finally:
            engine.close()
        (pid,) = [int(pid) for pid, command in processes if "ipykernel" in command]
        return pid


@pytest.fixture(scope="module")
def course(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Class]:
    folder = tmp_path_factory.mktemp("gn")
    script = Script(folder / "nvml", gpus=[Gpu(GPU, used=1 << 30, util=71)])
    script.write()
    found = script.environment()
    settings = {name: found[name] for name in ("LD_LIBRARY_PATH", "GPUSPAWNER_TEST_NVML")}
    image = os.environ.get("GPUSPAWNER_IMAGE")
    settings |= {} if image is None else {"GPUSPAWNER_IMAGE": image}
    config = Path(__file__).with_name("guard_hub_config.py")
    settings |= {"GPUSPAWNER_CONFIG": str(config)}
    with running_system(folder, config=config, **settings) as system:
        yield Class(system, script, browser)


def test_the_status_bar_has_the_numbers_of_my_gpu(course: Class) -> None:
    page = course.window("ben")
    start_lab(page, course.system.url, "ben", "slice")
    write_notebook(page, course.system.url, "ben", "print(6 * 7)")
    bar = page.locator("#gpuspawner-status")
    expect(bar).to_have_text("GPU 0 B of 8.0 GiB · 71 % busy", timeout=30_000)
    line = course.script.process(course.kernel_pid("ben"), 3 << 30)
    expect(bar).to_have_text("GPU 3.0 GiB of 8.0 GiB · 71 % busy", timeout=30_000)
    expect(bar).to_have_attribute(
        "title", re.compile("5.0 GiB left.*nvidia-smi shows the whole GPU", re.DOTALL)
    )
    page.wait_for_timeout(1000)  # JupyterLab draws its launcher and its messages
    take_picture(page, "lab-status-bar")
    course.script.drop(line)
    line = course.script.process(course.kernel_pid("ben"), 15 << 29)
    expect(bar).to_have_attribute("data-level", "warning", timeout=30_000)
    with page.expect_popup() as opened:
        bar.click()
    gpu = opened.value
    expect(gpu.locator("[data-kind=memory] [data-text]")).to_have_text("7.5 GiB of 8.0 GiB")
    expect(gpu.locator("[data-kind=compute] [data-text]")).to_have_text("71 % busy")
    expect(bar).to_have_text("GPU 7.5 GiB of 8.0 GiB · 71 % busy")
    course.script.drop(line)


def test_a_server_without_a_gpu_has_no_gpu_in_its_status_bar(course: Class) -> None:
    page = course.window("cleo")
    start_lab(page, course.system.url, "cleo", "cpu")
    with page.expect_response("**/gpuspawner/use?*") as answered:
        page.reload()
    assert answered.value.json() is None
    expect(page.locator("#jp-main-statusbar .jp-StatusBar-Left")).not_to_be_empty()
    expect(page.locator("#gpuspawner-status")).to_have_count(0)


def test_in_the_notebook_and_on_the_gpu_page(course: Class) -> None:
    page = course.window("anna")
    start_lab(page, course.system.url, "anna", "slice")
    write_notebook(page, course.system.url, "anna", "print(6 * 7)")
    expect(run_cell(page)).to_contain_text("42", timeout=READY_MS)

    line = course.script.process(course.kernel_pid("anna"), 20 << 30)
    died = page.get_by_role("dialog").filter(has_text="appears to have died")
    expect(died).to_be_visible(timeout=30_000)
    course.script.drop(line)
    died.get_by_role("button").last.click()
    expect(page.get_by_text(re.compile("Python 3 .ipykernel. . (Idle|Starting|Unknown)"))).to_be_visible()
    run_cell(page)  # it waits for the new kernel
    notice = page.locator(".jp-Notebook .jp-OutputArea [role=alert]")
    expect(notice).to_contain_text("this server used 20 GiB of its 8.0 GiB of GPU memory", timeout=READY_MS)
    expect(notice).to_contain_text("use smaller batches")
    take_picture(page, "guard-notice")
    notice.get_by_role("button", name="Dismiss").click()
    expect(notice).to_have_count(0)

    page.goto(f"{course.system.url}services/gpu/")
    expect(page.locator("#gpu-notices")).to_contain_text("this server used 20 GiB of its 8.0 GiB")
    assert page.locator("#gpu-ended").count() == 0
    check_looks(page, "my-gpu-notice")
    admin = course.window("admin")
    admin.goto(f"{course.system.url}services/gpu/admin/guard/")
    expect(admin.locator("#admin-guard tbody tr")).to_have_text([re.compile(r"anna.*was ended", re.DOTALL)])
    admin.goto(f"{course.system.url}services/gpu/admin/")
    row = admin.locator("#admin-devices tbody tr")
    expect(row).to_have_text(re.compile(r"1\.0 GiB of .*71 %", re.DOTALL), timeout=65_000)
