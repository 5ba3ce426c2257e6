"""One start, step by step, against a Docker and a broker that only remember; cancelled at every await."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from gpuspawner import launch as launch_module
from gpuspawner import readiness
from gpuspawner.client import Grant
from gpuspawner.container import ContainerPlan, Owner
from gpuspawner.errors import EngineFault, GpuSpawnerError, LeaseConflict, QueueTimeout, StartFault
from gpuspawner.launch import Launch, LaunchJob
from gpuspawner.model import ContainerPatch, GpuRequest, Lease, LeaseState, Tier
from gpuspawner.progress import Progress
from gpuspawner.readiness import Answer, Slots
from gpuspawner.units import utc_now

OWNER = Owner("hub", "ada", "", "gpu")
LEASE = Lease(
    id="a" * 32, hub="hub", user="ada", server="", tier="gpu", state=LeaseState.RESERVED, device_count=1,
    created_at=utc_now(), since=utc_now(), device_uuids=("GPU-1",),
)  # fmt: skip
REQUEST = GpuRequest(LEASE.id, "hub", "ada", "", "gpu", 1)
JOB = LaunchJob(
    name="gpuspawner-ada",
    owner=OWNER,
    tier=Tier("gpu", "GPU", device_count=1),
    image="lab:1",
    api_path="/user/ada/api",
    http_timeout_seconds=5,
    request=REQUEST,
    secret="s3cret",
)


@dataclass
class Docker:
    """Containers by name. Each call runs in a task of its own after a pause, as in a thread: no cancel."""

    log: logging.Logger = field(default_factory=lambda: logging.getLogger("test"))
    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    faults: dict[str, list[EngineFault]] = field(default_factory=dict)
    dies: bool = False
    slow: str = ""
    slots: Slots = field(default_factory=lambda: Slots(1))
    pause: Callable[[], Coroutine[Any, Any, None]] = lambda: asyncio.sleep(0)

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._thread(method, lambda: getattr(self, method)(*args, **kwargs))

    async def _thread(self, method: str, call: Callable[[], Any]) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            for _ in range(30 if method == self.slow else 3):
                await asyncio.sleep(0)
            self.calls.append(method)
            try:
                faults = self.faults.get(method)
                if faults:
                    fault = faults.pop(0)
                    if fault.status is None:
                        call()  # done, but the answer is lost
                    raise fault
                result = call()
            except EngineFault as fault:
                if not done.done():
                    done.set_exception(fault)
            else:
                if not done.done():
                    done.set_result(result)

        self.tasks = [*getattr(self, "tasks", []), asyncio.create_task(work())]
        await self.pause()
        return await done

    async def pull_image(self, image: str) -> dict[str, Any]:
        return dict(await self.docker("inspect_image", image))

    def inspect_image(self, image: str) -> dict[str, Any]:
        return {"Id": image}

    async def plan_container(
        self, job: LaunchJob, image: dict[str, Any], patch: ContainerPatch | None
    ) -> ContainerPlan:
        await self.pause()
        labels = {**job.owner.labels(), **(patch.labels if patch else {})}
        return ContainerPlan({"name": job.name, "labels": labels}, {}, ())

    async def create_container(self, plan: ContainerPlan) -> str:
        def create() -> str:
            name = plan.create["name"]
            if name in self.containers:
                raise EngineFault("name in use", 409)
            self.containers[name] = {
                "Id": f"id-{len(self.calls)}",
                "Config": {"Labels": plan.create["labels"]},
                "State": {"Running": False, "ExitCode": 0},
            }
            return str(self.containers[name]["Id"])

        return str(await self._thread("create", create))

    def _find(self, key: str) -> tuple[str, dict[str, Any]]:
        for name, container in self.containers.items():
            if key in (name, container["Id"]):
                return name, container
        raise EngineFault("no such container", 404)

    def start(self, key: str) -> None:
        self._find(key)[1]["State"] = {"Running": not self.dies, "ExitCode": 3}

    def inspect_container(self, key: str) -> dict[str, Any]:
        return self._find(key)[1]

    def remove_container(self, key: str, **_: Any) -> None:
        del self.containers[self._find(key)[0]]

    def logs(self, key: str, **_: Any) -> bytes:
        return b"hello\ntoken=s3cret\n"

    async def mend_network(self, fault: EngineFault) -> bool:
        return "network" in str(fault)

    def address_of(self, container: dict[str, Any]) -> tuple[str, int]:
        return "10.213.0.2", 8888


@dataclass
class Broker:
    """Remembers holds, confirmations and releases."""

    pause: Callable[[], Coroutine[Any, Any, None]] = lambda: asyncio.sleep(0)
    held: int = 0
    confirmed: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    refusal: GpuSpawnerError | None = None
    conflict: bool = False

    @asynccontextmanager
    async def acquire(self, request: GpuRequest, on_queued: Any) -> AsyncIterator[Grant]:
        self.held += 1
        try:
            on_queued(2, 2, "2nd in line for a GPU")
            await self.pause()
            on_queued(1, 1, "1st in line for a GPU")
            await self.pause()
            if self.refusal:
                raise self.refusal
            yield Grant(
                LEASE,
                ContainerPatch(env={"GPUSPAWNER_SIMULATED": "1"}, labels={"gpuspawner.lease": LEASE.id}),
            )
        finally:
            self.held -= 1

    async def confirm(self, lease_id: str) -> None:
        await self.pause()
        if self.conflict:
            raise LeaseConflict("The lease is gone")
        self.confirmed.append(lease_id)

    async def release(self, lease_id: str) -> None:
        self.released.append(lease_id)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """What the server's next answers are; READY once they are used up."""
    planned: list[Answer] = []

    async def ask(host: str, port: int, path: str) -> Answer:
        await asyncio.sleep(0)
        return planned.pop(0) if planned else Answer.READY

    monkeypatch.setattr(launch_module, "ask", ask)
    monkeypatch.setattr(readiness, "POLL_SECONDS", 0)
    return planned


