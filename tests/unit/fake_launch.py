"""A Docker and a broker that only remember, for the steps of one start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gpuspawner.core.errors import EngineFault, GpuSpawnerError, HubFull, Refusal
from gpuspawner.core.labels import Owner
from gpuspawner.core.model import ContainerPatch, GpuRequest, Lease, LeaseState, Tier
from gpuspawner.core.units import utc_now
from gpuspawner.core.want import Want
from gpuspawner.hub.container import ContainerPlan
from gpuspawner.hub.containers import Containers
from gpuspawner.hub.docker import DockerEngine
from gpuspawner.hub.launch import Launch, LaunchJob
from gpuspawner.hub.network import LabNetwork
from gpuspawner.hub.progress import Progress
from gpuspawner.hub.pulls import Pulls
from gpuspawner.hub.readiness import Slots
from gpuspawner.hub.shared import HubShared
from gpuspawner.protocol.client import Grant
from gpuspawner.protocol.messages import QueuedEvent

NETWORK = LabNetwork("gpuspawner", "10.213.0.0/20", 8888)
OWNER = Owner("hub", "ada", "", "gpu")
LEASE = Lease(
    id="a" * 32, hub="hub", user="ada", server="", tier="gpu", state=LeaseState.RESERVED, want=Want(1),
    created_at=utc_now(), since=utc_now(), device_uuids=("GPU-1",),
)  # fmt: skip
REQUEST = GpuRequest(LEASE.id, "hub", "ada", "", "gpu", Want(1))
JOB = LaunchJob(
    name="gpuspawner-ada",
    owner=OWNER,
    tier=Tier("gpu", "GPU", want=Want(1)),
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
    exit_code: int = 3
    image: dict[str, Any] = field(default_factory=dict)
    news: tuple[str, ...] = ()
    slow: str = ""
    slots: Slots = field(default_factory=lambda: Slots(1))
    networks: list[str] = field(default_factory=list)
    pause: Callable[[], Coroutine[Any, Any, None]] = lambda: asyncio.sleep(0)
    home: str = ""
    """The machine with the user's files."""
    full: bool = False
    """Whether the hub has no place left; one with a GPU waits for one step of the loop."""

    async def take_place(self, tell: Callable[[], None] | None = None) -> None:
        if not self.full:
            return
        if tell is None:
            raise HubFull("This hub is full")
        tell()
        await self.pause()

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._thread(method, lambda: getattr(self, method)(*args, **kwargs))

    async def run(self, work: Callable[[Any], Any]) -> Any:
        return await self._thread("run", lambda: work(lambda method, *a, **k: getattr(self, method)(*a, **k)))

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

    async def pull_image(self, image: str, tell: Callable[[str], None]) -> dict[str, Any]:
        for news in self.news:
            tell(news)
        return dict(await self.call("inspect_image", image))

    def inspect_image(self, image: str) -> dict[str, Any]:
        return {"Id": image, **self.image}

    async def home_machine(self, image: dict[str, Any]) -> str:
        return self.home

    async def plan_container(
        self, job: LaunchJob, image: dict[str, Any], patch: ContainerPatch | None
    ) -> ContainerPlan:
        await self.pause()
        labels = {**job.owner.labels(), **(patch.labels if patch else {})}
        return ContainerPlan(
            {"name": job.name, "labels": labels, "command": ["jupyterhub-singleuser"]}, {}, ()
        )

    async def create_container(self, plan: ContainerPlan) -> str:
        def create() -> str:
            name = plan.create["name"]
            if name in self.containers:
                raise EngineFault("name in use", 409)
            self.containers[name] = {
                "Id": f"id-{len(self.calls)}",
                "Config": {"Labels": plan.create["labels"]},
                "State": {"Running": False, "ExitCode": 0},
                "NetworkSettings": {"Networks": {"gpuspawner": {"IPAddress": "10.213.0.2"}}},
            }
            return str(self.containers[name]["Id"])

        return str(await self._thread("create", create))

    def _by_name(self, key: str) -> tuple[str, dict[str, Any]]:
        for name, container in self.containers.items():
            if key in (name, container["Id"]):
                return name, container
        raise EngineFault("no such container", 404)

    def start(self, key: str) -> None:
        self._by_name(key)[1]["State"] = {"Running": not self.dies, "ExitCode": self.exit_code}

    def inspect_container(self, key: str) -> dict[str, Any]:
        return self._by_name(key)[1]

    def remove_container(self, key: str, **_: Any) -> None:
        del self.containers[self._by_name(key)[0]]

    def logs(self, key: str, **_: Any) -> bytes:
        return b"hello\ntoken=s3cret\n"

    def inspect_network(self, name: str) -> dict[str, Any]:
        if name not in self.networks:
            raise EngineFault(f"network {name} not found", 404)
        return {"IPAM": {"Config": [{"Subnet": NETWORK.subnet}]}, "Containers": {}}

    def create_network(self, **wanted: Any) -> None:
        self.networks.append(wanted["name"])


class Engine(DockerEngine):
    """The hub's own access to Docker, on top of that one."""

    def __init__(self, docker: Docker) -> None:
        self._docker = docker

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._docker.call(method, *args, **kwargs)

    async def run(self, work: Callable[[Any], Any]) -> Any:
        return await self._docker.run(work)


@dataclass
class Broker:
    """Remembers holds, confirmations and releases."""

    pause: Callable[[], Coroutine[Any, Any, None]] = lambda: asyncio.sleep(0)
    held: int = 0
    asked: GpuRequest | None = None
    confirmed: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    refusal: GpuSpawnerError | None = None
    refusals: list[Refusal] = field(default_factory=list)
    lost: Refusal | None = None
    machine: list[dict[str, Any] | Refusal] = field(default_factory=list)
    """What `tiers` answers, one after the other."""

    async def tiers(self) -> dict[str, Any]:
        await self.pause()
        answer = self.machine.pop(0)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    @asynccontextmanager
    async def acquire(self, request: GpuRequest, on_queued: Any) -> AsyncIterator[Grant]:
        self.held += 1
        self.asked = request
        try:
            until = datetime(2026, 3, 2, 12, 40, tzinfo=UTC)
            on_queued(QueuedEvent(position=2, waiting=2, message="2nd in line for a GPU", ends_at=until))
            await self.pause()
            on_queued(QueuedEvent(position=1, waiting=1, message="1st in line for a GPU"))
            await self.pause()
            if self.refusal:
                raise self.refusal
            yield Grant(
                LEASE,
                ContainerPatch(env={"GPUSPAWNER_SIMULATED": "1"}, labels={"gpuspawner.lease": LEASE.id}),
                self.lost,
            )
        finally:
            self.held -= 1

    async def confirm(self, lease_id: str) -> None:
        await self.pause()
        if self.refusals:
            raise self.refusals.pop(0)
        self.confirmed.append(lease_id)

    async def may_end(self, lease_id: str) -> bool:
        return True

    async def release(self, lease_id: str) -> None:
        self.released.append(lease_id)


def make(docker: Docker, broker: Broker, job: LaunchJob = JOB) -> tuple[Launch, Progress]:
    progress = Progress()
    shared = HubShared(Engine(docker), broker, Pulls(docker.log), docker.slots, docker.log)  # type: ignore[arg-type]
    engine = Containers(shared.docker, NETWORK, "1000:100")
    return Launch(job, docker, engine, shared, progress), progress
