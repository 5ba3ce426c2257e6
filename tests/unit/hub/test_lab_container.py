"""Only a 404 means that a container isn't there; removals of one name wait for each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub import lab_container as engine
from gpuspawner.hub.lab_container import Removals


def calls(*answers: Any) -> tuple[engine.Call, list[str]]:
    """A `call` that gives these answers in turn, and the methods it was asked for."""
    planned, seen = list(answers), []

    async def call(method: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(method)
        answer = planned.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call, seen


async def test_a_container_is_there_gone_or_unknown() -> None:
    call, _ = calls({"Id": "a"}, EngineFault("none", 404), EngineFault("oops", 500), EngineFault("silence"))
    assert await engine.inspect(call, "x") == {"Id": "a"}
    assert await engine.inspect(call, "x") is None
    for _ in range(2):
        with pytest.raises(EngineFault):
            await engine.inspect(call, "x")


async def test_a_removal_ends_when_docker_says_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_PAUSE_SECONDS", 0)
    call, seen = calls(EngineFault("busy", 409), EngineFault("busy", 409), EngineFault("none", 404))
    await engine.remove(call, "x")
    assert seen == ["remove_container"] * 3
    call, _ = calls(None)
    await engine.remove(call, "x")
    call, _ = calls(EngineFault("oops", 500))
    with pytest.raises(EngineFault, match="oops"):
        await engine.remove(call, "x")
    monkeypatch.setattr(engine, "GONE_SECONDS", -1)
    call, _ = calls(EngineFault("busy", 409))
    with pytest.raises(EngineFault, match="busy"):
        await engine.remove(call, "x")


async def test_stopping_what_is_gone_is_no_error() -> None:
    call, _ = calls(EngineFault("none", 404), EngineFault("oops", 500))
    await engine.stop(call, "x", 1)
    with pytest.raises(EngineFault, match="oops"):
        await engine.stop(call, "x", 1)


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
async def test_last_words(raw: Any, tail: str) -> None:
    call, _ = calls(raw)
    assert await engine.log_tail(call, "x", "tok") == tail


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"ExitCode": 3}, "exit code 3"),
        ({"ExitCode": 127, "Error": "no such file"}, "exit code 127, no such file"),
        ({"ExitCode": 137, "OOMKilled": True}, "it ran out of memory"),
    ],
)
def test_how_it_ended(state: dict[str, Any], words: str) -> None:
    assert engine.exit_status({"State": state}) == words


async def test_removals_of_one_name_follow_each_other_and_are_waited_for() -> None:
    removals, order = Removals(), []

    async def work(name: str) -> None:
        order.append(f"{name} begins")
        await asyncio.sleep(0.01)
        order.append(f"{name} ends")

    removals.begin("lab", work("first"))
    removals.begin("lab", work("second"))
    assert (removals.pending("lab"), removals.pending("other")) == (True, False)
    waiter = asyncio.create_task(removals.wait("lab"))
    await asyncio.sleep(0)
    waiter.cancel()  # whoever waits may leave; the removal goes on
    await removals.wait("lab")
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    assert not removals.pending("lab")


async def test_a_removal_that_fails_doesnt_block_the_name() -> None:
    removals = Removals()

    async def work() -> None:
        raise RuntimeError("broken")

    removals.begin("lab", work())
    (task,) = removals._tasks.values()
    await removals.wait("lab")
    assert not removals.pending("lab")
    assert str(task.exception()) == "broken"
