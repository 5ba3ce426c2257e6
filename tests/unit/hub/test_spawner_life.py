"""Start, poll and stop, against a Docker that says what the test wants; no hub, no engine."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from gpuspawner.core.errors import (
    EngineFault,
)
from gpuspawner.hub import lab, launch
from gpuspawner.hub import spawner as module
from gpuspawner.hub.spawner import GpuDockerSpawner
from jupyterhub import orm
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import utcnow

from tests.soon import SOON_SECONDS
from tests.unit.fake_spawner import LABELS, make_container, make_spawner


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(launch, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.001)


# ---- poll


async def test_a_server_that_was_never_started_isnt_running() -> None:
    spawner = make_spawner()
    assert await spawner.poll() == 0
    assert spawner.shared.docker.calls == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (make_container(), None),
        (make_container(running=False), "exit code 137"),
        (make_container(State={"Running": False, "OOMKilled": True}), "it ran out of memory"),
        (EngineFault("no such container", 404), 0),
        (EngineFault("node is unhealthy", 500), None),
        (EngineFault("no answer"), None),
        (make_container(Config={"Labels": {}}), 0),
    ],
)
async def test_only_docker_can_say_that_a_server_ended(answer: Any, status: Any) -> None:
    spawner = make_spawner(inspect_container=[answer])
    spawner.load_state({"object_id": "c1", "object_name": "gpuspawner-ada", "lease_id": "a1"})
    assert await spawner.poll() == status
    assert bool(spawner.object_id) == (status != 0)


async def test_a_doubt_is_logged_once_until_docker_is_back(caplog: pytest.LogCaptureFixture) -> None:
    fault = EngineFault("no answer")
    spawner = make_spawner(inspect_container=[fault, fault, make_container(), fault, fault])
    spawner.log = logging.getLogger("test")
    spawner.load_state({"object_id": "c1"})
    for _ in range(4):
        assert await spawner.poll() is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


async def test_at_the_hubs_start_a_silent_docker_is_asked_until_it_answers() -> None:
    fault = EngineFault("no answer")
    spawner = make_spawner(inspect_container=[fault, fault, fault, EngineFault("gone", 404)])
    spawner._check_pending = True
    assert await spawner.poll() == 0
    assert len(spawner.shared.docker.calls) == 4


async def test_at_the_hubs_start_a_server_that_answers_runs_whatever_docker_says() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readline()).decode().strip())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    asked: list[str] = []
    web = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with web:
        spawner = make_spawner(inspect_container=[EngineFault("no answer")])
        port = web.sockets[0].getsockname()[1]
        spawner._server = SimpleNamespace(
            ip="127.0.0.1", port=port, base_url="/user/ada/", url="http://known/"
        )
        spawner._check_pending = True
        assert await spawner.poll() is None
        assert await spawner.get_url() == "http://known/"
    assert asked == ["GET /user/ada/api HTTP/1.1"]


async def test_a_server_whose_hub_died_in_mid_start_is_found_by_name() -> None:
    spawner = make_spawner(inspect_container=[make_container()])
    spawner._check_pending = True
    spawner._server = SimpleNamespace(base_url="/user/ada/", url="http://:0/user/ada/", ip="", port=0)
    assert await spawner.poll() is None
    assert await spawner.get_url() == "http://10.213.0.9:8888/user/ada/"
    assert spawner.get_state() == {"object_id": "c1", "object_name": "gpuspawner--41da", "lease_id": "a1"}


@pytest.mark.parametrize("answer", [None, EngineFault("Address already in use", 403)])
async def test_a_server_that_was_cut_from_the_network_runs_and_is_connected_again(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cut = make_container()
    cut["NetworkSettings"] = {"Networks": {}}
    spawner = make_spawner(inspect_container=[cut, cut], connect_container_to_network=[answer])
    spawner.load_state({"object_id": "c1", "lease_id": "a1"})
    spawner._server = SimpleNamespace(
        base_url="/user/ada/", url="http://10.213.0.9:8888/user/ada/", ip="10.213.0.9", port=8888
    )
    assert await spawner.poll() is None
    async with asyncio.timeout(SOON_SECONDS):
        while "connect_container_to_network" not in spawner.shared.docker.calls:
            await asyncio.sleep(0.01)
    assert await spawner.get_url() == "http://10.213.0.9:8888/user/ada/"
    assert sorted(spawner.shared.docker.calls) == [
        "connect_container_to_network", "inspect_container", "inspect_container",
    ]  # fmt: skip


@pytest.mark.parametrize(("known", "token"), [("s3cret", "s3cret"), ("", "t0ken")])
async def test_a_restarted_hub_asks_for_kernels_with_the_containers_token(known: str, token: str) -> None:
    """JupyterHub keeps a server's token only in the process that started it."""
    begun: list[Any] = []
    config = {"Labels": LABELS, "Env": ["JUPYTERHUB_API_TOKEN=t0ken"]}
    spawner = make_spawner(inspect_container=[make_container(Config=config)])
    spawner.api_token = known
    spawner._server = SimpleNamespace(base_url="/user/ada/")
    spawner._kernels = SimpleNamespace(begin=lambda _, *asked: begun.append(asked))
    spawner.load_state({"object_id": "c1", "lease_id": "a1"})
    assert await spawner.poll() is None
    ((*asked, on_busy),) = begun
    assert asked == ["a1", "http://10.213.0.9:8888/user/ada/", token]
    spawner.orm_spawner = orm.Spawner(name="")
    on_busy()
    assert (utcnow(with_tz=False) - spawner.orm_spawner.last_activity).total_seconds() < 60


