"""One start of one server, step by step, and the clean-up after a start that fails.

A start may be cancelled at any await: by its user, by the hub's timeout, by the hub's end. Docker
calls can't be cancelled: their thread keeps running. So the start remembers each call that changes
something, and the clean-up waits for that call before it removes its result.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from ..core.errors import BrokerUnavailable, EngineFault, ImageUnfit, LeaseConflict, Refusal, StartFault
from ..core.image_needs import Needs, obstacle, read_machine, read_needs
from ..core.labels import Owner
from ..core.model import ContainerPatch, GpuRequest, Lease, Mode, Tier
from ..core.units import format_time
from ..protocol.client import BrokerClient, Grant
from ..protocol.messages import QueuedEvent
from .container import ContainerPlan
from .docker_answers import (
    NOT_RUN,
    exit_code,
    exit_status,
    network_is_full,
    running,
    unable_to_run,
    unmet_condition,
)
from .engine import LabEngine
from .engine_words import home_fault
from .images import image_missing
from .progress import WITHOUT_GPU, Progress, Step
from .pull_progress import PullNews
from .readiness import Answer, Pace, ask
from .shared import HubShared
from .tasks import all_or_none

RETRY_SECONDS = 1.0
"""Pause between clean-up attempts while Docker doesn't answer."""
_NOUNS = {Mode.SLICE: "slice of a GPU", Mode.MIG: "MIG instance", Mode.TURNS: "GPU in turns"}
_LOOK_SECONDS = 1.0
"""How often a start checks that its container still runs, while it waits for the server's answer."""
_END_SECONDS = 90.0
"""80 GiB sleep in 50 s."""
_END_LOOK_SECONDS = 0.5
_RELEASE_SECONDS = 2.0
CONFIRM_SECONDS = 10.0
"""A start waits this long for a broker that restarts, like the client with its hold."""
WAITING_ADVICE = (
    "Your server starts automatically when it is your turn; you can close this page. If you need a server "
    "now, cancel this start and choose CPU. The GPU page, under Services, shows how many GPUs are free."
)
NO_PLACE = (
    "Your GPU is reserved, but this hub already runs as many servers as it may. Yours starts automatically "
    "when somebody stops a server."
)
_CONFIRM_PAUSE_SECONDS = 0.1
_JUPYTER = re.compile("jupyter|lab|notebook|singleuser", re.IGNORECASE)
"""Names of commands that start a server."""


class LaunchSteps(Protocol):
    """The steps of a start that depend on the spawner's settings; a site's subclass may change them."""

    async def take_place(self, tell: Callable[[], None] | None = None) -> None:
        """Takes one of the hub's places. With `tell` it waits for one, and calls it if it has to.

        Raises HubFull without `tell`, if none is free.
        """
        ...

    async def pull_image(self, image: str, tell: Callable[[str], None]) -> dict[str, Any]:
        """Docker's document of the image, pulled if the policy says so. Raises StartFault, EngineFault."""
        ...

    async def home_machine(self, image: dict[str, Any]) -> str:
        """The only machine where the server can run, because the user's files are there; "" if any will do.

        Raises EngineFault, ConfigError; StartConflict while they are moved to another machine.
        """
        ...

    async def plan_container(
        self, job: LaunchJob, image: dict[str, Any], patch: ContainerPatch | None
    ) -> ContainerPlan:
        """The container to create. Raises ConfigError."""
        ...

    async def create_container(self, plan: ContainerPlan) -> str:
        """Creates it and returns its id. Raises EngineFault, ConfigError."""
        ...


@dataclass(frozen=True, slots=True)
class LaunchJob:
    """The server to start. `request` is None for a tier without a GPU. `secret` never appears in logs."""

    name: str
    owner: Owner
    tier: Tier
    image: str
    api_path: str
    http_timeout_seconds: float
    request: GpuRequest | None = None
    secret: str = ""


