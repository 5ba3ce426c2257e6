"""Rules through a real hub: a refusal by form, REST and link, prestart, jupyterhub-idle-culler beside us."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from gpuspawner.protocol.client import BrokerClient
from gpuspawner.protocol.rules import KernelsMessage

from tests.hub.hubprocess import NAME, HubProcess, eventually
from tests.hub.test_quota import make_group
from tests.hub.test_spawn import Browser

pytestmark = pytest.mark.docker

HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_QUOTAS": json.dumps([{"group": "students", "devices": 1}])}
API = "/services/gpu/api"


async def rules(hub: HubProcess, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request to the service's API with the tester's token."""
    async with (
        hub.session() as session,
        session.request(method, f"{API}/{path}", json=body) as answer,
    ):
        text = await answer.text()
        return answer.status, json.loads(text) if text else None


async def command(hub: HubProcess, *words: str) -> tuple[int, str]:
    """Status and output of `gpuspawner …` beside the hub."""
    line = [
        sys.executable,
        "-m",
        "gpuspawner.tools.cli",
        *words,
        "--config",
        hub.environment["GPUSPAWNER_CONFIG"],
    ]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*line, env=hub.environment, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    return process.returncode or 0, (out + err).decode()


async def refusals(hub: HubProcess, reason: str) -> int:
    """How many failed starts the hub has counted for this reason."""
    async with hub.session() as session, session.get("/hub/metrics") as answer:
        text = await answer.text()
    label = rf'server_spawn_duration_seconds_count\{{reason="{reason}",status="failure"\}} (\S+)'
    return sum(int(float(found)) for found in re.findall(label, text))


