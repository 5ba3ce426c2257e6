"""Homes of a Docker Engine: what is created, labelled, removed; a tar that is read and written in parts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError, EngineFault
from gpuspawner.node import docker_homes
from gpuspawner.node.docker_homes import DockerHomes
from gpuspawner.node.homes import CHUNK_BYTES, HomeFacts, Skimmed

HOME, OWNER = "gpuspawner-home-ada", "/var/lib/gpuspawner"
FACTS = HomeFacts("local", {"o": "size=9g"}, {"a": "b"})
DATA = bytes(range(256)) * (CHUNK_BYTES // 100)
GONE = EngineFault("no such thing", 404)


class Docker:
    """An engine with volumes and containers; a volume's content is a tar as it came."""

    def __init__(self) -> None:
        self.volumes: dict[str, dict[str, Any]] = {}
        self.content: dict[str, bytes] = {}
        self.boxes: dict[str, dict[str, Any]] = {}
        self.images: list[str] = []
        self.full_at_bytes = 1 << 40
        self.reading: set[str] = set()
        """The containers whose archive is being read; the engine lets go of none of them before its end."""

    async def run(self, seconds: int, what: str, work: Callable[[Any], Any], pool: Any) -> Any:
        return await asyncio.to_thread(work, self.call)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, f"do_{method}")(*args, **kwargs)

    def do_inspect_volume(self, name: str) -> dict[str, Any]:
        if name not in self.volumes:
            raise GONE
        return self.volumes[name]

    def do_create_volume(
        self, name: str, driver: str = "local", driver_opts: Any = None, labels: Any = None
    ) -> None:
        self.volumes[name] = {"Name": name, "Driver": driver, "Options": driver_opts, "Labels": labels}
        self.content[name] = b""

    def do_remove_volume(self, name: str) -> None:
        if any(name in each["Mounts"] for each in self.boxes.values()):
            raise EngineFault("volume is in use", 409)
        if self.volumes.pop(name, None) is None:
            raise GONE
        del self.content[name]

    def do_volumes(self, filters: dict[str, list[str]]) -> dict[str, Any]:
        return {"Volumes": [each for each in self.volumes.values() if _has(each, filters["label"])] or None}

    def do_containers(self, all: bool, filters: dict[str, Any]) -> list[dict[str, Any]]:
        if "volume" in filters:
            return [each for each in self.boxes.values() if filters["volume"] in each["Mounts"]]
        wanted = filters["label"] if isinstance(filters["label"], list) else [filters["label"]]
        return [each for each in self.boxes.values() if _has(each, wanted)]

    def do_inspect_image(self, name: str) -> dict[str, Any]:
        if name not in self.images:
            raise GONE
        return {}

    def do_import_image_from_data(self, data: bytes, repository: str, tag: str) -> None:
        assert len(data) % 512 == 0  # a tar
        self.images.append(f"{repository}:{tag}")

    def do_create_host_config(self, binds: dict[str, Any], network_mode: str) -> dict[str, Any]:
        assert network_mode == "none"
        return binds

    def do_create_container(self, image: str, command: Any, host_config: Any, labels: Any) -> dict[str, Any]:
        assert image in self.images
        box = {"Id": f"box-{len(self.boxes)}", "Names": None, "Labels": labels, "Mounts": list(host_config)}
        self.boxes[str(box["Id"])] = box
        return box

    def do_remove_container(self, box: str, force: bool = False) -> None:
        if box in self.reading:
            raise EngineFault("Docker did not remove the container: Read timed out.")
        if self.boxes.pop(box, None) is None:
            raise GONE

    def do_get_archive(self, box: str, path: str, chunk_size: int) -> tuple[Iterator[bytes], dict[str, Any]]:
        assert path == "/gpuspawner/home"
        data = self.content[self.boxes[box]["Mounts"][0]]

        def stream() -> Iterator[bytes]:
            self.reading.add(box)
            try:
                for at in range(0, len(data), 700):
                    yield data[at : at + 700]
            finally:
                self.reading.discard(box)

        return stream(), {}

    def do_put_archive(self, box: str, path: str, parts: Iterator[bytes]) -> None:
        assert path == "/gpuspawner"
        volume = self.boxes[box]["Mounts"][0]
        for part in parts:
            self.content[volume] += part
            if len(self.content[volume]) > self.full_at_bytes:
                raise EngineFault("Docker did not write a home: no space left on device", 500)


def _has(item: dict[str, Any], wanted: list[str]) -> bool:
    labels = item["Labels"] or {}
    return all(labels.get(key) in (value or labels.get(key), ) and key in labels
               for key, _, value in (each.partition("=") for each in wanted))  # fmt: skip


@pytest.fixture
def docker() -> Docker:
    found = Docker()
    found.do_create_volume(HOME, "local", {"o": "size=9g"}, {"a": "b"})
    found.content[HOME] = DATA
    return found


@pytest.fixture
def homes(docker: Docker) -> Iterator[DockerHomes]:
    engine: Any = docker
    found = DockerHomes(engine, OWNER)
    yield found
    found.close()


