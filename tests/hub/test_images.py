"""Images of others behind a real hub: pulled with progress, allowed by pattern, started in their own way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import docker
import pytest
from gpuspawner.hub.pulls import TELL_SECONDS

from tests.hub.hubprocess import SOON_SECONDS, HubProcess, eventually
from tests.hub.test_spawn import Browser, ready
from tests.registry import Registry, running_registry

pytestmark = pytest.mark.docker

LAB = "gpuspawner-hubtest/lab"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def registry(engine: docker.APIClient, images: None, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry that the hub knows: `early` is pulled when the hub starts, `labs/*` may be typed."""
    with running_registry(engine) as running:
        early = running.push("early:1", LAB, MEGABYTE)
        gone = f"{running.host}/gone:1"
        request.module.HUB_ENVIRONMENT = {
            "GPUSPAWNER_TEST_ALLOWED": json.dumps(
                [early, gone, f"{running.host}/labs/*:2026-*", "gpuspawner-hubtest/*:*"]
            ),
            "GPUSPAWNER_TEST_PULL_AT_START": "1",
        }
        yield running


@pytest.fixture(autouse=True)
def mended(registry: Registry) -> Iterator[None]:
    registry.wire.mend()
    yield
    registry.wire.mend()


async def test_the_hub_pulls_at_its_start_what_is_missing_and_starts_without_the_rest(
    hub: HubProcess, registry: Registry
) -> None:
    async def pulled() -> bool:
        return registry.here(f"{registry.host}/early:1") and "Service images exited" not in hub.log

    await eventually(pulled)

    async def warned() -> bool:
        return f"The image {registry.host}/gone:1 isn't here and could not be pulled. The registry" in hub.log

    await eventually(warned)
    assert f"[I prepull] Pulled image {registry.host}/early:1 in " in hub.log


async def pending(hub: HubProcess, user: str) -> bool:
    model = await hub.server(user)
    return model is not None and model["pending"] == "spawn"


async def test_a_typed_image_is_pulled_with_progress_in_the_hubs_stream(
    hub: HubProcess, registry: Registry
) -> None:
    image = registry.push("labs/progress:2026-1", LAB, 8 * MEGABYTE, 4 * MEGABYTE)
    registry.wire.bytes_per_second = 2 * MEGABYTE
    begun = time.monotonic()
    start = asyncio.create_task(hub.post("pia", {"profile": "gpu", "image": image}))
    await eventually(lambda: pending(hub, "pia"))
    events = await hub.progress("pia")
    assert events[-1].get("ready") is True
    await start
    messages = [str(event["message"]) for event in events]
    pulling = [message for message in messages if message.startswith(f"Pulling image {image}")]
    assert pulling[0] == f"Pulling image {image}"
    assert any(" of 3 layers, " in message and " MB, " in message for message in pulling), messages
    # Docker sends tens a second; told are the first, the last and one each TELL_SECONDS.
    assert len(pulling) <= 2 + (time.monotonic() - begun) / TELL_SECONDS
    assert messages.index("Asking for a GPU") > messages.index(pulling[-1])
    assert hub.inspect("pia")["Config"]["Image"] == image
    await hub.stop_server("pia")


async def test_five_users_share_a_pull_one_leaves_and_it_goes_on(hub: HubProcess, registry: Registry) -> None:
    image = registry.push("labs/shared:2026-1", LAB, 8 * MEGABYTE)
    registry.wire.bytes_per_second = MEGABYTE // 2  # there is no hurry to leave before it is here
    users = [f"user{number}" for number in range(5)]
    starts = [asyncio.create_task(hub.spawn(user, {"profile": "cpu", "image": image})) for user in users]
    await eventually(lambda: pending(hub, users[0]))
    await hub.progress(users[0], until=f"Pulling image {image}: ")
    await hub.call("DELETE", f"/users/{users[0]}/server")
    registry.wire.mend()
    spawned = await asyncio.gather(*starts)
    assert [start.ready for start in spawned] == [False, True, True, True, True]
    assert hub.log.count(f"] Pulling image {image} user=") == 1
    assert (await hub.spawn(users[0], {"profile": "cpu", "image": image})).ready
    for user in users:
        await hub.stop_server(user)


async def test_what_isnt_allowed_is_refused_by_all_ways_with_what_is(
    hub: HubProcess, registry: Registry
) -> None:
    offer = (
        f"Choose {registry.host}/early:1, {registry.host}/gone:1, one like {registry.host}/labs/*:2026-* or "
        "one like gpuspawner-hubtest/*:*."
    )
    image = f"{registry.host}/labs/lab:2025-1"
    status, message = await hub.post("mallory", {"image": image})
    assert (status, message) == (400, f"The image {image!r} isn't allowed here. {offer}")
    status, message = await hub.post("mallory", {"image": f"{registry.host}/labs/lab"})
    assert status == 400
    assert "isn't allowed here: it has neither a tag nor a digest." in message
    async with Browser(hub, "mallory", hub.password) as browser:
        page = await browser.get("/hub/spawn")
        assert 'name="image_typed"' in page
        page = await browser.post_spawn("/hub/spawn", {"profile": "cpu", "image": "", "image_typed": image})
        assert browser.status == 400
        assert "isn&#39;t allowed here." in page
        assert f'value="{image}" autocomplete="off"' in page  # to be corrected
        await browser.get(f"/hub/spawn?opt-profile=cpu&opt-image={image}")
        assert browser.status == 400
    assert hub.containers("mallory") == []


