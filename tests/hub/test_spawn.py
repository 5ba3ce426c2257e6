"""A server by REST, form and address, behind a real hub, in a real container."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import docker.errors
import pytest
from gpuspawner.hub.network import gateway_of

from tests.hub.hubprocess import IMAGE, NAME, SUBNET, HubProcess, eventually, is_leased

pytestmark = pytest.mark.docker


def safety(container: dict[str, Any]) -> dict[str, Any]:
    """What of a container's settings decides on its rights."""
    host = container["HostConfig"]
    return {
        "user": container["Config"]["User"],
        "image": container["Config"]["Image"],
        "gpu environment": sorted(
            item
            for item in container["Config"]["Env"]
            if item.startswith(("NVIDIA", "CUDA", "GPUSPAWNER_TIER"))
        ),
        "volumes": host["Binds"],
        **{
            key: host[key]
            for key in (
                "Privileged", "CapAdd", "CapDrop", "SecurityOpt", "Devices", "DeviceRequests", "NetworkMode",
                "PidMode", "IpcMode", "AutoRemove",
            )
        },
    }  # fmt: skip


def expected_safety(user: str, **changes: Any) -> dict[str, Any]:
    """A lab's rights: none beyond its own home."""
    return {
        "user": "1000:100",
        "image": IMAGE,
        "gpu environment": ["GPUSPAWNER_TIER=cpu", "NVIDIA_VISIBLE_DEVICES=void"],
        "volumes": [f"{NAME}-home-{user}:/home/jovyan:rw"],
        "Privileged": False,
        "CapAdd": None,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Devices": None,
        "DeviceRequests": None,
        "NetworkMode": NAME,
        "PidMode": "",
        "IpcMode": "private",
        "AutoRemove": False,
        **changes,
    }


async def test_a_cpu_server_starts_and_stops(hub: HubProcess) -> None:
    assert (await hub.spawn("ada")).ready
    model = await hub.server("ada")
    assert model is not None
    container = hub.inspect("ada")
    assert model["user_options"] == {"profile": "cpu"}
    assert model["state"] == {"object_id": container["Id"], "object_name": f"{NAME}-ada"}
    assert safety(container) == expected_safety("ada")
    assert container["Config"]["Labels"] == {
        "gpuspawner.hub": NAME,
        "gpuspawner.user": "ada",
        "gpuspawner.server": "",
        "gpuspawner.tier": "cpu",
        "gpuspawner.mem-limit-bytes": str(container["HostConfig"]["Memory"]),
        "gpuspawner.state-folder": str(hub.folder),
    }
    assert container["HostConfig"]["Memory"] == 2 * container["HostConfig"]["ShmSize"] > 0
    assert "COURSE=ml" in container["Config"]["Env"]
    await hub.stop_server("ada")
    assert hub.containers("ada") == []
    assert hub.engine.inspect_volume(f"{NAME}-home-ada")["Name"] == f"{NAME}-home-ada"


async def test_a_gpu_server_has_a_lease_for_as_long_as_it_runs(hub: HubProcess) -> None:
    assert (await hub.spawn("grace", {"profile": "gpu"})).ready
    container = hub.inspect("grace")
    labels = container["Config"]["Labels"]
    model = await hub.server("grace")
    assert model is not None
    assert model["state"] == {
        "object_id": container["Id"],
        "object_name": f"{NAME}-grace",
        "lease_id": labels["gpuspawner.lease"],
    }
    await eventually(lambda: is_leased(hub, "grace", "gpu"))
    assert safety(container) == expected_safety(
        "grace", **{"gpu environment": ["GPUSPAWNER_TIER=gpu", "NVIDIA_VISIBLE_DEVICES=void"]}
    )
    await hub.stop_server("grace")

    async def free() -> bool:
        return await hub.leases("grace") == []

    await eventually(free)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"profile": "gpuu"},
            "There is no tier 'gpuu'. Available tiers: cpu, gpu, big, crash, mute, odd, noimage.",
        ),
        ({"profile": ["gpu"]}, "The option profile is a text: the name of a tier. "),
        ({"profile": {"name": "gpu"}}, "The option profile is a text: the name of a tier. "),
        ({"profile": None}, "The option profile is a text: the name of a tier. "),
        ({"profile": "cpu", "privileged": True}, "There is no option 'privileged'. "),
        ({"device_requests": [{"Count": -1}]}, "There is no option 'device_requests'. "),
        ({"devices": ["/dev/nvidia0"]}, "There is no option 'devices'. "),
        ({"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}}, "There is no option 'environment'. "),
        ({"extra_host_config": {"privileged": True}}, "There is no option 'extra_host_config'. "),
        ({"image": "evil/image"}, "There is no image 'evil/image': choose usual or other"),
        ({"image": ["usual"]}, "There is no image of type list: choose usual or other"),
        ({"profile": "x" * 100_000}, "There is no tier '" + "x" * 40 + "…'. "),
    ],
)
async def test_hostile_options_by_rest_are_refused_and_not_kept(
    hub: HubProcess, options: dict[str, Any], sentence: str
) -> None:
    status, message = await hub.post("mallory", options)
    assert status == 400
    assert message.startswith(sentence)
    assert hub.containers("mallory") == []
    assert (await hub.spawn("mallory")).ready  # nothing that can't work was kept for the next start
    assert safety(hub.inspect("mallory")) == expected_safety("mallory")
    await hub.stop_server("mallory")


