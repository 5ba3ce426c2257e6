"""GpuDockerSpawner: a DockerSpawner whose containers get a GPU only with a lease from the broker.

This file has the methods that the hub calls; `settings` has the settings. `offer` and `form` make the spawn
page, `options` reads what comes back, `launch` is one start, `container` makes Docker's arguments, `lab`
finds and ends the container, `next_steps` is what a user can do after an error, `shared` has the objects
that all spawners of a hub share: `docker`, `pulls` and the broker's client.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, proxy, ref

from jupyterhub.spawner import SpawnException
from jupyterhub.utils import fmt_ip_url, maybe_future, url_escape_path, url_path_join, utcnow
from tornado.web import HTTPError
from traitlets import default

from ..config.lab import GpuLab, active_servers
from ..config.site import GpuSite
from ..config.swarm import GpuSwarm
from ..core import labels
from ..core.errors import (
    BadOption,
    ConfigError,
    EngineFault,
    GpuSpawnerError,
    Refusal,
    StartConflict,
    StartFault,
)
from ..core.image_reference import AllowedImages, allow_images
from ..core.labels import Owner
from ..core.limits import Machine, limits_of
from ..core.model import ContainerPatch, GpuRequest, Tier
from ..protocol.rules import WhoAsks
from . import offer, quota
from .container import ContainerFacts, ContainerPlan, plan, server_command
from .containers import Containers
from .cut_off import connect_again
from .docker import DockerEngine
from .docker_answers import KILLED, exit_status, exit_words, running
from .engine import LabEngine
from .form import has_choice, render_form, render_unusable
from .home import Home, find_home
from .images import Images
from .kernels import KernelReporter, token_of
from .lab import Lab
from .lab_facts import Configured, ask_machine, configured_limits, limits_env, volumes_of
from .launch import Launch, LaunchJob, before_stop, exit_code_of_gone, release
from .metrics import phase_passed
from .names import check_names, oauth_client_of, usable_groups
from .network import LabNetwork, Reach
from .next_steps import NextSteps
from .offer import Menu
from .options import Choice, parse_form, parse_options, parse_query, refill
from .other_hub import state_folder
from .pages import StartView, render_failure, view_start
from .places import count_held
from .problem import describe
from .progress import Progress
from .pulls import PullLimits, Tell
from .quiet import NotStarted
from .readiness import Answer, ask
from .settings import SpawnerSettings
from .shared import HubShared, SharedSettings, shared_by_all
from .site_values import evaluate, of_site
from .stored_options import commit, keep_options, last_options
from .subclass import check_steps
from .swarm.opening import HubPlace, hub_url, open_services
from .swarm.services import Services

_STOP_GRACE_SECONDS = 10
_STILL_ENDING = "The last start of this server is still being cancelled: try again in a few seconds."
CHECK_SECONDS = 0.5
_PULL_SECONDS = 900.0
"""A start waits this long for a pull. After that, the pull continues, and the next start joins it."""
_SPARE_SECONDS = 120.0
"""Time for the other steps of a start: remove a leftover container, create, start."""


class GpuDockerSpawner(SpawnerSettings):
    """Starts each user's server in its own container, with GPUs by lease. Entry point `gpu-docker`.

    Hub and broker share the settings of `c.GpuSite`; DockerSpawner's settings work here too.
    """

    _machines: ClassVar[WeakKeyDictionary[DockerEngine, Machine]] = WeakKeyDictionary()
    _services: ClassVar[WeakKeyDictionary[DockerEngine, Services]] = WeakKeyDictionary()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raises TypeError for a site's subclass that overrides a step which isn't called here."""
        super().__init_subclass__(**kwargs)
        check_steps(cls, GpuDockerSpawner)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The hub makes another spawner after a start that was cancelled. One that refers to itself would stay
        # until the hub's next full garbage collection (`collection.py`).
        self.site = GpuSite(parent=proxy(self))
        self.lab_settings = GpuLab(parent=proxy(self))
        self._general_limits = self._limits_now
        self._overridden: set[str] = set()
        if self.oauth_client_id:  # the hub gave one
            self.oauth_client_id = oauth_client_of(self.user.name, self.name)
        self.lease_id = ""
        self._site_image = ""
        self._refused_form: object = None
        self._progress = Progress(phase_passed)
        self.has_place = False
        """Whether its start counts towards the hub's `active_server_limit`."""
        self._starting = False
        self._awaits_stop = False
        """Whether the hub has cancelled a start, and not stopped the server since."""
        self._ended = ""
        self._exit_status: int | str = 0
        self._doubted = False
        self._kernels = KernelReporter()
        self._reconnection: asyncio.Task[None] | None = None
        longest = self.site.longest_queue_timeout() + self.http_timeout + _PULL_SECONDS + _SPARE_SECONDS
        if self.start_timeout < longest:
            self.start_timeout = int(longest)

    # ---- its objects

    @cached_property
    def shared(self) -> HubShared:
        """The objects that all spawners of the hub share."""
        settings = SharedSettings(
            socket_path=self.site.socket_path,
            client_kwargs=self.client_kwargs,
            tls_config=self.tls_config,
            starts_at_once=self.starts_at_once,
            pulls=PullLimits(self.pulls_at_once, self.pulls_by_user, self.pull_unattended),
        )
        return shared_by_all(settings, self.log)

    @property
    def client(self) -> Any:
        """docker-py's client, as in DockerSpawner; its calls block."""
        return self.shared.docker.client()

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of docker-py's client by name, as in DockerSpawner. Raises EngineFault."""
        return await self.shared.docker.call(method, *args, **kwargs)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The site's tiers. Raises ConfigError."""
        return self.site.parsed_tiers()

    @property
    def lab_network(self) -> LabNetwork:
        """The labs' network, and how to reach a server on it."""
        reach = Reach.ADDRESS if self.use_internal_ip else Reach.PUBLISHED
        if self.use_internal_hostname:
            reach = Reach.HOSTNAME
        return LabNetwork(self.network_name, self.subnet, self.port, reach)

    @property
    def engine(self) -> LabEngine:
        """What runs the labs."""
        docker = self.shared.docker
        if self.site.engine != "swarm":
            return Containers(docker, self.lab_network, self.container_user)
        if docker not in self._services:
            self._services[docker] = open_services(self._place(), GpuSwarm(parent=self), docker, self.log)
        return self._services[docker]

    def _place(self) -> HubPlace:
        """Where the hub is, for the labs of a Swarm."""
        return HubPlace(
            hub_id=self.hub_id,
            network=self.network_name,
            subnet=self.subnet,
            image=self._site_image or self.image,
            lab_port=self.port,
            hub_port=urlsplit(self.hub.api_url).port or 80,
        )

    @default("hub_connect_url")
    def _hub_connect_url_default(self) -> str | None:
        """Where labs reach the hub's API; None: as JupyterHub has it."""
        return hub_url(self._place()) if self.site.engine == "swarm" else None

    @property
    def lab(self) -> Lab:
        """This server's lab, which may not exist."""
        return Lab(self.object_name, self._owner(), self.engine, self.shared.removals, self._note)

    def _owner(self, tier: Tier | None = None) -> Owner:
        folder = state_folder(self.site.state_dir)
        return Owner(self.hub_id, self.user.name, self.name, tier.name if tier else "", folder)

    # ---- the spawn page and its form data

    @default("options_form")
    def _options_form_default(self) -> Callable[..., Any]:
        return type(self)._render_options_form

    @default("options_from_form")
    def _options_from_form_default(self) -> Callable[..., Any]:
        return _OwnForm(self)

    @default("apply_user_options")
    def _apply_user_options_default(self) -> Callable[..., None]:
        # start() reads and validates the options; without this, the hub warns that nobody does.
        return _leave_options

    async def _render_options_form(self) -> str:
        """The form: the tiers with what is free now, or a message if the settings are invalid.

        "" if there is nothing to choose: the hub then starts the server at once, so that links to it work.
        """
        try:
            menu = Menu(self.tiers, self.image, self.offered_images(), await self._limit_sentences())
            who = self._who().model_copy(update={"node": await self._home_machine_or_none()})
            offered = await offer.look(menu, self.shared, who)
        except BadOption as refusal:  # of the names: there is nothing to choose
            return render_unusable(refusal.message)
        except ConfigError as error:
            self._note(logging.ERROR, "The spawn page can't offer anything: %s", error)
            return render_unusable(describe(error).message)
        # A refused choice is shown once more, so that the user can correct it; else the last start's.
        refused, self._refused_form = self._refused_form, None
        if refused is None and not has_choice(offered):
            return ""
        filled = refill(last_options(self) if refused is None else refused)
        return render_form(offered, filled, self._shown_name)

    @property
    def _shown_name(self) -> str:
        """The server's name as its user typed it; "" for the default server."""
        typed = getattr(self, "display_name", "")  # JupyterHub 5 has none
        return str(typed or self.name) if self.name else ""

    async def _limit_sentences(self) -> dict[str, str]:
        """By tier name, what a lab may use besides its GPU.

        Empty where that is decided only at the start (group overrides, a callable), or if Docker is silent.
        """
        extra_host = self.extra_host_config
        if self.group_overrides or callable(extra_host):
            return {}
        try:
            async with asyncio.timeout(offer.LABELS_SECONDS):
                machine = await self._machine()
        except (EngineFault, TimeoutError):
            return {}
        rules = self.lab_settings.rules(self.site.state_dir)
        own = self._limits_now
        return {
            tier.name: limits_of(configured_limits(tier, own, own, extra_host), rules, machine).sentence()
            for tier in self.tiers
        }

    def read_form(self, form: Any) -> dict[str, Any]:
        """Form data as `user_options`; a refusal is shown above the form."""
        return self._read(parse_form, form)

    def _read(self, parse: Callable[..., Choice], form: Any) -> dict[str, Any]:
        try:
            return parse(form, self.tiers, self.offered_images()).as_options()
        except (BadOption, ConfigError) as error:
            self._refused_form = form
            raise self._exception(error) from None

    def options_from_query(self, query_data: Any) -> Any:
        """The query of the spawn page's address, as `user_options`."""
        if self._site_reads_form:
            return self.options_from_form(query_data)
        return self._read(parse_query, query_data)

    @property
    def _site_reads_form(self) -> bool:
        """Whether the site has its own `options_from_form`; we don't check its options."""
        return not isinstance(self.options_from_form, _OwnForm)

    @property
    def _site_has_options(self) -> bool:
        """Whether the site uses options besides tier and image: it makes or applies them itself."""
        return self._site_reads_form or self.apply_user_options is not _leave_options

    async def check_allowed(self, image: str) -> str:
        """The image for a name of `allowed_images`, as in DockerSpawner. Raises HTTPError 400."""
        images = self.offered_images()
        try:
            return images.find(image)
        except ValueError as problem:
            offer = f": choose {images.offer()}" if images else ""
            raise HTTPError(400, f"The image {image!r} {problem}{offer}") from None

    def offered_images(self) -> AllowedImages:
        """The images that users may choose.

        Raises ConfigError for a callable; values were checked at load.
        """
        return allow_images(of_site(self, "allowed_images"))

    def _choose(self) -> Choice:
        """The choice in `user_options`; its shortest form is stored for the next start and the admin page.

        An invalid choice isn't stored: a start without options then gets the default tier. Raises BadOption.
        """
        try:
            choice = self._parse_stored()
        except BadOption:
            keep_options(self, {})
            raise
        keep_options(self, choice.as_options())
        return choice

    def _parse_stored(self) -> Choice:
        images = self.offered_images()
        return parse_options(self.user_options, self.tiers, images, others=self._site_has_options)

    # ---- start

    async def start(self) -> str:
        """Starts the server and returns its URL once it answers.

        Raises SpawnException, with a sentence for the user, for refusals and faults. After a failure it
        cleans up in the background; `poll` returns None until then, and `stop` waits for it.
        """
        if self._starting or self._awaits_stop:
            raise self._exception(StartConflict(_STILL_ENDING))
        self._starting, self._ended, self.has_place = True, "", False
        self._exit_status = 0
        if self._progress.ended:
            self._progress = Progress(phase_passed)
        launch: Launch | None = None
        done, cancelled = False, ""
        try:
            job = self._make_job(self._choose())
            self.lease_id = job.request.lease_id if job.request else ""
            await quota.check(self.shared.broker, self._who(), job.tier)
            await self.shared.removals.wait(job.name)
            launch = Launch(job, self, self.engine, self.shared, self._progress)
            ip, port = await launch.run()
            self.object_id = launch.container_id
            if self.post_start_cmd:
                await self.post_start_exec()
            done = True
            return self._address_url(ip, port)
        except asyncio.CancelledError:
            self._ended = cancelled = self._why_cancelled()
            self._awaits_stop = True
            raise
        except (Refusal, StartFault, EngineFault, ConfigError) as error:
            raise self._exception(error) from None
        finally:
            if not done:
                self.object_id = ""
                if launch is not None:
                    self.shared.removals.begin(launch.job.name, launch.give_back())
            self._starting, self.has_place = False, done
            self._progress.end(done=done, cancelled=cancelled)

    async def take_place(self, tell: Callable[[], None] | None = None) -> None:
        """Takes one of the hub's places; with `tell` it waits for one. Raises HubFull."""
        limit, places = active_servers(self.config), self.shared.places
        if tell is None:
            places.take(limit, self._held_places)
        else:
            await places.wait(limit, self._held_places, tell)
        self.has_place = True

    def _held_places(self) -> int:
        return count_held(self.handler.users.values()) if self.handler is not None else 0

    def _make_job(self, choice: Choice) -> LaunchJob:
        """The server to start. Until the end, `image` is what was chosen: for names and the site's hooks.

        The container's name is computed again, because the server's may have changed.
        """
        self._site_image = self._site_image or self.image
        self.image = choice.image or choice.tier.image or self._site_image
        self.object_name = self._object_name_default()
        return LaunchJob(
            name=self.object_name,
            owner=self._owner(choice.tier),
            tier=choice.tier,
            image=self.image,
            api_path=url_path_join(self.server.base_url if self.server else "/", "api"),
            http_timeout_seconds=float(self.http_timeout),
            request=self._make_request(choice.tier) if choice.tier.needs_gpu else None,
            secret=self.api_token,
        )

    def _who(self) -> WhoAsks:
        check_names(self.user.name, self.name)
        return quota.who_asks(self.hub_id, self.user.name, self.name, self.user.groups)

    def _make_request(self, tier: Tier) -> GpuRequest:
        groups, others = usable_groups(group.name for group in self.user.groups)
        if others:
            self._note(
                logging.WARNING,
                "The hub's group %s counts for nothing, because no quota can name it: rename it.",
                ", ".join(map(repr, others)),
            )
        return GpuRequest(
            lease_id=uuid.uuid4().hex,
            hub=self.hub_id,
            user=self.user.name,
            server=self.name,
            tier=tier.name,
            want=tier.want,
            groups=groups,
        )

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the steps of the current start, for each browser that shows them; ends with the start."""
        # The page may call this before start() has begun; the hub has a flag, but no event to await.
        while self._progress.ended and self._spawn_pending:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        async for event in self._progress.follow():
            yield event

    # ---- a start that somebody cancels

    @property
    def pending(self) -> str | None:
        """What the hub waits for ("spawn", "stop", "check", "rename"). A cancelled start doesn't count.

        JupyterHub (6.1, `UserServerAPIHandler.delete`) cancels a start, waits for one second, and stops the
        server. If the start is still ending then, as on a busy hub, it would refuse that (500), and later
        take the server for ready although nothing runs. `stop` waits until the start has ended.
        """
        pending: str | None = super().pending
        return None if pending == "spawn" and self._cancelled_start is not None else pending

    @property
    def ready(self) -> bool:
        """Whether the server can be used.

        JupyterHub (6.1) takes a server whose start was cancelled for ready until it is stopped; its mark
        that the start isn't over stays until then.
        """
        return bool(super().ready) and not self._start_pending

    @property
    def _cancelled_start(self) -> asyncio.Task[Any] | None:
        """The hub's task of a start that was cancelled and is still ending.

        It may have ended a moment ago: the hub forgets it in the next round of its loop.
        """
        task = self._spawn_future
        if not isinstance(task, asyncio.Task):
            return None
        return task if (task.cancelled() if task.done() else task.cancelling()) else None

    def _why_cancelled(self) -> str:
        """Why the hub has cancelled the start, as a sentence: it took too long, or somebody asked for it."""
        if isinstance(self._spawn_future, asyncio.Task) and self._cancelled_start is None:
            return f"The server did not start within {self.start_timeout} seconds."
        if self._progress.last.get("queue") is not None:
            return "The start was cancelled, and its place in the queue given up."
        return "The start was cancelled."

    async def pull_image(self, image: str, tell: Tell = lambda news: None) -> dict[str, Any]:
        """Docker's document of the image, pulled first if `pull_policy` says so.

        `tell` gets a sentence at each progress of a pull. Raises StartFault, EngineFault.
        """
        images = Images(
            docker=self.shared.docker,
            pulls=self.shared.pulls,
            policy=self.pull_policy.lower(),
            silence_seconds=self.pull_silence,
            user=self.user.name,
        )
        return await images.fetch(image, tell)

    async def home_machine(self, image: dict[str, Any]) -> str:
        """The only machine where the server can run, because the user's files are there; "" if any will do.

        Raises EngineFault, ConfigError; StartConflict while they are moved to another machine.
        """
        home = self._home_in(image)
        if home is None or not home.volume.of_docker:
            return ""
        return await self.engine.home_machine(home.volume.source)

    async def _home_machine_or_none(self) -> str:
        """As `home_machine`, for the spawn page: "" also if Docker doesn't answer or it is moved."""
        with suppress(EngineFault, StartConflict, TimeoutError):
            async with asyncio.timeout(offer.LABELS_SECONDS):
                return await self.home_machine({})
        return ""

    def _home_in(self, image: dict[str, Any]) -> Home | None:
        """The user's home in a server of this image (Docker's document of it). Raises ConfigError."""
        names, config = (self.user.name, self.escaped_name), image.get("Config") or {}
        folder = str(config.get("WorkingDir") or "")
        return find_home(volumes_of(self), names, folder, self.lab_settings.home)

    async def plan_container(
        self, job: LaunchJob, image: dict[str, Any], patch: ContainerPatch | None
    ) -> ContainerPlan:
        """The container to create, from the settings, the image and the lease. Raises ConfigError."""
        config = image.get("Config") or {}
        machine, extra_host = await self._machine(), await evaluate(self, "extra_host_config")
        rules = self.lab_settings.rules(self.site.state_dir)
        configured = configured_limits(
            job.tier, self._general_limits, self._limits_now, extra_host, self._overridden
        )
        limits = limits_of(configured, rules, machine)
        env = {**self.get_env(), "JUPYTER_IMAGE_SPEC": job.image, "GPUSPAWNER_TIER": job.tier.name}
        facts = ContainerFacts(
            name=job.name,
            image=job.image,
            command=(*(self.cmd or server_command(config.get("Cmd"))), *self.get_args()),
            owner=job.owner,
            env={**env, **limits_env(limits)},
            port=self.port,
            container_user=self.container_user,
            network=self.network_name,
            binds=self.volume_binds,
            home=self._home_in(image),
            mounts=tuple(self.mount_binds),
            links=self.links,
            limits=limits,
            rules=rules,
            machine=machine,
            entrypoint=tuple(config.get("Entrypoint") or ()),
            published_ip=None if self.use_internal_ip or self.use_internal_hostname else self.host_ip,
            extra_create=await evaluate(self, "extra_create_kwargs"),
            extra_host=extra_host,
        )
        planned = plan(facts, patch)
        if planned.dropped:
            self.log.warning(
                "Ignored settings that only a lease may give: %s. Remove them from extra_host_config, "
                "extra_create_kwargs or environment of c.GpuDockerSpawner",
                ", ".join(planned.dropped),
            )
        return planned

    async def apply_group_overrides(self) -> None:
        """As in JupyterHub; notes which settings this user's groups override, also with an equal value."""
        self._overridden.clear()
        await super().apply_group_overrides()

    def _apply_overrides(self, spawner_override: dict[str, Any]) -> None:
        self._overridden |= spawner_override.keys()
        super()._apply_overrides(spawner_override)

    @property
    def _limits_now(self) -> Configured:
        return Configured(self.mem_limit, self.cpu_limit)

    async def _machine(self) -> Machine:
        """The machine that labs share; Docker is asked only once. Raises EngineFault."""
        docker = self.shared.docker
        if docker not in self._machines:
            self._machines[docker] = await ask_machine(docker.call)
        return self._machines[docker]

    async def create_container(self, plan: ContainerPlan) -> str:
        """Creates the container and returns its id. Raises EngineFault, ConfigError."""
        created = await self.engine.create(plan)
        for problem in created.problems:
            self.log.warning("%s container=%s", problem, plan.create["name"])
        return created.lab_id

    # ---- poll, address and stop

    async def get_object(self) -> dict[str, Any] | None:
        """Docker's document of this server's container; None only if Docker says that there is none.

        Raises EngineFault if Docker doesn't answer. (DockerSpawner treats a 500 as "gone".)
        """
        container = await self.lab.find()
        if container is None:
            self.object_id = ""
            return None
        self.object_id = container["Id"]
        self.lease_id = container["Config"]["Labels"].get(labels.LEASE, "")
        return container

    async def poll(self) -> Any:
        """None while it runs, starts or is cleaned up, and while its state is unknown; else how it ended.

        At the hub's start, this waits until Docker or the server itself answers; otherwise the hub would stop
        the server (6.1, check_spawner).
        """
        if self._starting or self._cancelled_start or self.shared.removals.pending(self.object_name):
            return None
        if not self.object_id and not self._check_pending:
            return self._exit_status  # the hub polls again to log how the server ended
        while True:
            try:
                container = await self.get_object()
                break
            except EngineFault as fault:
                self._doubt(fault)
                if not self._check_pending or await self._answers():
                    return None
                await asyncio.sleep(CHECK_SECONDS)
        self._doubted = False
        if container is None:
            code = await exit_code_of_gone(self.shared.broker, self.lease_id) if self.lease_id else None
            return 0 if code is None else self._exited(exit_words(code))
        if not running(container):
            return self._exited(exit_status(container))
        try:
            address = self.engine.address_of(container)
        except ConfigError as error:  # its container was cut from the network: the server itself runs
            self._reconnect(error)
        else:
            self._report_kernels(address, self.api_token or token_of(container))
        return None

    def _exited(self, status: str) -> str:
        """Keeps how the server ended that nobody stopped here, and returns it."""
        how = "was killed" if status == exit_words(KILLED) else "ended by itself"
        self._ended = f"The server {how} ({status})."
        self._exit_status = status
        return status

    def _report_kernels(self, address: tuple[str, int], token: str) -> None:
        """Tells hub and broker, in the background, whether the kernels compute."""
        if self.server is None:
            return
        url = self._address_url(*address) + str(self.server.base_url)
        self._kernels.begin(self.shared.broker, self.lease_id, url, token, self._count_as_active)

    def _count_as_active(self) -> None:
        """A server that computes is active for the hub, too: no culler ends it as idle.

        JupyterHub (6.1) counts requests, and messages of a kernel; a silent computation has neither.
        """
        stored = self.orm_spawner
        if stored is not None:
            stored.last_activity = utcnow(with_tz=False)
            commit(stored)

    def _reconnect(self, error: ConfigError) -> None:
        """Connects the container to the labs' network again, in the background."""
        if self.server is None or (self._reconnection is not None and not self._reconnection.done()):
            return
        work = connect_again(self.engine, self.object_id, self.server.ip, error, self._note)
        self._reconnection = asyncio.create_task(work)

    def _doubt(self, fault: EngineFault) -> None:
        if not self._doubted:
            self._note(
                logging.WARNING, "Docker doesn't answer; assuming that the server still runs: %s", fault
            )
        self._doubted = True

    async def _answers(self) -> bool:
        """Whether the server answers at the hub's stored address.

        Only 200 counts: another lab's path differs.
        """
        server = self.server
        if server is None or not server.ip or not server.port:
            return False
        path = url_path_join(server.base_url, "api")
        return await ask(server.ip, server.port, path, wanted=200) is Answer.READY

    async def get_url(self) -> str:
        """The server's URL, from Docker; from the hub's database while Docker doesn't answer."""
        known: str = self.server.url
        try:
            container = await self.get_object()
        except EngineFault:
            return known
        if container is None or not running(container):
            return known
        try:
            address = self.engine.address_of(container)
        except ConfigError:
            return known  # cut from the network; `poll` connects it again, at this address
        return self._address_url(*address) + str(self.server.base_url)

    def _address_url(self, ip: str, port: int) -> str:
        return f"http://{fmt_ip_url(ip)}:{port}"

    async def stop(self, now: bool = False) -> None:
        """Stops the server and returns when its container is gone. Idempotent.

        While Docker doesn't answer, this keeps trying: a container that may run doesn't count as stopped.
        """
        start = self._cancelled_start
        if start is not None and start is not asyncio.current_task():
            await asyncio.wait([start])
        await self.shared.removals.wait(self.object_name)
        if self.lease_id:
            await before_stop(self.shared.broker, self.lease_id)
        await self.lab.end(1 if now else _STOP_GRACE_SECONDS)
        if self.lease_id:
            await release(self.shared.broker, self.lease_id)
        self._ended = self._ended or "The server was stopped."
        self._note(logging.INFO, "Stopped")
        self.object_id = ""

    async def run_post_stop_hook(self) -> None:
        """Removes a container that ended by itself (the hub calls no `stop` then), then the site's hook."""
        self._awaits_stop = False
        if self.object_id and not self.shared.removals.pending(self.object_name):
            self.lab.remove_later(self.object_id)
        await maybe_future(super().run_post_stop_hook())

    # ---- state in the hub's database

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores container and lease; forgets options whose tier or image is gone from the settings."""
        super().load_state(state)
        self.lease_id = str(state.get("lease_id") or "")
        self._ended = str(state.get("ended") or "")
        if self.server is None and self.user_options:
            try:
                self._parse_stored()
            except (BadOption, ConfigError) as error:
                self._note(logging.INFO, "Forgot the options of the last start: %s", error)
                keep_options(self, {})

    def get_state(self) -> dict[str, Any]:
        """Container and lease, so that a restarted hub finds both; or how the last run ended."""
        state: dict[str, Any] = super().get_state()
        if self.object_id and self.lease_id:
            state["lease_id"] = self.lease_id
        if self._ended and not self.object_id:
            state["ended"] = self._ended
        return state

    def clear_state(self) -> None:
        """Forgets container, lease and what image was chosen."""
        super().clear_state()
        if self._site_image:
            self.image, self._site_image = self._site_image, ""
        self.object_id = ""
        self.lease_id = ""
        self._doubted = False

    def template_namespace(self) -> dict[str, Any]:
        """DockerSpawner's names, but different for server names that differ only in case."""
        names: dict[str, Any] = super().template_namespace()
        names["servername"] = self.escape(self.name)
        return names

    # ---- messages, and what can be done after an error

    def _exception(self, error: GpuSpawnerError) -> SpawnException:
        """An exception with which JupyterHub (6.1) shows a message without a traceback, and counts `reason`.

        It also logs the error: a refusal as INFO, other errors as ERROR with their cause.
        """
        problem = describe(error, self.user.name, self.name)
        if isinstance(error, Refusal):
            self._note(logging.INFO, "Not started: %s", problem.message)
        else:
            admin = f" {problem.admin}" if problem.admin else ""
            self._note(logging.ERROR, "Not started: %s%s (cause: %r)", error, admin, error.__cause__)
        exception = NotStarted(problem.message, reason=problem.reason, status_code=problem.status)
        # JupyterHub's pages show these two (jupyterhub.utils.format_exception).
        html = render_failure(
            problem.sentence or problem.message, problem.log, self.next_steps.after(error, self.user_options)
        )
        vars(exception).update(jupyterhub_message=problem.message, jupyterhub_html_message=html)
        return exception

    @property
    def next_steps(self) -> NextSteps:
        """What the user can do now with this server."""
        plain = None
        with suppress(ConfigError):  # a tier that can't be read is nothing to choose
            plain = next((tier for tier in self.tiers if not tier.needs_gpu), None)
        page = url_path_join(self.hub.base_url, "spawn", self.user.escaped_name)
        # The hub keeps the request that began the start until it has ended; starts by its API lead nowhere.
        next_url = self.handler.get_argument("next", "") if self.handler is not None else ""
        return NextSteps(page, self.name, url_escape_path(self.name), plain, next_url)

    # ---- what our versions of JupyterHub's pages ask for

    @property
    def start_view(self) -> StartView:
        """The present start, for the waiting page."""
        try:
            tier = self._parse_stored().tier
        except (BadOption, ConfigError):
            tier = None
        meanwhile = None
        if tier is not None and tier.needs_gpu:
            names, settings = set(self.user.orm_spawners) - {""}, self.user.settings
            meanwhile = self.next_steps.meanwhile(names, settings)
        return view_start(self._progress, self._shown_name, tier.title if tier else "", meanwhile)

    @property
    def how_it_ended(self) -> str:
        """How the server's last run or start ended, as a sentence; "" if that isn't known."""
        return self._ended

    # ---- logs

    def _note(self, level: int, message: str, *args: object) -> None:
        """Logs a line about this server, with the fields that all such lines have."""
        self.log.log(
            level,
            message + " user=%s server=%s lease=%s devices=- container=%s",
            *args,
            self.user.name,
            self.name,
            self.lease_id or "-",
            (self.object_id or "")[:12] or "-",
        )


class _OwnForm:
    """`options_from_form` where the site has none of its own; it doesn't keep its spawner."""

    def __init__(self, spawner: GpuDockerSpawner) -> None:
        self._spawner = ref(spawner)

    def __call__(self, form: Any) -> dict[str, Any]:
        spawner = self._spawner()
        assert spawner is not None
        return spawner.read_form(form)


def _leave_options(spawner: GpuDockerSpawner, user_options: dict[str, Any]) -> None:
    """Applies nothing."""