async def test_a_typed_image_of_the_form_is_kept_for_the_next_start(hub: HubProcess) -> None:
    async with Browser(hub, "fay", hub.password) as browser:
        form = {"profile": "cpu", "image": "", "image_typed": f"{LAB}:latest"}
        await browser.post_spawn("/hub/spawn", form)
    await eventually(lambda: ready(hub, "fay"))
    model = await hub.server("fay")
    assert model is not None
    assert model["user_options"] == {"profile": "cpu", "image": f"{LAB}:latest"}
    assert hub.inspect("fay")["Config"]["Image"] == f"docker.io/{LAB}:latest"
    await hub.stop_server("fay")
    async with Browser(hub, "fay", hub.password) as browser:
        assert f'<option value="{LAB}:latest" selected>' in await browser.get("/hub/spawn")
    assert (await hub.spawn("fay")).ready
    assert hub.inspect("fay")["Config"]["Image"] == f"docker.io/{LAB}:latest"
    await hub.stop_server("fay")


async def test_a_stuck_and_a_missing_registry_end_in_a_sentence(hub: HubProcess, registry: Registry) -> None:
    image = registry.push("labs/stuck:2026-1", LAB, 8 * MEGABYTE)
    registry.wire.stuck_after_bytes = MEGABYTE

    async def refusal() -> str:
        spawned = await hub.spawn("sam", {"profile": "cpu", "image": image})
        return (spawned.body or spawned.messages[-1]).removeprefix("Spawn failed: ")

    assert (await refusal()).startswith(
        f"The image {image} isn't here and could not be pulled. No data came for 5 seconds: try again"
    )
    registry.wire.cut()
    said = await refusal()
    assert "The registry doesn't answer: try again in a few minutes, or choose an image that is here." in said
    registry.wire.mend()
    assert (await hub.spawn("sam", {"profile": "cpu", "image": image})).ready
    await hub.stop_server("sam")


# ---- images that are made in another way


def environment(hub: HubProcess, user: str) -> dict[str, str]:
    """What the server of `user` wrote down of itself when it started."""
    made = hub.engine.exec_create(hub.inspect(user)["Id"], ["/bin/busybox", "cat", "/tmp/said"])
    lines = bytes(hub.engine.exec_start(made["Id"])).decode().splitlines()
    return dict(line.partition("=")[::2] for line in lines)


@pytest.mark.parametrize(
    ("image", "command"),
    [("stacks", "start-notebook.sh"), ("ngc", "jupyterhub-singleuser")],
)
async def test_an_image_of_others_starts_with_its_home_and_without_all_gpus(
    hub: HubProcess, image: str, command: str
) -> None:
    name = f"gpuspawner-hubtest/{image}:latest"
    for _ in range(2):  # the second start has a home that is there already
        assert (await hub.spawn(image, {"profile": "cpu", "image": name})).ready
        said = environment(hub, image)
        assert said == {
            "uid": "1000",
            "gid": "100",
            "HOME": "/home/jovyan",
            "pwd": "/home/jovyan",
            "argument0": command,
            "NVIDIA_VISIBLE_DEVICES": "void",
            "wrote": "yes",
        }
        assert hub.inspect(image)["Mounts"][0]["Destination"] == "/home/jovyan"
        await hub.stop_server(image)
    # What it wrote is in the volume: a lab image finds it.
    assert (await hub.spawn(image, {"profile": "cpu"})).ready
    made = hub.engine.exec_create(hub.inspect(image)["Id"], ["/bin/busybox", "cat", "/home/jovyan/wrote"])
    assert bytes(hub.engine.exec_start(made["Id"])) == b"mine\nmine\n"
    await hub.stop_server(image)


@pytest.mark.parametrize("image", ["plain", "shell"])
async def test_an_image_without_a_server_is_told_at_once(hub: HubProcess, image: str) -> None:
    """One that Docker can't start, and one whose own entrypoint ends with 127."""
    name = f"gpuspawner-hubtest/{image}:latest"
    spawned = await asyncio.wait_for(hub.spawn(image, {"profile": "cpu", "image": name}), SOON_SECONDS)
    said = (spawned.body or spawned.messages[-1]).removeprefix("Spawn failed: ")
    assert said.startswith(
        f"The image docker.io/{name} can't start a server here: it can't run jupyterhub-singleuser. Choose"
    )
    assert hub.containers(image) == []


async def test_an_image_that_needs_a_gpu_is_refused_where_there_is_none(hub: HubProcess) -> None:
    name = "gpuspawner-hubtest/needy:latest"
    status, message = await hub.post("ned", {"profile": "cpu", "image": name})
    assert (status, message) == (
        409,
        f"docker.io/{name} needs a GPU: choose a tier with a GPU, or another image.",
    )
    status, message = await hub.post("ned", {"profile": "gpu", "image": name})
    assert (status, message) == (
        409,
        f"docker.io/{name} needs a real GPU, but the GPUs of this machine are simulated: "
        "choose another image.",
    )
    assert (await hub.leases("ned"), hub.containers("ned")) == ([], [])