async def test_an_image_that_the_site_allows_can_be_chosen(hub: HubProcess) -> None:
    assert (await hub.spawn("ida", {"profile": "cpu", "image": "other"})).ready
    assert safety(hub.inspect("ida")) == expected_safety("ida", image="gpuspawner-hubtest/other")
    await hub.stop_server("ida")
    assert (await hub.spawn("ida")).ready  # as last time
    assert safety(hub.inspect("ida")) == expected_safety("ida", image="gpuspawner-hubtest/other")
    await hub.stop_server("ida")


async def test_named_servers_live_side_by_side(hub: HubProcess) -> None:
    for server in ("", "one", "two"):
        assert (await hub.spawn("nora", {"profile": "cpu"}, server)).ready
    names = sorted(item["Names"][0] for item in hub.containers("nora"))
    assert names == [f"/{NAME}-nora", f"/{NAME}-nora--one", f"/{NAME}-nora--two"]
    await hub.stop_server("nora", "one")
    assert len(hub.containers("nora")) == 2
    for server in ("", "two"):
        await hub.stop_server("nora", server)
    assert hub.containers("nora") == []


async def test_a_tier_that_this_machine_cant_serve_is_refused_at_once(hub: HubProcess) -> None:
    status, message = await hub.post("bea", {"profile": "big"})
    assert status == 503
    assert "3" in message
    assert hub.containers("bea") == []


async def test_a_server_that_ends_at_once_says_why_without_its_token(hub: HubProcess) -> None:
    spawned = await hub.spawn("carl", {"profile": "crash"})
    last = spawned.body or spawned.messages[-1]
    assert "The server stopped while it was starting (exit code 3)." in last
    assert "Last log lines: the token is *** / ModuleNotFoundError: No module named 'jupyterhub'" in last
    assert hub.containers("carl") == []


async def test_a_server_that_never_answers_is_given_up_and_removed(hub: HubProcess) -> None:
    spawned = await hub.spawn("mo", {"profile": "mute"})
    assert spawned.messages[-1] == (
        "Spawn failed: The container started, but the server in it didn't answer within 10 seconds. "
        "Try again first; if it fails again, choose another image or ask your admin. "
        "Last log lines: warming up"
    )
    assert hub.containers("mo") == []
    assert (await hub.spawn("mo", {"profile": "cpu"})).ready
    await hub.stop_server("mo")


async def test_a_missing_image_names_the_remedy(hub: HubProcess) -> None:
    spawned = await hub.spawn("ira", {"profile": "noimage"})
    said = (spawned.body or spawned.messages[-1]).removeprefix("Spawn failed: ")
    # Which registry answers what is another machine's affair; tests/docker/test_pull.py has one of its own.
    assert said.startswith(
        "The image gpuspawner-hubtest/none:1 isn't here and could not be pulled. The registry "
    )
    assert "Admin: " in said


async def is_gone(hub: HubProcess, user: str) -> bool:
    model = await hub.server(user)
    stopped = model is None or model["stopped"]
    return stopped and hub.containers(user) == [] and await hub.leases(user) == []


async def test_a_server_that_dies_is_noticed_and_taken_away(hub: HubProcess) -> None:
    assert (await hub.spawn("dora", {"profile": "gpu"})).ready
    hub.engine.kill(hub.inspect("dora")["Id"])
    await eventually(lambda: is_gone(hub, "dora"))