async def phases(hub: HubProcess) -> dict[str, int]:
    """How many starts came through each phase."""
    async with hub.session() as session, session.get("/hub/metrics") as answer:
        text = await answer.text()
    found = re.findall(r'^gpuspawner_spawn_phase_seconds_count\{phase="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {phase: int(float(count)) for phase, count in found}


async def measured(hub: HubProcess) -> dict[str, float]:
    """The broker's samples by name and labels."""
    connector = aiohttp.UnixConnector(str(hub.folder / "broker.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://b/metrics") as answer,
    ):
        lines = (await answer.text()).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


async def test_a_refusal_by_form_rest_and_link_is_the_same(hub: HubProcess) -> None:
    await make_group(hub, "students", ["ada"], {})
    assert (await hub.spawn("ada", {"profile": "gpu"}, "train")).ready
    sentence = "You hold 1 of 1 GPU in server &#39;train&#39;: stop it, or choose CPU."
    status, body = await hub.post("ada", {"profile": "gpu"})
    assert (status, sentence.replace("&#39;", "'") in body) == (403, True)
    assert await refusals(hub, "quota_devices") == 1
    async with Browser(hub, "ada", hub.password) as browser:
        page = await browser.post_spawn("/hub/spawn/ada", {"profile": "gpu"})
        assert (browser.status, sentence in page, 'name="profile"' in page) == (403, True, True)
        page = await browser.get("/hub/spawn/ada?opt-profile=gpu")
        assert (browser.status, sentence in page) == (403, True)
    assert await refusals(hub, "quota_devices") == 3
    assert await phases(hub) == {"image": 1, "gpu": 1, "container": 1, "server": 1}
    first, second = await measured(hub), await measured(hub)
    assert first['gpuspawner_devices{mode="whole",state="in_use"}'] == 1
    assert first['gpuspawner_queue_wait_seconds_count{tier="gpu"}'] == 1
    seconds = 'gpuspawner_gpu_seconds_total{group="students"}'
    assert 0 < first[seconds] < second[seconds]
    assert second["gpuspawner_ledger_errors_total"] == 0
    assert "Traceback" not in hub.log
    await hub.stop_server("ada", "train")


async def test_what_is_set_at_run_time_is_the_next_start_s_refusal(hub: HubProcess) -> None:
    """`quota`, `grant`, `report` and `session` beside the hub, each with the start that follows."""
    assert (await hub.spawn("bob", {"profile": "gpu"})).ready
    change = ("quota", "set", "user:bob", "devices=0", "gpu_hours=3", "--reason", "exam")
    before = await measured(hub)
    assert (await command(hub, *change))[0] == 0
    writes = 'gpuspawner_audit_writes_total{result="done"}'
    assert (await measured(hub))[writes] == before[writes] + 1
    assert ("bob", "", "running") in await hub.leases()  # who holds a GPU keeps it
    await hub.stop_server("bob")
    sentence = "Your quota has no GPUs: choose CPU. An admin can change your quota."
    status, body = await hub.post("bob", {"profile": "gpu"})
    assert (status, sentence in body) == (403, True)
    async with Browser(hub, "bob", hub.password) as browser:
        for page in (
            await browser.post_spawn("/hub/spawn/bob", {"profile": "gpu"}),
            await browser.get("/hub/spawn/bob?opt-profile=gpu"),
        ):
            assert (browser.status, sentence in page) == (403, True)
    assert await refusals(hub, "quota_devices") >= 3
    assert (await command(hub, "quota", "set", "user:bob", "devices=1"))[0] == 0
    assert (await command(hub, "quota", "grant", "user:bob", "-3", "--reason", "used elsewhere"))[0] == 0
    status, body = await hub.post("bob", {"profile": "gpu"})
    assert (status, "Your quota has no GPU-hours" in body) == (403, True)
    assert (await command(hub, "quota", "grant", "user:bob", "3", "--reason", "sorry"))[0] == 0
    assert (await hub.spawn("bob", {"profile": "gpu"})).ready
    status, text = await command(hub, "report", "--by=user", "--json")
    assert (status, [each["name"] for each in json.loads(text)["lines"] if each["name"] == "bob"]) == (
        0,
        ["bob"],
    )
    await hub.stop_server("bob")
    begin = datetime.now(UTC) + timedelta(minutes=5)
    lab = (
        "session", "add", "lab", "group=course", "tier=gpu", "seats=2", f"from={begin:%Y-%m-%d}",
        f"when={begin:%a} {begin:%H:%M}-{begin + timedelta(hours=1):%H:%M}", "timezone=UTC",
    )  # fmt: skip
    assert (await command(hub, *lab))[0] == 0
    status, body = await hub.post("bob", {"profile": "gpu"})
    assert (status, "The lab session 'lab' has these GPUs" in body) == (409, True)
    assert (await command(hub, "session", "cancel", "lab"))[0] == 0
    assert (await command(hub, "quota", "remove", "user:bob"))[0] == 0
    assert (await hub.spawn("bob", {"profile": "gpu"})).ready
    await hub.stop_server("bob")
    assert "Traceback" not in hub.log


async def test_a_lab_session_starts_its_members_before_it_begins(hub: HubProcess) -> None:
    """Both GPUs are the class's; its servers start before it begins, by the hub's own API."""
    await make_group(hub, "class", ["mia", "max"], {})
    begin = datetime.now(UTC) + timedelta(minutes=3)
    lab = {
        "name": "lab", "group": "class", "tier": "gpu", "seats": 2, "first": f"{begin:%Y-%m-%d}",
        "begins": f"{begin:%H:%M}", "length_seconds": 3600, "timezone": "UTC", "prestart_seconds": 900,
    }  # fmt: skip
    status, taken = await rules(hub, "POST", "sessions", {"session": lab, "reason": "course"})
    assert (status, len(taken["next"])) == (200, 1)

    async def all_started() -> bool:
        return await hub.leases() == [("max", "", "running"), ("mia", "", "running")]

    await eventually(all_started)
    said = "Cancelled: the lab session lab doesn't meet any more\n"
    assert await command(hub, "session", "cancel", "lab") == (0, said)
    for user in ("mia", "max"):
        await hub.stop_server(user)


@asynccontextmanager
async def idle_culler(hub: HubProcess) -> AsyncIterator[None]:
    """The package's own process with our hook; for it, every server is idle after a second."""
    config = hub.folder / "culler.py"
    socket = str(hub.folder / "broker.sock")
    config.write_text(
        "from gpuspawner.hub.culling import make_cull_arbiter\n"
        f"c.IdleCuller.cull_arbiter_hook = make_cull_arbiter({socket!r}, {NAME!r})\n"
    )
    line = [sys.executable, "-m", "jupyterhub_idle_culler", f"--config={config}", f"--url={hub.url}/hub/api"]
    environment = {**hub.environment, "JUPYTERHUB_API_TOKEN": hub.token}
    with open(hub.folder / "culler.log", "wb") as log:
        process = await asyncio.create_subprocess_exec(
            *line, "--timeout=1", "--cull-every=1", env=environment, stdout=log, stderr=log
        )
        try:
            yield
            assert process.returncode is None
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_the_idle_culler_ends_neither_a_waiting_start_nor_a_busy_gpu(hub: HubProcess) -> None:
    for user in ("one", "two"):
        assert (await hub.spawn(user, {"profile": "gpu"})).ready
    assert (await hub.spawn("cpu", {"profile": "cpu"})).ready
    waits = asyncio.create_task(hub.spawn("late", {"profile": "gpu"}))

    async def late_waits() -> bool:
        return [each["user"] for each in (await hub.broker_status())["queue"]] == ["late"]

    async def culled(user: str) -> bool:
        return user not in [each["Labels"]["gpuspawner.user"] for each in hub.containers()]

    await eventually(late_waits)
    ids = {
        each["user"]: each["id"] for each in (await hub.broker_status())["leases"] if each["user"] != "late"
    }
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    client = BrokerClient(str(hub.folder / "broker.sock"))
    try:
        await client.tell("POST", f"/leases/{ids['one']}/kernels", KernelsMessage(busy=True))
        async with idle_culler(hub):
            await eventually(lambda: culled("cpu"))
            await asyncio.sleep(3)  # three rounds of the culler
            assert [each for each in await hub.leases() if each[0] != "late"] == [
                ("one", "", "running"), ("two", "", "running"),
            ]  # fmt: skip
            assert await late_waits()
            idle = KernelsMessage(busy=False, active_at=long_ago)
            await client.tell("POST", f"/leases/{ids['two']}/kernels", idle)
            await eventually(lambda: culled("two"))
            assert (await waits).ready
            assert not await culled("one")
    finally:
        await client.close()
    for user in ("one", "late"):
        await hub.stop_server(user)
