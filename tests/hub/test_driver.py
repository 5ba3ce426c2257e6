"""An image's lowest driver held against the machine's, from a scripted NVML through broker and hub."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.hub.hubprocess import HubProcess
from tests.hub.test_spawn import Browser
from tests.nvml.scripted import ENVIRONMENT, Gpu, Script, build

pytestmark = pytest.mark.docker

SENTENCE = (
    "needs driver ≥ 580, this machine's driver is 535.230.02: choose another image, or a server without a "
    "GPU. Admin: update the driver."
)


@pytest.fixture(scope="module", autouse=True)
def script(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Script:
    """One H100 with an old driver. The hook that the broker looks for is there, but not Docker's part."""
    folder: Path = tmp_path_factory.mktemp("nvml")
    script = Script(folder / "script", [Gpu("GPU-1")], driver="535.230.02", cuda=12_020)
    script.write()
    hook = folder / "nvidia-container-runtime-hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    request.module.HUB_ENVIRONMENT = {
        ENVIRONMENT: str(script.path),
        "GPUSPAWNER_TEST_LIBRARIES": str(build().parent),
        "GPUSPAWNER_TEST_ALLOWED": json.dumps(
            {"usual": "gpuspawner-hubtest/lab", "torch": "gpuspawner-hubtest/torch"}
        ),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    return script


async def test_an_old_driver_is_told_in_the_form_and_before_the_queue(hub: HubProcess) -> None:
    async with Browser(hub, "fay", hub.password) as browser:
        page = await browser.get("/hub/spawn")
    assert "1 of 1 GPU free now." in page
    assert f">gpuspawner-hubtest/torch {SENTENCE.replace(chr(39), '&#39;')}</span>" in page
    for options in ({"profile": "torch"}, {"profile": "gpu", "image": "torch"}):
        status, message = await hub.post("fay", options)
        assert (status, message) == (409, f"gpuspawner-hubtest/torch {SENTENCE}")
    assert (await hub.leases("fay"), hub.containers("fay")) == ([], [])
    # Without a GPU the same image can work.
    assert (await hub.spawn("fay", {"profile": "cpu", "image": "torch"})).ready
    await hub.stop_server("fay")


async def test_with_a_newer_driver_nothing_stands_in_its_way(hub: HubProcess, script: Script) -> None:
    hub.stop()
    script.driver, script.cuda = "580.159.04", 13_000
    script.write()
    hub.start()
    async with Browser(hub, "ned", hub.password) as browser:
        assert "needs driver" not in await browser.get("/hub/spawn")
    status, message = await hub.post("ned", {"profile": "torch"})
    # As far as the device itself, which Docker can't give here.
    assert (status, message.split(".")[0]) == (503, "Docker can't give your server its GPU")
    assert "Lease reserved user=ned" in hub.log