async def test_a_home_is_described_with_who_has_it(docker: Docker, homes: DockerHomes) -> None:
    assert await homes.describe(HOME) == FACTS
    assert await homes.describe("another") is None
    docker.boxes["x"] = {"Id": "x", "Names": ["/lab-ada"], "Labels": None, "Mounts": [HOME]}
    await homes.begin_read(HOME)  # its own container is nobody's
    assert await homes.describe(HOME) == HomeFacts("local", {"o": "size=9g"}, {"a": "b"}, ("lab-ada",))


async def test_a_home_is_read_in_chunks_and_skimmed(docker: Docker, homes: DockerHomes) -> None:
    copy = await homes.begin_read(HOME)
    parts = []
    while part := await homes.read(copy):
        parts.append(part)
    assert b"".join(parts) == DATA
    assert [len(each) for each in parts[:-1]] == [CHUNK_BYTES] * (len(parts) - 1)
    await homes.end(copy)
    await homes.end(copy)
    assert docker.boxes == {}
    with pytest.raises(EngineFault, match="the copy of the home has ended"):
        await homes.read(copy)
    copy = await homes.begin_read(HOME)
    assert await homes.skim(copy) == Skimmed(len(DATA), hashlib.sha256(DATA).hexdigest())
    await homes.end_all()
    assert docker.boxes == {}


async def test_a_read_that_ends_early_lets_its_container_go(docker: Docker, homes: DockerHomes) -> None:
    copy = await homes.begin_read(HOME)
    await homes.read(copy)
    assert docker.reading
    await homes.end(copy)
    assert (docker.reading, docker.boxes) == (set(), {})


async def test_a_large_home_is_skimmed_in_several_calls(
    homes: DockerHomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_homes, "PASS_SECONDS", -1.0)  # each call reads one chunk
    copy = await homes.begin_read(HOME)
    seen = [await homes.skim(copy)]
    while not seen[-1].digest:
        seen.append(await homes.skim(copy))
    assert seen[0] == Skimmed(CHUNK_BYTES)
    assert seen[-1] == Skimmed(len(DATA), hashlib.sha256(DATA).hexdigest())
    await homes.end(copy)


async def test_a_home_is_written_and_marked_until_it_is_kept(docker: Docker, homes: DockerHomes) -> None:
    with pytest.raises(ConfigError, match="There is a volume gpuspawner-home-ada already"):
        await homes.prepare(HOME, FACTS)
    await homes.prepare("new", FACTS)
    assert await homes.describe("new") == HomeFacts("local", {"o": "size=9g"}, {"a": "b"}, unfinished=True)
    assert await homes.unfinished() == ("new",)
    copy = await homes.begin_write("new")
    for at in range(0, len(DATA), CHUNK_BYTES):
        await homes.write(copy, DATA[at : at + CHUNK_BYTES])
    while not await homes.finish(copy):
        continue
    await homes.end(copy)
    assert docker.content["new"] == DATA
    await homes.keep("new")
    await homes.keep("new")
    assert await homes.unfinished() == ()
    assert await homes.describe("new") == FACTS
    await homes.drop("new")  # not unfinished any more
    assert docker.content["new"] == DATA
    with pytest.raises(EngineFault, match="isn't an unfinished one"):
        await homes.begin_write("new")


async def test_a_write_that_ends_early_leaves_nothing_that_drop_does_not_remove(
    docker: Docker, homes: DockerHomes
) -> None:
    await homes.prepare("new", FACTS)
    copy = await homes.begin_write("new")
    await homes.write(copy, DATA[:CHUNK_BYTES])
    await homes.end(copy)
    assert docker.boxes == {}
    await homes.prepare("new", FACTS)  # begun again: what was there is gone
    assert docker.content["new"] == b""
    await homes.begin_write("new")
    await homes.drop("new")  # also what a killed process has left open
    assert (list(docker.volumes), docker.boxes) == ([HOME], {})
    await homes.end_all()


async def test_docker_refuses_in_mid_copy(docker: Docker, homes: DockerHomes) -> None:
    docker.full_at_bytes = 10
    await homes.prepare("new", FACTS)
    copy = await homes.begin_write("new")

    async def write_all() -> None:
        for _ in range(20):
            await homes.write(copy, DATA[:CHUNK_BYTES])

    with pytest.raises(EngineFault, match="no space left on device"):
        await write_all()
    with pytest.raises(EngineFault, match="no space left on device"):
        await homes.finish(copy)
    await homes.end(copy)
    await homes.drop("new")
    assert list(docker.volumes) == [HOME]


async def test_another_one_s_copies_are_left_alone(docker: Docker, homes: DockerHomes) -> None:
    engine: Any = docker
    other = DockerHomes(engine, "/other")
    try:
        await other.prepare("theirs", FACTS)
        copy = await other.begin_write("theirs")
        assert await homes.unfinished() == ()
        assert len(docker.boxes) == 1
        killed = DockerHomes(engine, OWNER)
        await killed.begin_read(HOME)
        killed.close()
        assert await homes.unfinished() == ()  # and the container of the killed one is removed
        assert [each["Mounts"] for each in docker.boxes.values()] == [["theirs"]]
        await other.end(copy)
        assert await other.unfinished() == ("theirs",)
    finally:
        other.close()