def make(docker: Docker, broker: Broker, job: LaunchJob = JOB) -> tuple[Launch, Progress]:
    progress = Progress()
    return Launch(job, docker, broker, progress), progress  # type: ignore[arg-type]


async def events(progress: Progress) -> list[str]:
    progress.end()
    return [str(event["message"]) async for event in progress.follow()]


async def test_a_start_takes_its_steps_in_order(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    answers.extend([Answer.REFUSED, Answer.REFUSED])
    start, progress = make(docker, broker)
    assert await start.run() == ("10.213.0.2", 8888)
    assert sorted(docker.calls[:2]) == ["inspect_container", "inspect_image"]
    assert docker.calls[2:] == ["create", "start", "inspect_container"]
    assert (broker.held, broker.confirmed, broker.released) == (0, [LEASE.id], [])
    assert docker.containers["gpuspawner-ada"]["State"]["Running"]
    assert await events(progress) == [
        "Asking for a GPU",
        "2nd in line for a GPU",
        "1st in line for a GPU",
        "1 simulated GPU reserved for you",
        "Container created",
        "Container started: waiting for the server's first answer",
        "The server answers",
    ]


@pytest.mark.parametrize("slow", ["", "create", "start", "inspect_container"])
async def test_cancelled_at_every_await_all_is_given_back(answers: list[Answer], slow: str) -> None:
    """Counts a start's steps of the loop, then cancels at each: while it waits, and while Docker works."""
    answers.extend([Answer.REFUSED])
    whole = await cancelled_at(10**6, slow)
    assert whole > 30
    for number in range(whole):
        answers[:] = [Answer.REFUSED]
        await cancelled_at(number, slow)


async def cancelled_at(number: int, slow: str) -> int:
    """Cancels at the start's `number`th step of the loop; returns how many steps there were."""
    docker, broker = Docker(slow=slow), Broker()
    start, _ = make(docker, broker)
    task = asyncio.create_task(start.run())
    steps = 0
    while not task.done() and steps < number:
        await asyncio.sleep(0)
        steps += 1
    if task.done():
        assert await task == ("10.213.0.2", 8888)
        return steps
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert broker.held == 0, f"the hold is still open after a cancel at step {number}"
    await asyncio.wait_for(start.give_back(), 5)
    await asyncio.gather(*getattr(docker, "tasks", []))
    assert docker.containers == {}, f"a container is left after a cancel at step {number}"
    assert broker.released == ([LEASE.id] if start.lease else [])
    return steps


@pytest.mark.parametrize(
    ("method", "status"),
    [("create", 500), ("create", None), ("start", 500), ("start", None), ("inspect_container", 500)],
)
async def test_a_fault_of_docker_ends_the_start_and_leaves_nothing(
    answers: list[Answer], method: str, status: int | None
) -> None:
    docker, broker = Docker(), Broker()
    docker.faults[method] = [EngineFault("broken", status)]
    start, _ = make(docker, broker)
    with pytest.raises(EngineFault, match="broken"):
        await start.run()
    await start.give_back()
    assert (docker.containers, broker.held) == ({}, 0)


async def test_giving_back_goes_on_until_docker_answers(
    answers: list[Answer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch_module, "RETRY_SECONDS", 0.01)
    docker, broker = Docker(), Broker(conflict=True)
    start, _ = make(docker, broker)
    with pytest.raises(LeaseConflict):
        await start.run()
    docker.faults["inspect_container"] = [EngineFault("down")] * 3
    docker.faults["remove_container"] = [EngineFault("busy", 500)]
    await start.give_back()
    assert (docker.containers, broker.confirmed, broker.released) == ({}, [], [LEASE.id])
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Can't remove what a start left yet, trying on: down "
        f"user=ada server= lease={LEASE.id} devices=GPU-1 container=id-3"
    ]


async def test_starts_take_turns_and_say_so(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    first, _ = make(docker, broker)
    job = LaunchJob("gpuspawner-bob", OWNER, Tier("cpu", "CPU"), "lab:1", "/api", 5)
    second, progress = make(docker, broker, job)
    async with docker.slots.one():
        starts = [asyncio.create_task(start.run()) for start in (first, second)]
        await asyncio.sleep(0.02)
        assert docker.calls.count("create") == 2
        assert docker.calls.count("start") == 0
    await asyncio.gather(*starts)
    assert docker.calls.count("start") == 2
    assert "Waiting for others that are starting" in await events(progress)


async def test_a_refusal_in_the_queue_touches_no_container(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker(refusal=QueueTimeout("No GPU came free in time"))
    start, _ = make(docker, broker)
    with pytest.raises(QueueTimeout):
        await start.run()
    await start.give_back()
    assert (sorted(docker.calls), broker.released) == (["inspect_container", "inspect_image"], [])


async def test_without_a_gpu_the_broker_isnt_asked(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker(refusal=AssertionError())  # type: ignore[arg-type]
    job = LaunchJob("n", OWNER, Tier("cpu", "CPU"), "lab:1", "/api", 5)
    start, _ = make(docker, broker, job)
    assert await start.run() == ("10.213.0.2", 8888)
    assert (start.lease, broker.confirmed) == (None, [])


async def test_a_leftover_of_ours_is_replaced_and_anybody_elses_is_not(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    docker.containers[JOB.name] = {
        "Id": "old",
        "Config": {"Labels": OWNER.labels()},
        "State": {"Running": True},
    }
    start, _ = make(docker, broker)
    await start.run()
    assert start.container_id != "old"
    docker.containers[JOB.name] = {"Id": "foreign", "Config": {"Labels": None}, "State": {}}
    start, _ = make(docker, broker)
    with pytest.raises(StartFault, match="isn't this server's"):
        await start.run()
    await start.give_back()
    assert docker.containers[JOB.name]["Id"] == "foreign"


async def test_a_container_that_came_late_is_replaced(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    start, _ = make(docker, broker)

    async def slip_in() -> None:
        docker.containers.setdefault(
            JOB.name, {"Id": "late", "Config": {"Labels": OWNER.labels()}, "State": {"Running": False}}
        )

    broker.pause = slip_in
    await start.run()
    assert docker.calls.count("create") == 2
    assert docker.containers[JOB.name]["Id"] == start.container_id != "late"


async def test_a_network_that_was_missing_is_mended_and_the_start_goes_on(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    docker.faults["start"] = [EngineFault("network gpuspawner not found", 404)]
    start, _ = make(docker, broker)
    await start.run()
    assert docker.calls.count("start") == 2


async def test_an_image_removed_while_waiting_names_the_remedy(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    docker.faults["create"] = [EngineFault("No such image: lab:1", 404)]
    start, _ = make(docker, broker)
    with pytest.raises(StartFault) as fault:
        await start.run()
    assert (fault.value.reason, str(fault.value)) == (
        "image_missing",
        "The image lab:1 isn't on this machine and can't be pulled. Admin: run 'make hub', which builds the "
        "lab image, or 'docker pull lab:1'.",
    )


async def test_a_container_that_ends_says_why(answers: list[Answer]) -> None:
    docker, broker = Docker(dies=True), Broker()
    start, _ = make(docker, broker)
    with pytest.raises(StartFault) as fault:
        await start.run()
    assert (fault.value.reason, str(fault.value)) == (
        "exited",
        "The server stopped while it was starting (exit code 3). Its last words: hello / token=***",
    )


async def test_a_silent_server_is_looked_at_at_once_and_given_up_in_time(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    answers.extend([Answer.SILENT] * 10_000)
    job = LaunchJob("n", OWNER, Tier("cpu", "CPU"), "lab:1", "/api", 0.2)
    start, _ = make(docker, broker, job)
    with pytest.raises(StartFault) as fault:
        await start.run()
    assert (fault.value.reason, str(fault.value)) == (
        "timeout",
        "The server started but didn't answer within 0 seconds. Its last words: hello / token=s3cret",
    )
    assert docker.calls.count("inspect_container") > 2
