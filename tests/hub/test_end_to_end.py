"""From the login form to a matrix product in a kernel and back to a free device, over plain HTTP.

What a browser does, without one: forms with their XSRF token, cookies, redirects of OAuth, the progress
stream and the kernel's websocket.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.running import System, running_system
from tests.webclient import all_free, logged_in

pytestmark = pytest.mark.docker

SIDE = 256
PRODUCT = f"""
import numpy as np
a = np.arange({SIDE}**2, dtype=np.int64).reshape({SIDE}, {SIDE}) % 7
print("trace of the product:", np.trace(a @ a.T))
"""
TRACE = sum((number % 7) ** 2 for number in range(SIDE**2))
"""The trace of A times its own transpose is the sum of the squares of A."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("e")
    with running_system(folder, GPUSPAWNER_SIMULATED="1 x H100 80GB") as running:
        yield running


async def test_from_login_to_a_matrix_product_and_back_to_a_free_device(system: System) -> None:
    async with logged_in(system, "anna") as anna, logged_in(system, "admin") as admin:
        form = await anna.text("hub/spawn")
        assert re.findall(r'name="profile" id="[^"]*" value="([^"]*)"', form) == ["cpu", "gpu"]
        assert "1 of 1 simulated GPU free now." in form
        answer = await anna.submit("hub/spawn", profile="gpu")
        # A server that is ready within the hub's first second is shown at once.
        waited, at_once = "/hub/spawn-pending/anna", "/user/anna/lab"
        assert (answer.status, answer.url.path) in ((200, waited), (200, at_once))
        events = await anna.progress()
        assert events[-1].get("ready"), events

        assert await anna.run_in_kernel(PRODUCT) == f"trace of the product: {TRACE}\n"

        await anna.text("services/gpu/")
        mine = await anna.json("services/gpu/api/status")
        device = mine["devices"][0]["uuid"]
        since = mine["leases"][0].pop("since")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", since)
        assert mine["leases"] == [
            {
                "id": mine["devices"][0]["lease_id"],
                "user": "anna",
                "server": "",
                "hub": system.name,
                "tier": "gpu",
                "state": "running",
                "device_uuids": [device],
                "memory_bytes": 80 << 30,
                "compute_percent": 100.0,
                "mode": "whole",
                "notice": "",
                "turn": None,
                "groups": [],
                "unknown_to_hub": False,
                "used_bytes": None,
                "busy_percent": None,
                "ends_at": None,
                "ends_because": "",
                "kept_asleep": "",
            }
        ]
        await admin.text("services/gpu/")
        whole = await admin.json("services/gpu/api/status")
        assert [(shown["user"], shown["free"]) for shown in whole["devices"]] == [("anna", False)]
        user = await admin.json("hub/api/users/anna")
        assert user["servers"][""]["user_options"] == {"profile": "gpu"}  # the admin page's Profile column

        await anna.text("hub/home")
        await anna.send("DELETE", "hub/api/users/anna/server")
        await all_free(admin)


async def test_the_third_in_two_waits_and_gives_up(system: System) -> None:
    """One GPU: bob gets it, carl stands in line, sees his place, and gives it up."""
    async with logged_in(system, "bob") as bob, logged_in(system, "carl") as carl:
        await bob.submit("hub/spawn", profile="gpu")
        assert (await bob.progress())[-1].get("ready")
        await carl.submit("hub/spawn", profile="gpu")
        await carl.text("services/gpu/")
        for _ in range(100):
            status = await carl.json("services/gpu/api/status")
            if status["queue"]:
                break
            await asyncio.sleep(0.1)
        entry = status["queue"][0]
        assert (entry["user"], entry["position"], status["leases"][1:]) == ("carl", 1, [])
        page = await carl.text("services/gpu/")
        assert "You are 1st in line for a GPU" in page
        assert "bob" not in page

        await carl.text("hub/home")
        begun = asyncio.Event()
        waiting = asyncio.create_task(carl.progress(begun))
        await begun.wait()  # as who gives up has the page open
        await carl.send("DELETE", "hub/api/users/carl/server")
        messages = [event.get("message", "") for event in await waiting]
        assert "1st in line for a simulated GPU" in " ".join(messages)
        for _ in range(50):
            if not (await carl.json("services/gpu/api/status"))["queue"]:
                break
            await asyncio.sleep(0.1)
        after = await carl.json("services/gpu/api/status")
        assert (after["queue"], after["leases"]) == ([], [])
        await bob.text("hub/home")
        await bob.send("DELETE", "hub/api/users/bob/server")


async def test_a_killed_broker_is_back_before_the_hub_has_noticed(system: System) -> None:
    async with logged_in(system, "eve") as eve, logged_in(system, "admin") as admin:
        await eve.submit("hub/spawn", profile="gpu")
        assert (await eve.progress())[-1].get("ready")
        broker, log = system.broker_pid(), system.folder / "hub.log"
        assert broker is not None
        os.kill(broker, signal.SIGKILL)
        for _ in range(300):
            if log.read_text().count("The broker answers on ") == 2:
                break
            await asyncio.sleep(0.1)
        await admin.text("services/gpu/")
        status = await admin.json("services/gpu/api/status")
        assert [(lease["user"], lease["state"]) for lease in status["leases"]] == [("eve", "running")]
        assert "The broker was ended by SIGKILL: restarting it" in log.read_text()
        assert "Service gpu exited" not in log.read_text()
        await eve.text("hub/home")
        await eve.send("DELETE", "hub/api/users/eve/server")
        await all_free(admin)
