"""What a student sees in JupyterLab who meets the limits of the lab: processes, memory, room in the home.

Hub, broker, Docker, lab and kernel are the real ones; the GPUs are simulated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing

import docker
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.login import log_in
from tests.browser.looks import take_picture
from tests.browser.notebook import (
    READY_MS,
    open_notebook,
    restart_kernel,
    run_cell,
    start_lab,
    write_notebook,
)
from tests.running import IMAGE, ROOT, System, running_system

pytestmark = [pytest.mark.browser, pytest.mark.docker]

MANY = """import subprocess
sleepers = []
while True:
    sleepers.append(subprocess.Popen(["sleep", "600"]))"""
BOMB = """import os
while True:
    os.fork()"""
HUGE = 'text = "x" * 2**31'
LAB = os.environ.get("GPUSPAWNER_IMAGE", IMAGE)
ANSWER = "print(6 * 7)"
NOTEBOOK = json.dumps(
    {
        "cells": [
            {"cell_type": "code", "source": ANSWER, "metadata": {}, "outputs": [], "execution_count": None}
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    config = ROOT / "tests" / "browser" / "limits_hub_config.py"
    settings = {
        "GPUSPAWNER_SIMULATED": "4 x H100 80GB",
        "GPUSPAWNER_CONFIG": str(config),
        "GPUSPAWNER_IMAGE": LAB,
    }
    with running_system(tmp_path_factory.mktemp("li"), config=config, **settings) as found:
        yield found


def window(system: System, browser: Browser, user: str) -> Page:
    """A window in which the user is logged in."""
    context = browser.new_context(viewport={"width": 1200, "height": 720}, color_scheme="light")
    return log_in(context.new_page(), system.url, user, system.password(user))


def test_after_a_fork_bomb_a_restart_of_the_kernel_helps(system: System, browser: Browser) -> None:
    page = window(system, browser, "fay")
    start_lab(page, system.url, "fay", "few")
    write_notebook(page, system.url, "fay", MANY, BOMB, ANSWER)
    shown = run_cell(page, 0)
    expect(shown.get_by_role("alert")).to_contain_text(
        "A program could not be started: the limit of 160 processes and threads is reached.", timeout=READY_MS
    )
    shown.get_by_role("alert").scroll_into_view_if_needed()
    take_picture(page, "lab-processes")
    restart_kernel(page)
    run_cell(page, 1)
    page.wait_for_timeout(5000)  # the bomb fills the lab
    restart_kernel(page)
    expect(run_cell(page, 2)).to_contain_text("42", timeout=READY_MS)
    page.context.close()


def test_a_kernel_without_memory_is_told_once(system: System, browser: Browser) -> None:
    page = window(system, browser, "mia")
    start_lab(page, system.url, "mia", "gpu")
    write_notebook(page, system.url, "mia", HUGE, ANSWER)
    run_cell(page, 0)
    died = page.get_by_role("dialog").filter(has_text="appears to have died")
    expect(died).to_be_visible(timeout=READY_MS)
    died.get_by_role("button").last.click()
    expect(page.get_by_text(re.compile("Python 3 .ipykernel. . (Idle|Starting|Unknown)"))).to_be_visible()
    gpu = page.context.new_page()
    gpu.goto(f"{system.url}services/gpu/")
    expect(gpu.locator("#gpu-notices")).to_contain_text(
        "was ended: the server used 700 MiB of 700 MiB of memory", timeout=READY_MS
    )
    shown = run_cell(page, 1)
    expect(shown).to_contain_text("42", timeout=READY_MS)
    told = page.locator(".jp-Notebook .jp-OutputArea").get_by_role("alert")
    expect(told).to_have_text(
        [re.compile("Lab Your kernel was ended: the lab used 0.7 of 0.7 GiB of memory.")]
    )
    take_picture(page, "lab-memory")
    page.context.close()


@pytest.fixture
def full_home(system: System) -> Iterator[str]:
    """The user of a home that has a notebook, and no room for anything else."""
    user = "hana"
    volume = f"{system.name}-home-{user}"
    with closing(docker.from_env()) as engine:
        options = {"type": "tmpfs", "device": "tmpfs", "o": "size=10m,uid=1000,gid=100"}
        engine.volumes.create(volume, driver="local", driver_opts=options)
        command = ["sh", "-c", 'echo "$NOTEBOOK" > work.ipynb; cat /dev/zero > big; exec sleep 3600']
        holder = engine.containers.run(
            LAB,
            command,
            detach=True,
            environment={"NOTEBOOK": NOTEBOOK},
            volumes={volume: {"bind": "/home/jovyan"}},
            working_dir="/home/jovyan",
        )
        try:
            yield user
        finally:
            holder.remove(force=True)


def test_a_full_home_starts_and_the_notebook_says_what_to_do(
    system: System, browser: Browser, full_home: str
) -> None:
    page = window(system, browser, full_home)
    start_lab(page, system.url, full_home, "gpu")
    open_notebook(page, system.url, full_home, "work.ipynb")
    shown = run_cell(page)
    expect(shown).to_contain_text("42", timeout=READY_MS)
    expect(shown.get_by_role("alert")).to_contain_text(
        "Your home is full (0.0 of 10 MiB are free): nothing more can be saved. Delete files"
    )
    take_picture(page, "lab-home-full")
    page.context.close()
