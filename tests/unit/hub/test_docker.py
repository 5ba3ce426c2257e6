"""The hub's access to Docker: only a 404 means "gone", errors are EngineFault, and the sockets are few."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub import docker as module

from tests.unit.fake_docker import ScriptedDocker


async def test_a_container_is_there_gone_or_unknown() -> None:
    answers = [{"Id": "a"}, EngineFault("none", 404), EngineFault("oops", 500), EngineFault("silence")]
    docker = ScriptedDocker({"inspect_container": answers})
    assert await docker.find_container("x") == {"Id": "a"}
    assert await docker.find_container("x") is None
    for _ in range(2):
        with pytest.raises(EngineFault):
            await docker.find_container("x")


async def test_a_removal_ends_when_docker_says_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    busy = EngineFault("busy", 409)
    docker = ScriptedDocker({"remove_container": [busy, busy, EngineFault("none", 404)]})
    await docker.remove_container("x")
    assert docker.calls == ["remove_container"] * 3
    await ScriptedDocker({"remove_container": [None]}).remove_container("x")
    with pytest.raises(EngineFault, match="oops"):
        await ScriptedDocker({"remove_container": [EngineFault("oops", 500)]}).remove_container("x")
    monkeypatch.setattr(module, "GONE_SECONDS", -1)
    with pytest.raises(EngineFault, match="busy"):
        await ScriptedDocker({"remove_container": [busy]}).remove_container("x")


async def test_stopping_what_is_gone_is_no_error() -> None:
    docker = ScriptedDocker({"stop": [EngineFault("none", 404), EngineFault("oops", 500)]})
    await docker.stop_container("x", 1)
    with pytest.raises(EngineFault, match="oops"):
        await docker.stop_container("x", 1)


@pytest.mark.parametrize(
    ("raw", "tail"),
    [
        (b"one\n\n  two tok \n", "one / two ***"),
        (b"\xff" * 2, "��"),
        (b"y" * 1000, "y" * 600),
        (b"", ""),
        (EngineFault("gone", 404), ""),
    ],
)
async def test_the_last_log_lines(raw: Any, tail: str) -> None:
    assert await ScriptedDocker({"logs": [raw]}).log_tail("x", "tok") == tail