async def test_nobody_gets_the_address_of_a_server_that_just_died(hub: HubProcess) -> None:
    """Until the hub notices, its proxy sends the former user's requests, with their token, there."""

    def address(user: str) -> str:
        return str(hub.inspect(user)["NetworkSettings"]["Networks"][NAME]["IPAddress"])

    await hub.spawn("dan", {"profile": "cpu"})
    late = address("dan")
    hub.engine.kill(hub.inspect("dan")["Id"])
    addresses = []
    for user in ("ada", "eve", "fay"):
        assert (await hub.spawn(user, {"profile": "cpu"})).ready
        addresses.append(address(user))
    assert len({late, *addresses}) == 4
    for user in ("ada", "eve", "fay"):
        await hub.stop_server(user)
    await eventually(lambda: is_gone(hub, "dan"))


async def test_a_container_that_isnt_ours_is_left_alone(hub: HubProcess) -> None:
    other = hub.engine.create_container(IMAGE, name=f"{NAME}-olga", labels={"gpuspawner.hub": "another"})
    try:
        status, message = await hub.post("olga")
        assert status == 500
        assert message == (
            f"Another container has the name {NAME}-olga, and it doesn't belong to this server. "
            "Admin: if another hub on this machine started it, give this hub its own names (GPUSPAWNER_NAME; "
            "c.GpuDockerSpawner.hub_id and prefix); else remove it "
            f"(`docker rm -f {NAME}-olga`)."
        )
        assert hub.engine.inspect_container(other["Id"])["State"]["Status"] == "created"
    finally:
        hub.engine.remove_container(other["Id"])


async def test_a_hub_refuses_to_start_beside_the_labs_of_another_one_of_its_name(
    hub: HubProcess, tmp_path: Path
) -> None:
    """A second `jupyterhub -f` in this checkout with another state folder."""
    assert (await hub.spawn("uma", {"profile": "cpu"})).ready
    before = hub.containers("uma")[0]["Id"]
    environment = {**hub.environment, "GPUSPAWNER_STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "jupyterhub", "-f", environment["GPUSPAWNER_CONFIG"]]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    folder = f"its state folder is {hub.folder}, and its labs run ({NAME}-uma)."
    assert f"The hub doesn't start: another hub has the name '{NAME}', too: {folder}" in done.stderr
    assert hub.containers("uma")[0]["Id"] == before
    await hub.stop_server("uma")


async def test_a_leftover_of_the_same_server_is_replaced(hub: HubProcess) -> None:
    labels = {"gpuspawner.hub": NAME, "gpuspawner.user": "lea", "gpuspawner.server": ""}
    old = hub.engine.create_container(IMAGE, name=f"{NAME}-lea", labels=labels)
    assert (await hub.spawn("lea")).ready
    with pytest.raises(docker.errors.NotFound):
        hub.engine.inspect_container(old["Id"])
    await hub.stop_server("lea")


class Browser:
    """Logs in with a password and follows forms, as a browser would, without scripts."""

    def __init__(self, hub: HubProcess, user: str, password: str) -> None:
        self._hub, self._user, self._password = hub, user, password

    async def __aenter__(self) -> Browser:
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        page = await self.get("/hub/login")
        form = {"username": self._user, "password": self._password, "_xsrf": self.xsrf(page)}
        async with self._session.post(self._hub.url + "/hub/login", data=form) as answer:
            assert answer.status == 200, await answer.text()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @staticmethod
    def xsrf(page: str) -> str:
        """The token of a page's forms."""
        found = re.search(r'name="_xsrf" value="([^"]+)"|_xsrf=([^"&]+)"|xsrf_token: "([^"]+)"', page)
        assert found is not None, page
        return next(group for group in found.groups() if group)

    async def get(self, path: str) -> str:
        """The page at a path, redirects followed."""
        async with self._session.get(self._hub.url + path) as answer:
            self.status = answer.status
            return await answer.text()

    async def post_spawn(self, path: str, form: dict[str, Any]) -> str:
        """Sends the spawn page's form."""
        page = await self.get(path)
        token = self.xsrf(page)
        async with self._session.post(f"{self._hub.url}{path}?_xsrf={token}", data=form) as answer:
            self.status = answer.status
            return await answer.text()


async def test_the_form_shows_the_tiers_and_starts_what_was_picked(hub: HubProcess) -> None:
    async with Browser(hub, "fay", hub.password) as browser:
        page = await browser.get("/hub/spawn")
        assert 'type="radio" name="profile" id="tier-gpu" value="gpu"' in page
        assert "2 of 2 simulated GPUs free now." in page
        assert "Needs 3 simulated GPUs; 2 are in service for this tier now." in page
        await browser.post_spawn("/hub/spawn", {"profile": "gpu", "image": ""})
    await eventually(lambda: ready(hub, "fay"))
    model = await hub.server("fay")
    assert model is not None
    assert model["user_options"] == {"profile": "gpu"}
    await hub.stop_server("fay")


async def ready(hub: HubProcess, user: str) -> bool:
    model = await hub.server(user)
    return model is not None and bool(model["ready"])


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"profile": "root"}, "There is no tier &#39;root&#39;."),
        ({"profile": "cpu", "privileged": "1"}, "There is no option &#39;privileged&#39;."),
        ({"profile": "cpu", "cap_add": "ALL"}, "There is no option &#39;cap_add&#39;."),
        ({"profile": "cpu", "image": "evil"}, "There is no image &#39;evil&#39;"),
    ],
)
async def test_a_hostile_form_is_shown_again_with_the_reason(
    hub: HubProcess, form: dict[str, str], sentence: str
) -> None:
    async with Browser(hub, "hal", hub.password) as browser:
        page = await browser.post_spawn("/hub/spawn", form)
        assert browser.status == 400
        assert sentence in page
        assert 'name="profile"' in page  # and the next choice can be made at once
    assert hub.containers("hal") == []


