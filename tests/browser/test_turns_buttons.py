"""Wake now and Give up my turn, with real hub, broker and Docker; NVML and CUDA's driver are stand-ins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.login import log_in
from tests.browser.looks import check_looks
from tests.hub.conftest import engine, images  # noqa: F401  (fixtures)
from tests.nvml.scripted import Gpu, Script
from tests.running import System, running_system

pytestmark = [
    pytest.mark.browser,
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="turns pause programs of containers, only as root"),
]

CONFIG = Path(__file__).with_name("turns_hub_config.py")
GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
START_MS = 60_000
TURN_MS = 60_000


@pytest.fixture(scope="module")
def system(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:  # noqa: F811
    folder = tmp_path_factory.mktemp("tb")
    script = Script(folder / "nvml", gpus=[Gpu(GPU, util=60)])
    script.write()
    (folder / "turns-checked.json").write_text(json.dumps({"driver": script.driver}))
    found = script.environment()
    settings = {name: found[name] for name in ("LD_LIBRARY_PATH", "GPUSPAWNER_TEST_NVML")}
    settings |= {"GPUSPAWNER_STANDIN": str(folder), "GPUSPAWNER_IMAGE": "gpuspawner-hubtest/lab"}
    settings |= {"GPUSPAWNER_CONFIG": str(CONFIG)}
    with running_system(folder, config=CONFIG, **settings) as running:
        yield running


@pytest.fixture
def ada(browser: Browser, system: System) -> Iterator[Page]:
    """Ada's window at "My GPU"; her server runs and computes nothing."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    log_in(page, system.url, "ada", system.password("ada"), then="hub/spawn")
    page.check("input[name=profile][value=turns]")
    page.click("#spawn_form [type=submit]")
    page.wait_for_url("**/user/ada/**", timeout=START_MS)
    page.goto(system.service_url)
    yield page
    page.context.close()


def test_a_server_is_woken_and_gives_up_its_turn(ada: Page) -> None:
    card, said = ada.locator(".gpu-own"), ada.locator("main > [role=status]")
    expect(card).to_contain_text("A GPU in turns")
    wake = card.get_by_role("button", name="Wake now")
    expect(wake).to_be_visible(timeout=TURN_MS)
    wake.click()
    expect(card).to_contain_text("Your programs have the GPU now.", timeout=TURN_MS)
    expect(said).to_have_count(0)  # the wish is fulfilled
    check_looks(ada, "my-gpu-turns")
    card.get_by_role("button", name="Give up my turn").click()
    expect(card.get_by_role("button", name="Wake now")).to_be_visible(timeout=TURN_MS)
    expect(said).to_have_count(0)
