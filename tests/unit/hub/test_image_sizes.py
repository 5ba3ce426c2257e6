"""How much must still be pulled: arithmetic, and the conversation with a registry that wants a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from gpuspawner.hub import image_sizes as module
from gpuspawner.hub.image_sizes import ImageSizes, bytes_to_pull

from tests.unit.fake_docker import ScriptedDocker

MANIFEST = {
    "config": {"digest": "sha256:c"},
    "layers": [{"size": 100}, {"size": 20}, {"size": 3_000_000_000}],
}
CONFIG = {"rootfs": {"diff_ids": ["a", "b", "c"]}}


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ([], 3_000_000_120),
        ([["a", "b"], ["a"]], 3_000_000_000),
        ([["b", "a"], ["x", "b", "c"]], 3_000_000_120),  # not the same beginning: nothing is shared
        ([["a", "b", "c", "d"]], 0),
    ],
)
def test_only_layers_above_a_common_beginning_are_pulled(here: list[list[str]], expected: int) -> None:
    assert bytes_to_pull(MANIFEST, CONFIG, here) == expected


class FakeRegistry:
    """A registry as Docker's: a token for everybody, a list of platforms, a manifest, a config."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.host = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        if request.path == "/token":
            return web.json_response({"token": "t"})
        if request.headers.get("Authorization") != "Bearer t":
            challenge = f'Bearer realm="http://{self.host}/token",service="reg",scope="repository:lab:pull"'
            return web.json_response({}, status=401, headers={"WWW-Authenticate": challenge})
        documents: dict[str, Any] = {
            "/v2/lab/manifests/1": {
                "manifests": [
                    {"digest": "sha256:other", "platform": {"os": "linux", "architecture": "s390x"}},
                    {"digest": "sha256:m", "platform": {"os": "linux", "architecture": "amd64"}},
                ]
            },
            "/v2/lab/manifests/sha256:m": MANIFEST,
            "/v2/lab/blobs/sha256:c": CONFIG,
        }
        if request.path not in documents:
            return web.json_response({}, status=404)
        return web.json_response(documents[request.path])


@pytest.fixture
async def registry(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeRegistry]:
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    found = FakeRegistry()
    app = web.Application()
    app.router.add_get("/{path:.*}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.host = f"127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


async def settle() -> None:
    await asyncio.gather(*(each for each in asyncio.all_tasks() if each.get_name().startswith("size of ")))


async def test_the_first_look_asks_and_later_ones_know(registry: FakeRegistry) -> None:
    docker: Any = ScriptedDocker(
        {"images": [[{"Id": "i"}]], "inspect_image": [{"RootFS": {"Layers": ["a", "b"]}}]}
    )
    sizes, image = ImageSizes(docker), f"{registry.host}/lab:1"
    listed, inspected = {"Lab": image, "Here": "here:1", "Unknown": "unknown:1"}, {image: None, "here:1": {}}
    assert sizes.notes(listed, inspected) == {"Lab": "pulled first"}
    await settle()
    assert sizes.notes(listed, inspected) == {"Lab": "3.0 GB pulled first"}
    assert registry.asked == [
        "/v2/lab/manifests/1",
        "/token?service=reg&scope=repository:lab:pull",
        "/v2/lab/manifests/1",
        "/v2/lab/manifests/sha256:m",
        "/v2/lab/blobs/sha256:c",
    ]


@pytest.mark.parametrize("name", ["lab:2", "other:1"])
async def test_a_registry_without_the_image_is_asked_once_and_nothing_is_said(
    registry: FakeRegistry, name: str
) -> None:
    docker: Any = ScriptedDocker({"images": [[]]})
    sizes, image = ImageSizes(docker), f"{registry.host}/{name}"
    for _ in range(3):
        assert sizes.look(image) is None
        await settle()
    assert len(registry.asked) == 3  # without a token, the token, with it


async def test_a_registry_that_isnt_there_breaks_nothing() -> None:
    docker: Any = ScriptedDocker({"images": [[]]})
    sizes = ImageSizes(docker)
    assert sizes.look("127.0.0.1:1/lab:1") is None
    await settle()
    assert sizes.look("127.0.0.1:1/lab:1") is None


def test_small_images_are_told_in_megabytes() -> None:
    assert [module._note(size) for size in (None, 0, 4_400_000, 999_000_000, 1_250_000_000)] == [
        "pulled first", "1 MB pulled first", "4 MB pulled first", "999 MB pulled first",
        "1.2 GB pulled first",
    ]  # fmt: skip
