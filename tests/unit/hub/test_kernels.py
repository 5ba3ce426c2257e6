"""A server's kernels, asked over real HTTP; what doesn't answer well is no idleness."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.hub import kernels
from gpuspawner.hub.kernels import KernelReporter, read_kernels
from gpuspawner.protocol.rules import KernelsMessage

IDLE = {"execution_state": "idle", "last_activity": "2026-11-26T11:00:00.000000Z"}
BUSY = {"execution_state": "busy", "last_activity": "2026-11-26T10:00:00.000000Z"}


class Lab:
    """A server with these kernels and terminals."""

    def __init__(self) -> None:
        self.kernels: Any = []
        self.terminals: Any = []
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.path_qs} {request.headers['Authorization']}")
        found = self.kernels if request.path.endswith("/kernels") else self.terminals
        return web.Response(status=404) if found is None else web.json_response(found)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    app = web.Application()
    app.router.add_get("/user/ada/api/{what}", lab.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    lab.url = f"http://127.0.0.1:{runner.addresses[0][1]}/user/ada/"
    yield lab
    await runner.cleanup()


async def test_a_busy_kernel_is_busy_and_a_terminal_counts(lab: Lab) -> None:
    lab.kernels = [IDLE, BUSY]
    at = datetime(2026, 11, 26, 11, tzinfo=UTC)
    assert await read_kernels(lab.url, "t0ken") == KernelsMessage(busy=True, active_at=at)
    assert lab.asked == [
        "/user/ada/api/kernels?no_track_activity=1 token t0ken",
        "/user/ada/api/terminals?no_track_activity=1 token t0ken",
    ]
    lab.kernels = [BUSY | {"execution_state": "idle"}]
    lab.terminals = [{"name": "1", "last_activity": "2026-11-26T12:00:00Z"}]
    later = datetime(2026, 11, 26, 12, tzinfo=UTC)
    assert await read_kernels(lab.url, "t") == KernelsMessage(busy=False, active_at=later)
    lab.terminals = None
    assert await read_kernels(lab.url, "t") == KernelsMessage(busy=False, active_at=at.replace(hour=10))


async def test_without_kernels_nothing_is_busy(lab: Lab) -> None:
    assert await read_kernels(lab.url, "t") == KernelsMessage(busy=False, active_at=None)


@pytest.mark.parametrize("kernels", [None, {}, "x"])
async def test_what_is_not_understood_says_nothing(lab: Lab, kernels: Any) -> None:
    lab.kernels = kernels
    assert await read_kernels(lab.url, "t") is None
    assert await read_kernels("http://127.0.0.1:1/", "t") is None


async def test_the_broker_is_told_once_a_minute_and_may_be_away(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Broker:
        async def tell(self, method: str, path: str, body: KernelsMessage) -> None:
            told.append((method, path, body.busy))
            raise BrokerUnavailable("away")

    broker: Any = Broker()
    lab.kernels = [BUSY]
    reporter = KernelReporter()
    for _ in range(2):
        reporter.begin(broker, "a1", lab.url, "t")
        assert reporter._task is not None
        await reporter._task
    assert told == [("POST", "/leases/a1/kernels", True)]
    monkeypatch.setattr(kernels, "TELL_SECONDS", 0.0)
    reporter.begin(broker, "a1", lab.url, "t")
    await reporter._task
    assert len(told) == 2