async def test_an_address_with_options_is_validated_as_the_form(hub: HubProcess) -> None:
    async with Browser(hub, "quinn", hub.password) as browser:
        for query in ("opt-profil=gpu", "profile=root", "opt-profile=cpu&opt-profile=gpu"):
            page = await browser.get(f"/hub/spawn?{query}")
            assert browser.status == 400, page
            assert 'name="profile"' in page
        assert hub.containers("quinn") == []
        await browser.get("/hub/spawn?opt-profile=cpu&opt-privileged=true&opt-devices=/dev/nvidia0&fbclid=1")
    await eventually(lambda: ready(hub, "quinn"))
    assert safety(hub.inspect("quinn")) == expected_safety("quinn")
    await hub.stop_server("quinn")


async def test_an_admin_starts_a_server_for_somebody_else(hub: HubProcess) -> None:
    await hub.add_users("sam")
    async with Browser(hub, "admin", hub.admin_password) as browser:
        await browser.post_spawn("/hub/spawn/sam", {"profile": "gpu"})
    await eventually(lambda: ready(hub, "sam"))
    await eventually(lambda: is_leased(hub, "sam", "gpu"))
    await hub.stop_server("sam")


async def test_labs_reach_the_hub_and_not_each_other(hub: HubProcess) -> None:
    for user in ("pia", "pit"):
        assert (await hub.spawn(user)).ready
    neighbour = hub.inspect("pit")["NetworkSettings"]["Networks"][NAME]["IPAddress"]
    environment = dict(item.split("=", 1) for item in hub.inspect("pia")["Config"]["Env"])

    def answers(ip: str, port: int, path: str) -> bool:
        # The sleep keeps the request's side open: the hub drops who hangs up before the answer.
        get = f"printf 'GET {path} HTTP/1.0\\r\\n\\r\\n'; /bin/busybox sleep 1"
        request = f"({get}) | /bin/busybox nc -w 2 {ip} {port}"
        made = hub.engine.exec_create(hub.inspect("pia")["Id"], ["/bin/busybox", "sh", "-c", request])
        return bytes(hub.engine.exec_start(made["Id"])).startswith(b"HTTP/")

    gateway = gateway_of(SUBNET)
    assert environment["JUPYTERHUB_API_URL"] == f"http://{gateway}:{hub.port + 2}/hub/api"

    async def reached() -> bool:
        """Who is slow is asked again: a second is all that one request waits."""
        return answers(gateway, hub.port + 2, "/hub/api/") and answers("127.0.0.1", 8888, "/user/pia/api")

    await eventually(reached)
    assert not answers(neighbour, 8888, "/user/pit/api")
    for user in ("pia", "pit"):
        await hub.stop_server(user)
