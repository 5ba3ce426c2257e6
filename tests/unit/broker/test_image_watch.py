"""Images and their pulls as the broker knows them: looked for, told by the hub, forgotten in silence."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from gpuspawner.broker.api.pulls import pull_routes
from gpuspawner.broker.api.socket import Site, bind_socket, make_app
from gpuspawner.broker.observe.failures import LoopFailures
from gpuspawner.broker.observe.images import PULL_SECONDS, ImageWatch
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.errors import BadOption, EngineFault
from gpuspawner.hub.pull_report import PullReport
from gpuspawner.hub.pulls import Cancel, Pulls
from gpuspawner.protocol.client import BrokerClient
from gpuspawner.protocol.pulls import ImageDocument, PullMessage, PullsMessage
from tornado.httpserver import HTTPServer

from tests.soon import SOON_SECONDS

LOG = logging.getLogger("test")
FAILURES = LoopFailures("images", Metrics(), LOG)


def pull(image: str, percent: int | None = None) -> PullMessage:
    return PullMessage(image=image, message=f"Pulling image {image}", percent=percent, waiting=1)


def shown(
    image: str, size: int | None = None, pulled: PullMessage | None = None, looked: bool = True
) -> object:
    here = size is not None if looked else None
    return ImageDocument(image=image, here=here, size_bytes=size, pull=pulled)


class Docker:
    """The images that are here, by size."""

    def __init__(self, **sizes: int) -> None:
        self.sizes, self.down = sizes, False

    async def size(self, reference: str) -> int | None:
        if self.down:
            raise EngineFault("no answer")
        return self.sizes.get(reference)


async def test_images_are_looked_for_and_pulls_are_told() -> None:
    now, docker = 0.0, Docker(a=5)
    watch = ImageWatch(["a", "b", "a"], docker.size, FAILURES, lambda: now)
    assert watch.now() == (shown("a", looked=False), shown("b", looked=False))
    await watch.round()
    watch.tell(PullsMessage(source="hub", pulls=(pull("b", 7), pull("z"))))
    assert watch.now() == (shown("a", 5), shown("b", None, pull("b", 7)), shown("z", None, pull("z"), False))
    docker.down = True
    await watch.round()  # what was seen stays
    watch.tell(PullsMessage(source="prepull", pulls=(pull("y"),)))
    watch.tell(PullsMessage(source="hub", pulls=()))
    assert watch.now() == (shown("a", 5), shown("b"), shown("y", None, pull("y"), False))
    now = PULL_SECONDS
    assert watch.now() == (shown("a", 5), shown("b"))


async def test_an_image_is_looked_for_right_after_its_pull() -> None:
    docker = Docker()
    watch = ImageWatch(["a"], docker.size, FAILURES)
    looking = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    watch.tell(PullsMessage(source="hub", pulls=(pull("a", 50),)))
    docker.sizes["a"] = 9
    watch.tell(PullsMessage(source="hub", pulls=()))
    async with asyncio.timeout(SOON_SECONDS):
        while watch.now() != (shown("a", 9),):
            await asyncio.sleep(0.01)
    looking.cancel()


async def test_a_failure_is_counted_each_time_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpuspawner.broker.observe.images.ROUND_SECONDS", 0.0)
    metrics, answers = (
        Metrics(),
        [RuntimeError("broken"), RuntimeError("broken"), None, RuntimeError("broken")],
    )

    async def size(reference: str) -> int | None:
        answer = answers.pop(0) if answers else None
        if answer is not None:
            raise answer
        return 7

    watch = ImageWatch(["a"], size, LoopFailures("images", metrics, LOG))
    looking = asyncio.create_task(watch.run())
    async with asyncio.timeout(SOON_SECONDS):
        while answers:
            await asyncio.sleep(0)
    looking.cancel()
    sentence = "Which images are on this machine isn't known; trying again: broken"
    assert [record.message for record in caplog.records] == [sentence, sentence]
    assert metrics.registry.get_sample_value("gpuspawner_loop_errors_total", {"loop": "images"}) == 3
    assert watch.now() == (shown("a", 7),)


async def test_a_hub_s_pull_reaches_the_broker_and_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a real socket, with the hub's own pulls: how far it is, and that it is over."""
    monkeypatch.setattr("gpuspawner.hub.pull_report.TELL_SECONDS", 0.02)
    told: list[PullsMessage] = []
    nothing: object = None
    site = Site(nothing, nothing, Metrics(), 60.0, LOG)  # type: ignore[arg-type]
    server = HTTPServer(make_app(site, pull_routes(site, told.append)))
    path = str(tmp_path / "b.sock")
    server.add_socket(bind_socket(path))
    client = BrokerClient(path)
    pulls, go_on = Pulls(LOG), asyncio.Event()
    PullReport(client, pulls)
    loop = asyncio.get_running_loop()

    def work(feed: object, cancel: Cancel) -> None:
        sizes = {"current": 25, "total": 100}
        feed({"id": "layer", "status": "Downloading", "progressDetail": sizes})  # type: ignore[operator]
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(SOON_SECONDS)

    waiting = asyncio.create_task(pulls.pull("lab:1", "ada", work, lambda news: None))
    async with asyncio.timeout(SOON_SECONDS):
        while not any(each.percent == 25 for message in told for each in message.pulls):
            await asyncio.sleep(0.01)
        go_on.set()
        await waiting
        while told[-1].pulls:
            await asyncio.sleep(0.01)
    (last,) = next(message.pulls for message in reversed(told) if message.pulls)
    assert (last.image, last.percent, last.waiting) == ("lab:1", 25, 1)
    assert "25 %" in last.message
    assert len({message.source for message in told}) == 1
    with pytest.raises(BadOption, match="The request lacks 'source'"):
        await client.tell("POST", "/pulls", pull("x"))
    await client.close()
    server.stop()
    await server.close_all_connections()