class Launch:
    """The steps of one start: lease, image, container, confirmation, start, first answer."""

    pace = Pace()
    """Shared by all starts of the process."""

    def __init__(
        self, job: LaunchJob, steps: LaunchSteps, engine: LabEngine, shared: HubShared, progress: Progress
    ) -> None:
        self.job = job
        self.lease: Lease | None = None
        self.container_id = ""
        self._command = ""
        self._plan: ContainerPlan | None = None
        self._grant: Grant | None = None
        self._first_place: tuple[int, datetime] | None = None
        self._steps = steps
        self._engine = engine
        self._shared = shared
        self._broker = shared.broker
        self._progress = progress
        self._changes: list[asyncio.Task[Any]] = []

    async def run(self) -> tuple[str, int]:
        """Starts the server; returns its address. Raises Refusal, StartFault, EngineFault, ConfigError.

        If this raises or is cancelled, the caller must call `give_back`.
        """
        job = self.job
        # Before the queue: a user shouldn't wait for a GPU and only then learn that there is no image.
        if job.request is None:
            await self._steps.take_place()
        self._progress.begin(tuple(Step) if job.request else WITHOUT_GPU)
        pull = self._steps.pull_image(job.image, self._say_pull)
        image, _ = await all_or_none(pull, self._remove_leftover())
        needs = read_needs(image)
        known = await self._check_needs(needs)
        if job.request is None:
            return await self._launch(image, None)
        self._progress.say(5, "Asking for a GPU", Step.GPU)
        home = await self._steps.home_machine(image)
        want = replace(job.request.want, node=home or None)
        request = replace(job.request, want=want, image=str(image.get("Id") or ""))
        async with self._broker.acquire(request, self._say_queued) as grant:
            self._grant, self.lease = grant, grant.lease
            self._say_granted(grant.lease, grant.patch)
            await self._steps.take_place(self._say_no_place)
            if not known:
                await self._check_needs(needs)
            return await self._launch(image, grant.patch)

    async def _check_needs(self, needs: Needs) -> bool:
        """Asks the broker for its machine; returns whether it answered. Raises ImageUnfit.

        If the broker is restarting, the lease request waits for it; then the caller asks again.
        """
        gpu = self.job.request is not None
        document = None
        if gpu and needs:
            with suppress(BrokerUnavailable):
                document = await self._broker.tiers()
        if why := obstacle(self.job.image, needs, gpu, read_machine(document)):
            raise ImageUnfit(why)
        return document is not None or not (gpu and needs)

    async def give_back(self) -> None:
        """Removes the container, if there may be one, and tells the broker. Retries until this is done."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        warned = False
        while self._changes:
            try:
                await self._remove_ours()
                break
            except EngineFault as fault:
                if not warned:
                    self._log(logging.WARNING, "Can't clean up after a start yet, retrying: %s", fault)
                warned = True
            await asyncio.sleep(RETRY_SECONDS)
        if self.lease is not None:
            await release(self._broker, self.lease.id)

    async def _launch(self, image: dict[str, Any], patch: ContainerPatch | None) -> tuple[str, int]:
        self._progress.enter(Step.CONTAINER)
        plan = await self._steps.plan_container(self.job, image, patch)
        if self.lease is not None:
            plan = replace(plan, node=self.lease.node)
        self._plan = plan
        self._command = str((plan.create.get("command") or [""])[0])
        await self._create(plan)
        self._progress.say(40, "Container created", Step.CONTAINER)
        if self._shared.slots.taken:
            self._progress.say(45, "Waiting for other servers that are starting", Step.CONTAINER)
        async with self._shared.slots.one():
            return await self._come_up()

    async def _come_up(self) -> tuple[str, int]:
        await self._confirm()
        await self._start()
        container = await self._inspect_running()
        address = self._engine.address_of(container)
        self._progress.say(60, "Container started: waiting for the server's first answer", Step.SERVER)
        await self._wait_answer(address)
        self._progress.say(95, "The server answers", Step.SERVER)
        return address

    async def _confirm(self) -> None:
        """Confirms the lease; after this, the device counts as in use. Raises Refusal.

        If the broker is restarting, this waits for it, and until the hold is restored: without a hold, the
        new broker answers LeaseConflict.
        """
        if self._grant is None:
            return
        loop = asyncio.get_running_loop()
        deadline, broken = loop.time() + CONFIRM_SECONDS, False
        while True:
            try:
                await self._broker.confirm(self._grant.lease.id)
                return
            except (BrokerUnavailable, LeaseConflict) as refusal:
                broken = broken or isinstance(refusal, BrokerUnavailable)
                if self._grant.lost is not None or not broken or loop.time() > deadline:
                    raise
            await asyncio.sleep(_CONFIRM_PAUSE_SECONDS)

    def _say_pull(self, news: str) -> None:
        percent = news.percent if isinstance(news, PullNews) else None
        self._progress.say(2, news, Step.IMAGE, part_percent=percent)

    def _say_queued(self, place: QueuedEvent) -> None:
        if self._first_place is None:
            self._first_place = (place.position, datetime.now(UTC))
        first, since = self._first_place
        queue = {
            "position": place.position,
            "waiting": place.waiting,
            "earliest_at": _iso(place.earliest_at),
            "latest_at": _iso(place.latest_at),
            "ends_at": _iso(place.ends_at),
            "first_position": first,
            "since": _iso(since),
        }
        self._progress.say(10, place.message, Step.GPU, _advice(place.ends_at), queue=queue)
        self._log(logging.INFO, "Waiting for a device: place %s of %s", place.position, place.waiting)

    def _say_granted(self, lease: Lease, patch: ContainerPatch) -> None:
        kind = _NOUNS.get(lease.mode, "GPU")
        kind = f"simulated {kind}" if patch.env.get("GPUSPAWNER_SIMULATED") else kind
        count = 1 if lease.mode is Mode.TURNS else len(lease.device_uuids)
        self._progress.say(25, f"{count} {kind}{'' if count == 1 else 's'} reserved for you", Step.GPU)
        self._log(logging.INFO, "Lease reserved")

    def _say_no_place(self) -> None:
        self._progress.say(26, NO_PLACE, Step.GPU)
        self._log(logging.INFO, "Waiting for a place: c.JupyterHub.active_server_limit is reached")

    async def _remove_leftover(self) -> None:
        """Removes a container with our name that an earlier start of this server left."""
        if await self._remove_ours():
            self._log(logging.WARNING, "Removed a container that should have been gone")

    async def _remove_ours(self) -> bool:
        """Removes the container with our name. Raises StartFault if it doesn't belong to this server."""
        container = await self._engine.find(self.job.name)
        if container is None:
            return False
        if not self.job.owner.owns(container.get("Config", {}).get("Labels")):
            raise StartFault(
                f"Another container has the name {self.job.name}, and it doesn't belong to this server. "
                "Admin: if another hub on this machine started it, give this hub its own names "
                "(GPUSPAWNER_NAME; c.GpuDockerSpawner.hub_id and prefix); else remove it "
                f"(`docker rm -f {self.job.name}`).",
                "name_taken",
            )
        await self._engine.remove(container["Id"])
        return True

    async def _create(self, plan: ContainerPlan) -> None:
        try:
            self.container_id = await self._change(self._steps.create_container(plan))
        except EngineFault as fault:
            if fault.status == 404 and "no such image" in str(fault).lower():
                raise image_missing(self.job.image) from fault
            if fault.status != 409:
                raise
            await self._remove_leftover()  # it was still being created when we checked
            self.container_id = await self._change(self._steps.create_container(plan))
        self._log(logging.INFO, "Container created from image %s", self.job.image)

    async def _start(self) -> None:
        try:
            await self._change(self._engine.start(self.container_id))
        except EngineFault as fault:
            if (reason := unable_to_run(str(fault))) is not None:
                raise no_server(self.job.image, self._command, reason) from fault
            if (condition := unmet_condition(str(fault))) is not None:
                raise ImageUnfit(
                    f"{self.job.image} needs {condition} of the driver, which this machine doesn't have: "
                    "choose another image, or a server without a GPU. Admin: update the driver."
                ) from fault
            if network_is_full(fault):
                raise StartFault(
                    "All addresses of the labs' network are in use, so no more servers can run. Try again "
                    "when somebody has stopped their server. Admin: set a larger c.GpuDockerSpawner.subnet.",
                    "addresses",
                ) from fault
            if not await self._change(self._repair(fault)):
                raise
            await self._change(self._engine.start(self.container_id))
        self._log(logging.INFO, "Container started")

    async def _repair(self, fault: EngineFault) -> bool:
        done = await self._engine.repair(fault, self.container_id)
        if done:
            self._log(logging.WARNING, "%s: %s", done, fault)
        return bool(done)

    async def _change(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Awaits a call that changes something. If we are cancelled, the call continues and is remembered."""
        task = asyncio.ensure_future(call)
        self._changes.append(task)
        return await asyncio.shield(task)

    async def _inspect_running(self) -> dict[str, Any]:
        container = await self._engine.find(self.container_id)
        if container is None:
            raise StartFault("The server's container was removed while it was starting.", "exited")
        if not running(container):
            lines = await self._engine.log_tail(self.container_id, self.job.secret)
            if exit_code(container) in NOT_RUN:
                raise no_server(self.job.image, self._command, lines)
            if why := self._home_fault(lines):
                raise StartFault(why, "home")
            raise StartFault(
                f"The server stopped while it was starting ({exit_status(container)}).", "exited", lines
            )
        return container

    def _home_fault(self, lines: str) -> str:
        if self._plan is None:
            return ""
        user = str(self._plan.create.get("user", ""))
        return home_fault(lines, self._plan.home, user, self.job.image)

    async def _wait_answer(self, address: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        look_at = begun + _LOOK_SECONDS
        with self.pace as pace:
            while (answer := await ask(*address, self.job.api_path)) is not Answer.READY:
                now = loop.time()
                if now >= look_at or answer is Answer.SILENT:
                    with suppress(EngineFault):  # an unknown state doesn't count as gone
                        await self._inspect_running()
                    look_at = now + _LOOK_SECONDS
                if now - begun > self.job.http_timeout_seconds:
                    raise await self._no_answer()
                await asyncio.sleep(pace.seconds)
        self._log(logging.INFO, "The server answers after %.2f s", loop.time() - begun)

    async def _no_answer(self) -> StartFault:
        lines = await self._engine.log_tail(self.container_id, self.job.secret)
        seconds = f"{self.job.http_timeout_seconds:.0f} seconds"
        said = f"The container started, but the server in it didn't answer within {seconds}."
        if not _JUPYTER.search(self._command):
            said += f" The image starts {self._command!r}, which may not be a server for JupyterHub."
        else:
            said += " Try again first; if it fails again, choose another image or ask your admin."
        return StartFault(said, "timeout", lines)

    def _log(self, level: int, message: str, *args: object) -> None:
        devices = ",".join(self.lease.device_uuids) if self.lease else "-"
        request = self.job.request
        self._shared.log.log(
            level,
            message + " user=%s server=%s lease=%s devices=%s container=%s",
            *args,
            self.job.owner.user,
            self.job.owner.server,
            request.lease_id if request else "-",
            devices,
            self.container_id[:12] or "-",
        )


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


async def before_stop(broker: BrokerClient, lease_id: str) -> None:
    """Waits until the container may be stopped, for a limited time; a broker that doesn't answer says yes.

    In turns, with drivers that hang when a program is killed that was woken, it is put to sleep first.
    """

    with suppress(Refusal, TimeoutError):
        for _ in range(round(_END_SECONDS / _END_LOOK_SECONDS)):
            async with asyncio.timeout(_RELEASE_SECONDS):
                if await broker.may_end(lease_id):
                    return
            await asyncio.sleep(_END_LOOK_SECONDS)


async def release(broker: BrokerClient, lease_id: str) -> None:
    """Tells the broker that the server is gone. Errors are ignored: Docker also tells the broker."""
    with suppress(Refusal, TimeoutError):
        async with asyncio.timeout(_RELEASE_SECONDS):
            await broker.release(lease_id)


async def exit_code_of_gone(broker: BrokerClient, lease_id: str) -> int | None:
    """How a container with a lease ended that is gone: the broker removes it to free its GPU."""
    with suppress(Refusal, TimeoutError):
        async with asyncio.timeout(_RELEASE_SECONDS):
            return await broker.exit_code(lease_id)
    return None


def no_server(image: str, command: str, message: str) -> StartFault:
    """The message for an image that can't run its server's command, probably because it lacks it."""
    said = f" Docker says: {' / '.join(message.splitlines())[:300]}" if message else ""
    return StartFault(
        f"The image {image} can't start a server here: it can't run {command or 'its command'}. "
        "Choose another one, like the Jupyter docker-stacks; to use this one, build an image on top of it "
        f"with 'pip install jupyterhub jupyterlab'.{said}",
        "no_server",
    )


def _advice(ends_at: datetime | None) -> str:
    """What somebody who waits may do, and until when the wait lasts."""
    if ends_at is None:
        return WAITING_ADVICE
    return (
        f"{WAITING_ADVICE} If no GPU is free by {format_time(ends_at)}, the wait ends and the server doesn't "
        "start."
    )