async def test_a_server_without_a_gpu_is_asked_too() -> None:
    """A culler of the hub would end its silent computation."""
    labels = {name: value for name, value in LABELS.items() if name != "gpuspawner.lease"}
    begun: list[Any] = []
    spawner = make_spawner(inspect_container=[make_container(Config={"Labels": labels, "Env": []})])
    spawner._server = SimpleNamespace(base_url="/user/ada/")
    spawner._kernels = SimpleNamespace(begin=lambda _, *asked: begun.append(asked[0]))
    spawner.load_state({"object_id": "c1"})
    assert await spawner.poll() is None
    assert begun == [""]


# ---- stop


async def test_a_stop_ends_when_the_container_is_gone() -> None:
    spawner = make_spawner(
        inspect_container=[make_container()],
        stop=[None],
        remove_container=[EngineFault("removal in progress", 409), EngineFault("gone", 404)],
    )
    spawner.load_state({"object_id": "c1", "lease_id": "a1"})
    await spawner.stop()
    assert spawner.shared.docker.calls == [
        "inspect_container",
        "stop",
        "remove_container",
        "remove_container",
    ]
    assert (spawner.object_id, spawner.shared.broker.released) == ("", ["a1"])
    assert await spawner.poll() == 0


async def test_a_stop_of_what_is_gone_is_no_error() -> None:
    spawner = make_spawner(inspect_container=[EngineFault("gone", 404)])
    await spawner.stop()
    await spawner.stop()
    assert spawner.shared.broker.released == []


async def test_a_stop_goes_on_while_docker_doesnt_answer() -> None:
    fault = EngineFault("no answer")
    spawner = make_spawner(
        inspect_container=[fault, make_container(), fault, make_container(), make_container(running=False)],
        stop=[None],
        remove_container=[EngineFault("busy", 500), None],
    )
    spawner.load_state({"object_id": "c1", "lease_id": "a1"})
    await spawner.stop()
    assert spawner.shared.docker.calls == [
        "inspect_container",
        *("inspect_container", "stop", "remove_container", "inspect_container"),
        *("inspect_container", "stop", "remove_container"),
    ]
    assert spawner.shared.broker.released == ["a1"]


async def test_a_dead_container_that_cant_be_removed_holds_up_nobody() -> None:
    spawner = make_spawner(
        inspect_container=[make_container(), make_container(running=False)],
        stop=[None],
        remove_container=[EngineFault("busy", 500), EngineFault("busy", 500), None],
    )
    spawner.load_state({"object_id": "c1", "lease_id": "a1"})
    await spawner.stop()
    assert spawner.shared.removals.pending(spawner.object_name)
    assert await spawner.poll() is None
    await spawner.shared.removals.wait(spawner.object_name)
    assert spawner.shared.docker.calls.count("remove_container") == 3


async def test_a_server_that_ended_by_itself_is_taken_away_after_the_hub_has_noticed() -> None:
    spawner = make_spawner(inspect_container=[make_container(running=False)], remove_container=[None])
    spawner.load_state({"object_id": "c1", "lease_id": "a1"})
    assert await spawner.poll() == "exit code 137"
    await spawner.run_post_stop_hook()
    await spawner.shared.removals.wait(spawner.object_name)
    assert spawner.shared.docker.calls == ["inspect_container", "remove_container"]


# ---- start


async def test_a_start_that_fails_says_so_ends_its_progress_and_lets_the_next_one_begin() -> None:
    spawner = make_spawner(
        info=[{}], inspect_image=[{"Config": {"Cmd": ["x"]}}], inspect_container=[EngineFault("gone", 404)]
    )
    spawner.user_options = {"profile": "cpu"}
    created: list[Any] = [EngineFault("no space left on device", 500)]

    async def create(plan: Any) -> str:
        raise created[0]

    spawner.create_container = create  # type: ignore[method-assign]
    with pytest.raises(SpawnException) as error:
        await spawner.start()
    assert error.value.reason == "disk_full"
    assert await spawner.poll() is None  # still being given back
    await spawner.stop()
    assert await spawner.poll() == 0
    assert [event["message"] async for event in spawner.progress()] == []


