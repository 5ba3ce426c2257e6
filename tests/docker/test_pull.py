"""Pulls from a real registry by the real engine: each policy, each way to fail, one pull for many."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from gpuspawner.core.errors import StartFault
from gpuspawner.hub.spawner import GpuDockerSpawner
from gpuspawner.tools.prepull import prepull, wanted
from traitlets.config import Config

from tests.registry import Registry, running_registry
from tests.soon import SOON_SECONDS, until, wait_until

pytestmark = pytest.mark.docker

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def registry(engine: docker.APIClient) -> Iterator[Registry]:
    with running_registry(engine) as running:
        yield running


@pytest.fixture
def lab(registry: Registry, tiny_image: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """An image of three layers, in the registry and not here."""
    registry.wire.mend()
    yield registry.push(f"labs/{abs(hash(request.node.name))}:2026-1", tiny_image, 6 * MEGABYTE, 3 * MEGABYTE)
    registry.wire.mend()
    registry.forget()


def spawner(policy: str = "ifnotpresent", **settings: Any) -> GpuDockerSpawner:
    config = Config()
    config.GpuDockerSpawner.update(pull_policy=policy, **settings)
    return GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))


async def test_a_pull_is_told_of_at_a_civil_rate(registry: Registry, lab: str) -> None:
    registry.wire.bytes_per_second = 2 * MEGABYTE
    told: list[tuple[float, str]] = []
    document = await spawner().pull_image(lab, lambda news: told.append((time.monotonic(), news)))
    assert document["RepoTags"] == [lab]
    lines = [news for _, news in told]
    assert lines[0] == f"Pulling image {lab}"
    assert any(
        line.startswith(f"Pulling image {lab}: ") and " of 3 layers, " in line and line.endswith(" %")
        for line in lines
    ), lines
    assert len(lines) <= 2 + (told[-1][0] - told[0][0]) / 2


@pytest.mark.parametrize(
    ("policy", "pulled", "reason"),
    [
        ("ifnotpresent", True, ""),
        ("always", True, ""),
        ("never", False, "image_missing"),
        ("skip", False, ""),
    ],
)
async def test_an_image_that_isnt_here(
    registry: Registry, lab: str, policy: str, pulled: bool, reason: str
) -> None:
    if reason:
        with pytest.raises(StartFault) as fault:
            await spawner(policy).pull_image(lab)
        assert fault.value.reason == reason
        assert str(fault.value).startswith(
            f"The image {lab} isn't on this machine, and this hub doesn't pull images."
        )
    else:
        assert ((await spawner(policy).pull_image(lab)) != {}) == pulled
    assert registry.here(lab) == pulled


@pytest.mark.parametrize("policy", ["ifnotpresent", "always", "never", "skip"])
async def test_a_newer_image_of_the_same_name(
    registry: Registry, lab: str, tiny_image: str, engine: docker.APIClient, policy: str
) -> None:
    await spawner().pull_image(lab)
    old = engine.inspect_image(lab)["Id"]
    engine.tag(lab, f"{registry.host}/kept", "1")
    registry.push(lab.partition("/")[2], tiny_image, MEGABYTE)
    engine.tag(old, *lab.rsplit(":", 1))
    started = spawner(policy)
    started.shared.pulls.forget_pulled()
    new = (await started.pull_image(lab))["Id"]
    assert (new != old) == (policy == "always")


async def test_always_doesnt_pull_again_for_each_of_a_class(registry: Registry, lab: str) -> None:
    started = spawner("always")
    begun: list[str] = []
    pulls = started.shared.pulls
    pull = pulls.pull

    async def counted(image: str, *rest: Any) -> None:
        begun.append(image)
        await pull(image, *rest)

    pulls.pull = counted  # type: ignore[method-assign]
    documents = await asyncio.gather(*(started.pull_image(lab) for _ in range(30)))
    assert len({document["Id"] for document in documents}) == 1
    before = len(begun)
    registry.wire.cut()  # within a minute nobody asks the registry again
    await asyncio.gather(*(started.pull_image(lab) for _ in range(30)))
    assert len(begun) == before
    started.shared.pulls.forget_pulled()
    with pytest.raises(StartFault) as fault:
        await started.pull_image(lab)
    assert str(fault.value).endswith(
        " An older one is here. Admin: pull_policy = 'ifnotpresent' starts that."
    )


async def test_what_the_registry_doesnt_have(registry: Registry, lab: str) -> None:
    for missing in (lab.replace(":2026-1", ":2026-9"), f"{registry.host}/nothing/here:2026-1"):
        with pytest.raises(StartFault) as fault:
            await spawner().pull_image(missing)
        assert str(fault.value) == (
            f"The image {missing} isn't here and could not be pulled. The registry doesn't have it: check "
            "the name and the tag."
        )


async def test_by_digest(registry: Registry, lab: str, engine: docker.APIClient) -> None:
    await spawner().pull_image(lab)
    (by_digest,) = engine.inspect_image(lab)["RepoDigests"]
    registry.forget()
    assert not registry.here(by_digest)
    assert (await spawner().pull_image(by_digest))["RepoDigests"] == [by_digest]


async def test_a_registry_that_is_down(registry: Registry, lab: str) -> None:
    registry.wire.cut()
    with pytest.raises(StartFault) as fault:
        await spawner().pull_image(lab)
    assert fault.value.reason == "registry_silent"
    registry.wire.mend()
    await spawner().pull_image(lab)


async def test_a_registry_that_is_cut_off_in_mid_blob(registry: Registry, lab: str) -> None:
    """The engine tries again by itself, five times with a growing pause; here it succeeds at the second."""
    registry.wire.bytes_per_second = 2 * MEGABYTE
    pull = asyncio.create_task(spawner().pull_image(lab))
    await asyncio.sleep(1.5)
    registry.wire.cut()
    await asyncio.sleep(0.5)
    registry.wire.mend()
    assert (await pull)["RepoTags"] == [lab]


async def test_a_pull_that_is_stuck_ends_in_time_and_the_next_works(registry: Registry, lab: str) -> None:
    registry.wire.stuck_after_bytes = 2 * MEGABYTE
    with pytest.raises(StartFault) as fault:
        async with asyncio.timeout(2 * SOON_SECONDS):
            await spawner(pull_silence=3).pull_image(lab)
    assert fault.value.reason == "pull_stalled"
    assert "No data came for 3 seconds: try again; the layers that have arrived are kept." in str(fault.value)
    registry.wire.mend()
    assert (await asyncio.wait_for(spawner().pull_image(lab), 2 * SOON_SECONDS))["RepoTags"] == [lab]


async def test_a_cancelled_pull_goes_on_and_is_joined(
    registry: Registry, lab: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    registry.wire.bytes_per_second = 3 * MEGABYTE
    first = asyncio.create_task(spawner().pull_image(lab))
    await asyncio.sleep(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await spawner().pull_image(lab)
    said = [record.getMessage() for record in caplog.records]
    assert said.count(f"Pulling image {lab} user=nobody") == 1
    assert registry.here(lab)


async def test_a_pull_that_nobody_waits_for_is_given_up_and_docker_stops(
    registry: Registry, lab: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    registry.wire.bytes_per_second = MEGABYTE // 2  # it trickles: silence alone would not end it
    before = registry.wire.sent_bytes
    left = asyncio.create_task(spawner(pull_unattended=0.5).pull_image(lab))
    await until(lambda: registry.wire.sent_bytes > before)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    given_up = f"Cancelled the pull of image {lab}: nobody waits for it user=nobody"
    await until(lambda: given_up in caplog.messages)
    await asyncio.sleep(1.5)
    before = registry.wire.sent_bytes
    await asyncio.sleep(1.5)
    assert registry.wire.sent_bytes == before
    assert not registry.here(lab)
    registry.wire.mend()
    assert (await spawner().pull_image(lab))["RepoTags"] == [lab]


async def test_what_is_missing_is_pulled_beforehand(registry: Registry, lab: str, tiny_image: str) -> None:
    other = registry.push("labs/other:1", tiny_image, MEGABYTE)
    config = Config()
    config.GpuSite.tiers = [{"name": "cpu"}, {"name": "gpu", "devices": 1, "image": other}]
    config.GpuDockerSpawner.image = lab
    config.GpuDockerSpawner.allowed_images = {
        "lab": lab, "no": f"{registry.host}/labs/no:1", "all": f"{registry.host}/labs/*:*",
    }  # fmt: skip
    started = GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))
    assert wanted(started) == (lab, other, f"{registry.host}/labs/no:1")
    assert not await prepull(started)  # one isn't to be had
    assert (registry.here(lab), registry.here(other)) == (True, True)
    for settings in ({"pull_at_start": False}, {"pull_policy": "never"}, {"pull_policy": "skip"}):
        config.GpuDockerSpawner.update(pull_at_start=True, pull_policy="always")
        config.GpuDockerSpawner.update(settings)
        assert wanted(GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))) == ()


_PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_hubs_service_stays_and_ends_with_the_hub(tmp_path: Path, end: signal.Signals) -> None:
    """The hub starts a service anew that ends; one that outlived a killed hub would be left for ever."""
    config = tmp_path / "config.py"
    config.write_text("c.GpuDockerSpawner.pull_policy = 'never'\n")
    service = [sys.executable, "-m", "gpuspawner.tools.prepull", "--config", str(config), "--stay"]
    hub = subprocess.Popen(
        [sys.executable, "-c", _PARENT, *service],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert hub.stdout is not None
    with hub, hub.stdout:
        command = Path("/proc") / hub.stdout.readline().strip() / "cmdline"
        wait_until(lambda: command.read_bytes().startswith(b"sleep\0infinity"))
        hub.send_signal(end)
    wait_until(lambda: not command.exists() or not command.read_bytes())


async def test_what_is_still_to_pull_is_known_from_the_registry(registry: Registry, lab: str) -> None:
    sizes = spawner().shared.sizes
    assert sizes.look(lab) is None
    found = await until(lambda: sizes.look(lab))
    # The two layers on top: the one below them is here, in the image that they were put on.
    assert 9 * MEGABYTE <= found < 9.2 * MEGABYTE
