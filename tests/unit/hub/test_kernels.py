"""A server's kernels, asked over real HTTP; what doesn't answer well is no idleness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.hub import kernels
from gpuspawner.hub.kernels import KernelReporter, read_kernels, token_of
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
        self.token = ""
        """The only token that it accepts; "" accepts all."""

    async def answer(self, request: web.Request) -> web.Response:
        if self.token and request.headers["Authorization"] != f"token {self.token}":
            return web.Response(status=403)
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
    for none in (None, {"message": "no terminals"}, 0):
        lab.terminals = none
        assert await read_kernels(lab.url, "t") == KernelsMessage(busy=False, active_at=at.replace(hour=10))


async def test_without_kernels_nothing_is_busy(lab: Lab) -> None:
    assert await read_kernels(lab.url, "t") == KernelsMessage(busy=False, active_at=None)


@pytest.mark.parametrize("kernels", [None, {}, "x"])
async def test_what_is_not_understood_says_nothing(lab: Lab, kernels: Any) -> None:
    lab.kernels = kernels
    assert await read_kernels(lab.url, "t") is None
    assert await read_kernels("http://127.0.0.1:1/", "t") is None


class Broker:
    """A broker that answers as `answers` say, the last for ever after."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.told: list[tuple[str, str, bool]] = []

    async def tell(self, method: str, path: str, body: KernelsMessage) -> None:
        self.told.append((method, path, body.busy))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            raise answer


async def polls(reporter: KernelReporter, broker: Any, url: str, times: int) -> None:
    """The hub polls the server so often, each time after the last question was answered."""
    for _ in range(times):
        reporter.begin(broker, "a1", url, "t", lambda: None)
        await asyncio.gather(*[each for each in asyncio.all_tasks() if each.get_name() == "kernels a1"])


async def test_the_broker_is_told_now_and_then(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.kernels = [BUSY]
    reporter, broker = KernelReporter(), Broker(None)
    await polls(reporter, broker, lab.url, 2)
    assert broker.told == [("POST", "/leases/a1/kernels", True)]
    monkeypatch.setattr(kernels, "TELL_SECONDS", 0.0)
    await polls(reporter, broker, lab.url, 1)
    assert broker.told == [("POST", "/leases/a1/kernels", True)] * 2


async def test_after_a_failure_the_next_poll_tries_again(lab: Lab) -> None:
    """As after a restart of hub and broker: the server answers, and the broker is not up yet."""
    lab.kernels = [BUSY]
    reporter, broker = KernelReporter(), Broker(BrokerUnavailable("away"), None)
    await polls(reporter, broker, lab.url, 3)
    assert broker.told == [("POST", "/leases/a1/kernels", True)] * 2
    lab.kernels = None
    reporter, broker = KernelReporter(), Broker(None)
    lab.asked.clear()
    await polls(reporter, broker, lab.url, 2)
    assert (len(lab.asked), broker.told) == (2, [])


async def test_the_servers_token_is_read_from_its_container(lab: Lab) -> None:
    """After a restart the hub doesn't know it, and the server answers nobody without it."""
    lab.kernels, lab.token = [IDLE], "t0ken="
    container = {"Config": {"Env": ["PATH=/bin", "JUPYTERHUB_API_TOKEN=t0ken=", "X"]}}
    at = datetime(2026, 11, 26, 11, tzinfo=UTC)
    found = await read_kernels(lab.url, token_of(container))
    assert found == KernelsMessage(busy=False, active_at=at)
    assert await read_kernels(lab.url, "") is None
    assert [token_of({"Config": {"Env": each}}) for each in (None, [], ["PATH=/bin"])] == [""] * 3


async def test_a_server_that_computes_is_told_to_the_hub_with_and_without_a_lease(lab: Lab) -> None:
    for lease_id, told in (("a1", 1), ("", 0)):
        for kernel, times in ((BUSY, 1), (IDLE, 0)):
            lab.kernels = [kernel]
            active: list[bool] = []
            broker = Broker(None)
            done = await kernels.report(broker, lease_id, lab.url, "t", lambda seen=active: seen.append(True))  # type: ignore
            assert (done, len(active), len(broker.told)) == (True, times, told)
