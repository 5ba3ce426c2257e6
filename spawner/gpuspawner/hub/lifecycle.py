"""Start, poll and stop as the hub asks for them. An error from Docker never reads as "not running"."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

from jupyterhub.utils import fmt_ip_url, maybe_future, url_path_join

from ..core import labels
from ..core.errors import ConfigError, EngineFault, Refusal, StartFault
from ..core.labels import Owner
from ..core.model import GpuRequest, Tier
from . import lab_container as engine
from .choice import ChoiceSpawner
from .lab_container import Removals
from .launch import RETRY_SECONDS, Launch, LaunchHost, LaunchJob, release
from .options import Choice
from .progress import Progress
from .readiness import Answer, Slots, ask

_STOP_GRACE_SECONDS = 10
_CHECK_SECONDS = 0.5
_PULL_SECONDS = 900.0
"""For so long a start waits for a pull. The pull goes on after that, and the next start joins it."""
_SPARE_SECONDS = 120.0
"""What a start may take beside all that: leftover, create, start."""


class LifecycleSpawner(ChoiceSpawner):
    """A server's life: a `Launch` starts it, Docker says whether it runs, a stop ends when it is gone."""

    hub_id: str
    starts_at_once: int

    _removals: ClassVar[Removals] = Removals()
    _slots: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Slots]] = WeakKeyDictionary()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._progress = Progress()
        self._starting = False
        self._doubted = False
        longest = self.site.queue_timeout + self.http_timeout + _PULL_SECONDS + _SPARE_SECONDS
        if self.start_timeout < longest:
            self.start_timeout = int(longest)

    @property
    def slots(self) -> Slots:
        """How many servers may come up at once; one for the whole hub."""
        loop = asyncio.get_running_loop()
        if loop not in self._slots:
            self._slots[loop] = Slots(self.starts_at_once or (os.cpu_count() or 1) + 1)
        return self._slots[loop]

    async def start(self) -> str:
        """Starts the server and returns its URL once it answers.

        Raises SpawnException, with a sentence for the user, for refusals and faults alike. Whatever
        was begun is given back in the background; `poll` says None until then, and `stop` waits for it.
        """
        self._starting = True
        if self._progress.ended:
            self._progress = Progress()
        launch: Launch | None = None
        done = False
        try:
            job = self._make_job(self._choose())
            self.lease_id = job.request.lease_id if job.request else ""
            await self._removals.wait(job.name)
            launch = Launch(job, cast(LaunchHost, self), self.broker, self._progress)
            ip, port = await launch.run()
            self.object_id = launch.container_id
            if self.post_start_cmd:
                await self.post_start_exec()
            done = True
            return self._address_url(ip, port)
        except (Refusal, StartFault, EngineFault, ConfigError) as problem:
            raise self._sorry(problem) from None
        finally:
            if not done:
                self.object_id = ""
                if launch is not None:
                    self._removals.begin(launch.job.name, launch.give_back())
            self._starting = False
            self._progress.end()

    def _make_job(self, choice: Choice) -> LaunchJob:
        """What is to be started; the container's name is made anew, as the server may have a new one."""
        self.object_name = self._object_name_default()
        return LaunchJob(
            name=self.object_name,
            owner=self._owner(choice.tier),
            tier=choice.tier,
            image=choice.image or choice.tier.image or self.image,
            api_path=url_path_join(self.server.base_url if self.server else "/", "api"),
            http_timeout_seconds=float(self.http_timeout),
            request=self._make_request(choice.tier) if choice.tier.needs_gpu else None,
            secret=self.api_token,
            waits=not self.internal_ssl,
        )

    def _make_request(self, tier: Tier) -> GpuRequest:
        return GpuRequest(
            lease_id=uuid.uuid4().hex,
            hub=self.hub_id,
            user=self.user.name,
            server=self.name,
            tier=tier.name,
            want=tier.want,
            groups=tuple(sorted(group.name for group in self.user.groups)),
        )

    def _owner(self, tier: Tier | None = None) -> Owner:
        return Owner(self.hub_id, self.user.name, self.name, tier.name if tier else "")

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """The steps of the start that is under way, for each browser that watches; ends with it."""
        # The page may ask before start() has begun; the hub's flag has no event to wait for.
        while self._progress.ended and self._spawn_pending:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        async for event in self._progress.follow():
            yield event

    async def get_object(self) -> dict[str, Any] | None:
        """Docker's document of this server's container; None only if Docker says that there is none.

        Raises EngineFault when Docker doesn't say. (DockerSpawner reads a 500 as "gone".)
        """
        container = await engine.inspect(self.docker, self.object_name)
        if container is None or not self._owner().owns(container.get("Config", {}).get("Labels")):
            self.object_id = ""
            return None
        self.object_id = container["Id"]
        self.lease_id = container["Config"]["Labels"].get(labels.LEASE, "")
        return container

    async def poll(self) -> Any:
        """None while it runs, starts, or is being given back, and while nobody knows; else how it ended.

        At the hub's start, a server of which neither Docker nor the server itself says anything is
        asked for until one does: the hub would stop it otherwise (6.1, check_spawner).
        """
        if self._starting or self._removals.pending(self.object_name):
            return None
        if not self.object_id and not self._check_pending:
            return 0
        while True:
            try:
                container = await self.get_object()
                break
            except EngineFault as fault:
                self._doubt(fault)
                if not self._check_pending or await self._answers():
                    return None
                await asyncio.sleep(_CHECK_SECONDS)
        self._doubted = False
        if container is None:
            return 0
        return None if engine.running(container) else engine.exit_status(container)

    def _doubt(self, fault: EngineFault) -> None:
        if not self._doubted:
            self._note(
                logging.WARNING, "Docker doesn't say whether it runs; as far as known it does: %s", fault
            )
        self._doubted = True

    async def _answers(self) -> bool:
        """Whether the server itself answers where the hub's database says. 200: only a lab of this path."""
        server = self.server
        if server is None or not server.ip or not server.port or self.internal_ssl:
            return False
        path = url_path_join(server.base_url, "api")
        return await ask(server.ip, server.port, path, wanted=200) is Answer.READY

    async def get_url(self) -> str:
        """Where the server answers, by Docker; by the hub's database while Docker doesn't say."""
        known: str = self.server.url
        try:
            container = await self.get_object()
        except EngineFault:
            return known
        if container is None or not engine.running(container):
            return known
        url: str = self._address_url(*cast(LaunchHost, self).address_of(container)) + self.server.base_url
        return url

    def _address_url(self, ip: str, port: int) -> str:
        return f"{'https' if self.internal_ssl else 'http'}://{fmt_ip_url(ip)}:{port}"

    async def stop(self, now: bool = False) -> None:
        """Stops the server and returns when its container is gone. Idempotent.

        While Docker doesn't answer this goes on trying: what may be running isn't called stopped.
        """
        await self._removals.wait(self.object_name)
        lease_id = self.lease_id
        doubted = False
        while True:
            try:
                await self._stop_once(1 if now else _STOP_GRACE_SECONDS)
                break
            except EngineFault as fault:
                if not doubted:
                    self._note(logging.WARNING, "Can't stop it yet, trying on: %s", fault)
                doubted = True
            await asyncio.sleep(RETRY_SECONDS)
        if lease_id:
            await release(self.broker, lease_id)
        self._note(logging.INFO, "Stopped")
        self.object_id = ""

    async def _stop_once(self, grace_seconds: int) -> None:
        """Raises EngineFault if it may still run; a dead container that stays is left to the background."""
        container = await self.get_object()
        if container is None:
            return
        if engine.running(container):
            await engine.stop(self.docker, container["Id"], grace_seconds)
        try:
            await engine.remove(self.docker, container["Id"])
        except EngineFault:
            left = await self.get_object()
            if left is not None and engine.running(left):
                raise
            self._remove_later()

    def _remove_later(self) -> None:
        """Takes a container that doesn't run any more away in the background."""
        container_id, docker = self.object_id, self.docker

        async def work() -> None:
            while True:
                try:
                    await engine.remove(docker, container_id)
                    return
                except EngineFault as fault:
                    self.log.warning("Can't remove container %s yet, trying on: %s", container_id[:12], fault)
                await asyncio.sleep(RETRY_SECONDS)

        self._removals.begin(self.object_name, work())

    async def run_post_stop_hook(self) -> None:
        """Removes a container that ended by itself (the hub calls no `stop` then), then the site's hook."""
        if self.object_id and not self._removals.pending(self.object_name):
            self._remove_later()
        await maybe_future(super().run_post_stop_hook())

    def get_state(self) -> dict[str, Any]:
        """Container and lease, so that a restarted hub finds both."""
        state: dict[str, Any] = super().get_state()
        if self.object_id and self.lease_id:
            state["lease_id"] = self.lease_id
        return state

    def clear_state(self) -> None:
        """Forgets container and lease."""
        super().clear_state()
        self.object_id = ""
        self.lease_id = ""
        self._doubted = False

    def template_namespace(self) -> dict[str, Any]:
        """DockerSpawner's, with server names that differ only in case kept apart."""
        names: dict[str, Any] = super().template_namespace()
        names["servername"] = self.escape(self.name)
        return names