async def test_progress_that_is_asked_for_before_the_start_waits_for_it() -> None:
    spawner = make_spawner()
    spawner._progress.end()
    spawner._spawn_pending = True

    async def watch() -> list[str]:
        return [event["message"] async for event in spawner.progress()]

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    spawner._progress = type(spawner._progress)()
    spawner._progress.say(10, "2nd in line for a GPU")
    await asyncio.sleep(0.1)
    spawner._progress.end()
    assert await watching == ["2nd in line for a GPU"]


# ---- a start that is cancelled


class Cancelled:
    """A start under a task of the hub's, in the middle of which it waits; `end` lets it end."""

    def __init__(self, spawner: GpuDockerSpawner) -> None:
        self.spawner, self.end, self.begun = spawner, asyncio.Event(), asyncio.Event()
        spawner.user_options = {"profile": "cpu"}
        spawner.pull_image = self._wait  # type: ignore[method-assign]
        spawner._spawn_pending = spawner._start_pending = True  # as JupyterHub does
        spawner._server = SimpleNamespace(base_url="/user/ada/")
        spawner._spawn_future = self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await asyncio.wait_for(self.spawner.start(), self.spawner.start_timeout)
        except TimeoutError:
            pass
        finally:
            self.spawner._spawn_pending = False

    async def _wait(self, image: str, tell: object) -> dict[str, Any]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await self.end.wait()
            raise
        return {}


async def test_a_cancelled_start_that_is_still_ending_can_be_stopped() -> None:
    spawner = make_spawner(inspect_container=[None, None])
    start = Cancelled(spawner)
    await start.begun.wait()
    assert (spawner.pending, spawner.ready) == ("spawn", False)
    start.task.cancel()
    assert (spawner.pending, spawner.ready) == (None, False)
    await asyncio.sleep(0.01)
    assert (spawner.pending, spawner.ready, await spawner.poll()) == (None, False, None)
    stop = asyncio.create_task(spawner.stop())
    await asyncio.sleep(0.01)
    assert not stop.done()
    start.end.set()
    await stop
    assert start.task.cancelled()
    assert (spawner.pending, spawner.ready, spawner.how_it_ended) == (None, False, "The start was cancelled.")


async def test_a_cancelled_start_counts_no_longer_before_the_hub_has_noticed_its_end() -> None:
    """The hub's own mark goes by a callback, in a later round of the loop."""
    spawner = make_spawner(inspect_container=[EngineFault("gone", 404)])
    spawner._spawn_pending = True
    spawner._spawn_future = task = asyncio.create_task(asyncio.sleep(10))
    await asyncio.sleep(0)
    assert spawner.pending == "spawn"
    task.cancel()
    await asyncio.wait([task])
    assert spawner.pending is None
    await asyncio.wait_for(spawner.stop(), SOON_SECONDS)


async def test_a_start_between_a_cancelled_one_and_its_stop_is_refused() -> None:
    spawner = make_spawner(inspect_container=[None, None])
    start = Cancelled(spawner)
    await start.begun.wait()
    start.task.cancel()
    await asyncio.sleep(0.01)
    sentence = "The last start of this server is still being cancelled: try again in a few seconds."
    with pytest.raises(SpawnException, match=sentence) as still_ending:
        await spawner.start()
    assert (still_ending.value.reason, still_ending.value.status_code) == ("start_conflict", 409)
    start.end.set()
    await asyncio.wait([start.task])
    with pytest.raises(SpawnException, match=sentence):
        await spawner.start()
    await spawner.run_post_stop_hook()
    start.begun.clear()
    second = asyncio.create_task(spawner.start())
    await start.begun.wait()
    second.cancel()
    await asyncio.wait([second])


async def test_a_start_that_takes_too_long_says_so() -> None:
    spawner = make_spawner(inspect_container=[None, None])
    spawner.start_timeout = 1
    start = Cancelled(spawner)
    start.end.set()
    await start.task
    assert spawner.how_it_ended == "The server did not start within 1 seconds."


async def test_a_stop_within_the_cancelled_start_waits_for_nothing() -> None:
    """JupyterHub's own clean-up after a failed start runs in the task of that start."""
    spawner = make_spawner(inspect_container=[EngineFault("gone", 404)])

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await spawner.stop()

    spawner._spawn_future = task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.done()
