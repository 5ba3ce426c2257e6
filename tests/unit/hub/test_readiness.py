"""One request to a server that is ready, broken, silent, slow or not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from gpuspawner.hub import readiness
from gpuspawner.hub.readiness import Answer, Pace, Slots, ask

from tests.soon import SOON_SECONDS, until


@asynccontextmanager
async def server(answer: bytes | None) -> AsyncIterator[int]:
    """A server that gives this answer (None: never any); its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "wanted", "found"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None, Answer.READY),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", None, Answer.READY),
        (b"HTTP/1.1 500 Oops\r\n\r\n", None, Answer.SILENT),
        (b"HTTP/1.1 200 OK\r\n\r\n", 200, Answer.READY),
        (b"HTTP/1.1 302 Found\r\n\r\n", 200, Answer.SILENT),
        (b"SSH-2.0-OpenSSH\r\n", None, Answer.SILENT),
        (b"HTTP/1.1 abc\r\n", None, Answer.SILENT),
        (b"", None, Answer.SILENT),
        (b"x" * 100_000, None, Answer.SILENT),
        (None, None, Answer.SILENT),
    ],
)
async def test_an_answer_is_judged_by_its_status(
    answer: bytes | None, wanted: int | None, found: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_ANSWER_SECONDS", 0.1)
    async with server(answer) as port:
        assert await ask("127.0.0.1", port, "/user/ada/api", wanted=wanted) is found


async def test_nobody_listening_is_a_refused_connection() -> None:
    async with server(b"") as port:
        pass
    assert await ask("127.0.0.1", port, "/") is Answer.REFUSED


async def test_no_such_host_is_silence() -> None:
    assert await ask("nobody.invalid", 80, "/") is Answer.SILENT


@pytest.mark.parametrize(("waiting", "seconds"), [(1, 0.025), (4, 0.025), (8, 0.05), (30, 0.1875)])
def test_polls_are_spread_when_many_start_at_once(waiting: int, seconds: float) -> None:
    pace = Pace()
    leave: list[Callable[[], None]] = []
    for _ in range(waiting):
        pace.__enter__()
        leave.append(pace.__exit__)
    assert pace.seconds == pytest.approx(seconds)
    for exit_once in leave:
        exit_once()
    assert pace.seconds == 0.025


async def test_slots_are_given_in_order() -> None:
    slots = Slots(2, longest_seconds=600)
    order: list[str] = []
    ends = {name: asyncio.Event() for name in ("a", "hangs", "b", "c", "leaves")}

    async def start(name: str) -> None:
        async with slots.one():
            order.append(f"{name} in")
            await ends[name].wait()
        order.append(f"{name} out")

    assert not slots.taken
    starts = [asyncio.create_task(start(name)) for name in ("a", "hangs", "b", "c")]
    await until(lambda: order == ["a in", "hangs in"])
    assert slots.taken
    waiting = asyncio.create_task(start("leaves"))
    await asyncio.sleep(0)
    waiting.cancel()
    for name in ("b", "c", "a"):
        ends[name].set()
    await asyncio.gather(starts[0], *starts[2:])
    ends["hangs"].set()
    await asyncio.gather(*starts)
    assert order == ["a in", "hangs in", "a out", "b in", "b out", "c in", "c out", "hangs out"]
    assert not slots.taken


async def test_a_server_that_hangs_doesnt_keep_its_slot() -> None:
    slots = Slots(1, longest_seconds=0.02)
    begun = asyncio.get_running_loop().time()
    async with slots.one(), slots.one():
        assert 0.015 < asyncio.get_running_loop().time() - begun < SOON_SECONDS
    async with slots.one():  # given back once, not twice
        assert slots.taken
