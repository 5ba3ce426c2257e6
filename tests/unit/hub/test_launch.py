"""One start, step by step, against a Docker and a broker that only remember; cancelled at every await."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from gpuspawner.core.errors import (
    BrokerUnavailable,
    EngineFault,
    HubFull,
    ImageUnfit,
    LeaseConflict,
    QueueTimeout,
    StartFault,
)
from gpuspawner.core.model import Tier
from gpuspawner.core.want import Want
from gpuspawner.hub import launch as launch_module
from gpuspawner.hub import readiness
from gpuspawner.hub.launch import LaunchJob, before_stop
from gpuspawner.hub.progress import Progress
from gpuspawner.hub.pull_progress import PullNews
from gpuspawner.hub.readiness import Answer

from tests.soon import SOON_SECONDS
from tests.unit.fake_launch import JOB, LEASE, OWNER, REQUEST, Broker, Docker, make


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


async def test_a_gpu_is_asked_for_on_the_machine_that_has_the_files(answers: list[Answer]) -> None:
    for home, node in (("b", "b"), ("", None)):
        docker, broker = Docker(home=home), Broker()
        start, _ = make(docker, broker)
        await start.run()
        assert broker.asked == replace(REQUEST, want=Want(1, node=node), image="lab:1")


async def test_where_the_hub_is_full_one_with_a_gpu_waits_and_one_without_is_refused(
    answers: list[Answer],
) -> None:
    docker, broker = Docker(full=True), Broker()
    start, progress = make(docker, broker)
    assert await start.run() == ("10.213.0.2", 8888)
    said = await events(progress)
    reserved = said.index("1 simulated GPU reserved for you")
    assert said[reserved + 1 : reserved + 3] == [launch_module.NO_PLACE, "Container created"]
    plain, _ = make(Docker(full=True), broker, replace(JOB, request=None))
    with pytest.raises(HubFull):
        await plain.run()


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
    await asyncio.wait_for(start.give_back(), SOON_SECONDS)
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
    docker, broker = Docker(), Broker(refusals=[LeaseConflict("The lease is gone")])
    start, _ = make(docker, broker)
    with pytest.raises(LeaseConflict):
        await start.run()
    docker.faults["inspect_container"] = [EngineFault("down")] * 3
    docker.faults["remove_container"] = [EngineFault("busy", 500)]
    await start.give_back()
    assert (docker.containers, broker.confirmed, broker.released) == ({}, [], [LEASE.id])
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Can't clean up after a start yet, retrying: down "
        f"user=ada server= lease={LEASE.id} devices=GPU-1 container=id-3"
    ]


async def test_starts_take_turns_and_say_so(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    first, _ = make(docker, broker)
    job = LaunchJob("gpuspawner-bob", OWNER, Tier("cpu", "CPU"), "lab:1", "/api", 5)
    second, progress = make(docker, broker, job)
    async with docker.slots.one():
        starts = [asyncio.create_task(start.run()) for start in (first, second)]
        async with asyncio.timeout(SOON_SECONDS):
            while docker.calls.count("create") < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        assert docker.calls.count("start") == 0
    await asyncio.gather(*starts)
    assert docker.calls.count("start") == 2
    assert "Waiting for other servers that are starting" in await events(progress)


async def test_a_broker_that_restarts_is_waited_for(
    answers: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_module, "_CONFIRM_PAUSE_SECONDS", 0)
    docker = Docker()
    broker = Broker(
        refusals=[BrokerUnavailable("down"), LeaseConflict("no hold yet"), LeaseConflict("nor now")]
    )
    start, _ = make(docker, broker)
    assert await start.run() == ("10.213.0.2", 8888)
    assert broker.confirmed == [LEASE.id]


@pytest.mark.parametrize("lost", [True, False])
async def test_a_broker_that_stays_away_ends_the_start(
    answers: list[Answer], monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    monkeypatch.setattr(launch_module, "_CONFIRM_PAUSE_SECONDS", 0)
    monkeypatch.setattr(launch_module, "CONFIRM_SECONDS", 10 if lost else 0)
    docker, broker = Docker(), Broker(refusals=[BrokerUnavailable("down")] * 5)
    broker.lost = BrokerUnavailable("gone") if lost else None
    start, _ = make(docker, broker)
    with pytest.raises(BrokerUnavailable, match="down"):
        await start.run()
    await start.give_back()
    assert (docker.containers, docker.calls.count("start")) == ({}, 0)


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
    with pytest.raises(StartFault, match="doesn't belong to this server"):
        await start.run()
    await start.give_back()
    assert docker.containers[JOB.name]["Id"] == "foreign"


async def test_a_leftover_that_cant_be_removed_leaves_no_pull_behind(answers: list[Answer]) -> None:
    docker = Docker()
    docker.faults["inspect_container"] = [EngineFault("down", 500)]
    ended = []

    async def pull(image: str, tell: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(image)

    docker.pull_image = pull  # type: ignore[method-assign]
    start, _ = make(docker, Broker())
    with pytest.raises(EngineFault, match="down"):
        await start.run()
    assert ended == ["lab:1"]


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


async def test_a_network_that_was_missing_is_created_and_the_start_goes_on(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    docker.faults["start"] = [EngineFault("network gpuspawner not found", 404)]
    start, _ = make(docker, broker)
    await start.run()
    assert (docker.calls.count("start"), docker.networks) == (2, ["gpuspawner"])


async def test_a_network_that_is_full_names_the_remedy(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    words = "no available IPv4 addresses on this network's address pools: gpuspawner (3d9a)"
    docker.faults["start"] = [EngineFault(words, 500)]
    start, _ = make(docker, broker)
    with pytest.raises(StartFault, match=r"are in use, .* Admin: set a larger c\.GpuDockerSpawner\.subnet"):
        await start.run()


async def test_an_image_removed_while_waiting_names_the_remedy(answers: list[Answer]) -> None:
    docker, broker = Docker(), Broker()
    docker.faults["create"] = [EngineFault("No such image: lab:1", 404)]
    start, _ = make(docker, broker)
    with pytest.raises(StartFault) as fault:
        await start.run()
    assert (fault.value.reason, str(fault.value)) == (
        "image_missing",
        "The image lab:1 isn't on this machine, and this hub doesn't pull images. "
        "Admin: run 'make images', which builds the lab images, or 'docker pull lab:1'.",
    )


async def test_a_container_that_ends_says_why(answers: list[Answer]) -> None:
    docker, broker = Docker(dies=True), Broker()
    start, _ = make(docker, broker)
    with pytest.raises(StartFault) as fault:
        await start.run()
    assert (fault.value.reason, str(fault.value)) == (
        "exited",
        "The server stopped while it was starting (exit code 3). Last log lines: hello / token=***",
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
        "The container started, but the server in it didn't answer within 0 seconds. Try again "
        "first; if it fails again, choose another image or ask your admin. "
        "Last log lines: hello / token=s3cret",
    )
    assert docker.calls.count("inspect_container") > 2


async def test_news_of_a_pull_come_before_the_queue(answers: list[Answer]) -> None:
    docker, broker = Docker(news=("Pulling image lab:1", "Pulling image lab:1: 1 of 2 layers")), Broker()
    start, progress = make(docker, broker)
    await start.run()
    assert (await events(progress))[:3] == [*docker.news, "Asking for a GPU"]


async def test_the_events_say_how_much_is_pulled_and_how_the_place_moves(answers: list[Answer]) -> None:
    docker, broker = Docker(news=("Pulling", PullNews("Pulling: 14 %", 14))), Broker()
    start, progress = make(docker, broker)
    await start.run()
    progress.end()
    seen = [event async for event in progress.follow()]
    assert [event["part_percent"] for event in seen if event["step"] == "image"] == [None, 14]
    places = [event["queue"] for event in seen if "queue" in event]
    assert [(each["first_position"], each["position"], each["waiting"]) for each in places] == [
        (2, 2, 2), (2, 1, 1),
    ]  # fmt: skip
    assert len({each["since"] for each in places}) == 1
    assert [each["ends_at"] for each in places] == ["2026-03-02T12:40:00+00:00", None]
    told = [event["html_message"] for event in seen if "queue" in event]
    ends = "If no GPU is free by 2026-03-02 12:40 UTC, the wait ends and the server doesn&#x27;t start."
    assert [ends in text for text in told] == [True, False], told
    assert [event["step"] for event in seen] == [*["image"] * 2, *["gpu"] * 4, "container", *["server"] * 2]


OLD = {"simulated": False, "driver": {"version": "535.1", "cuda": "12.2"}}
NEW = {"simulated": False, "driver": {"version": "580.1", "cuda": "13.0"}}
TORCH = {"Config": {"Labels": {"gpuspawner.min-driver": "580"}}}


@pytest.mark.parametrize(
    ("machine", "starts"),
    [
        ([NEW], True),
        ([OLD], False),
        ([BrokerUnavailable("down"), NEW], True),
        ([BrokerUnavailable("down"), OLD], False),
    ],
)
async def test_an_image_is_held_against_the_machine(
    answers: list[Answer], machine: list[Any], starts: bool
) -> None:
    """Before the queue; where the broker is being restarted then, with the lease."""
    docker, broker = Docker(image=TORCH), Broker(machine=list(machine))
    start, _ = make(docker, broker)
    if starts:
        assert await start.run() == ("10.213.0.2", 8888)
    else:
        with pytest.raises(ImageUnfit) as refusal:
            await start.run()
        assert refusal.value.message == (
            "lab:1 needs driver ≥ 580, this machine's driver is 535.1: choose another image, or a server "
            "without a GPU. Admin: update the driver."
        )
        await start.give_back()
        assert docker.calls.count("create") == 0
        assert broker.released == ([LEASE.id] if len(machine) > 1 else [])
    assert (broker.machine, broker.held) == ([], 0)


async def test_without_a_gpu_an_image_starts_that_can_work_so(answers: list[Answer]) -> None:
    job = LaunchJob("n", OWNER, Tier("cpu", "CPU"), "lab:1", "/api", 5)
    start, _ = make(Docker(image=TORCH), Broker(), job)
    assert await start.run() == ("10.213.0.2", 8888)
    start, _ = make(Docker(image={"Config": {"Labels": {"gpuspawner.needs-gpu": "1"}}}), Broker(), job)
    with pytest.raises(ImageUnfit, match="lab:1 needs a GPU"):
        await start.run()


NO_SERVER = (
    "The image lab:1 can't start a server here: it can't run jupyterhub-singleuser. Choose another one, like "
    "the Jupyter docker-stacks; to use this one, build an image on top of it with 'pip install jupyterhub "
    "jupyterlab'. Docker says: "
)
RUNC = "OCI runtime create failed: runc create failed: unable to start container process: "
WORDS = 'exec: "jupyterhub-singleuser": executable file not found in $PATH: unknown'


async def test_an_image_without_a_server_is_told_at_once(answers: list[Answer]) -> None:
    docker = Docker(faults={"start": [EngineFault(RUNC + WORDS, 400)]})
    start, _ = make(docker, Broker())
    with pytest.raises(StartFault) as fault:
        await start.run()
    assert (fault.value.reason, str(fault.value)) == ("no_server", NO_SERVER + WORDS)
    start, _ = make(Docker(dies=True, exit_code=127), Broker())
    with pytest.raises(StartFault) as fault:
        await start.run()
    assert (fault.value.reason, str(fault.value)) == ("no_server", NO_SERVER + "hello / token=***")


async def test_a_start_that_fails_for_another_reason_is_a_fault(answers: list[Answer]) -> None:
    words = "error mounting /x: no such file or directory: exec"
    start, _ = make(Docker(faults={"start": [EngineFault(words, 400)]}), Broker())
    with pytest.raises(EngineFault, match="error mounting"):
        await start.run()


async def test_a_condition_that_nvidias_hook_finds_unmet_is_told(answers: list[Answer]) -> None:
    words = (
        "OCI runtime create failed: error running hook: nvidia-container-cli: requirement error: unsatisfied "
        "condition: cuda>=13.0, please update your driver to a newer version, or use an earlier one"
    )
    docker, broker = Docker(faults={"start": [EngineFault(words, 400)]}), Broker()
    start, _ = make(docker, broker)
    with pytest.raises(ImageUnfit, match=r"^lab:1 needs cuda>=13\.0 of the driver, which"):
        await start.run()
    await start.give_back()
    assert (docker.containers, broker.held, broker.released) == ({}, 0, [LEASE.id])


class Ending:
    """Answers what it is given, in order; then that the container may be stopped."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def may_end(self, lease_id: str) -> bool:
        self.asked.append(lease_id)
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("answers", "times"),
    [
        ((), 1),
        ((False, False), 3),
        ((False, BrokerUnavailable("It is not running.")), 2),
        ((TimeoutError(),), 1),
        ((False,) * 1000, 180),  # a program that can't sleep must not keep its server from being stopped
    ],
)
async def test_it_asks_until_the_programs_sleep(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[bool | Exception, ...], times: int
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(launch_module.asyncio, "sleep", sleep)
    broker = Ending(*answers)
    await before_stop(cast(Any, broker), "a" * 32)
    assert broker.asked == ["a" * 32] * times
    assert sum(waited) <= 90.0
