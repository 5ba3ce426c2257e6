"""GpuDockerSpawner: DockerSpawner whose containers have a GPU only through a lease of the broker.

This file has the settings and what the hub calls. `offer` and `form` make the spawn page, `options` reads
what comes back, `launch` is one start, `container` makes Docker's arguments, `lab` finds and ends the
container, `shared` has what all spawners of a hub share: `docker`, `pulls` and the broker's client.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from functools import cached_property
from html import escape
from inspect import isawaitable
from typing import Any

from dockerspawner import DockerSpawner
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import fmt_ip_url, maybe_future, url_escape_path, url_path_join
from sqlalchemy.orm import object_session
from tornado.web import HTTPError
from traitlets import Any as AnyTrait
from traitlets import Bool, Float, Integer, TraitError, Unicode, default, validate

from ..config.site import GpuSite
from ..core import labels
from ..core.errors import (
    BadOption,
    ConfigError,
    EngineFault,
    GpuSpawnerError,
    ImageUnfit,
    Refusal,
    StartFault,
)
from ..core.image_reference import AllowedImages, allow_images, parse_pinned
from ..core.labels import Owner
from ..core.model import ContainerPatch, GpuRequest, Tier
from . import offer
from .container import ContainerFacts, ContainerPlan, home_beside, plan, server_command
from .docker_answers import exit_status, running
from .form import render_form, render_unusable
from .images import Images
from .lab import Lab, create
from .launch import Launch, LaunchJob, release
from .names import escape_name, oauth_client_of
from .network import LabNetwork, Reach, gateway_of
from .options import PROFILE, Choice, parse_form, parse_options, refill
from .problem import describe
from .progress import Progress
from .pulls import PullLimits, Tell
from .readiness import Answer, ask
from .shared import HubShared, SharedSettings, shared_by_all

_STOP_GRACE_SECONDS = 10
CHECK_SECONDS = 0.5
_PULL_SECONDS = 900.0
"""For so long a start waits for a pull. The pull continues after that, and the next start joins it."""
_SPARE_SECONDS = 120.0
"""What a start may take beside all that: leftover, create, start."""


class GpuDockerSpawner(DockerSpawner):
    """Starts each user's server in a container of its own, with GPUs by lease. Entry point `gpu-docker`.

    What hub and broker share is set on `c.GpuSite`; DockerSpawner's settings work here too.
    """

    hub_id = Unicode(
        "hub",
        config=True,
        help="""
        Name of this hub at the broker and on its containers' labels.

        Default: "hub". Two hubs that share a broker or a Docker Engine need two names (and two
        `prefix`): each leaves alone what carries the other's. Keep it: containers that run under an
        old name are no longer this hub's. Example: `c.GpuDockerSpawner.hub_id = "course-a"`
        """,
    )

    container_user = Unicode(
        "1000:100",
        config=True,
        help="""
        User and group id of the processes in the container, "uid:gid".

        Default: 1000:100, as the lab images have it. Never 0: root in a container can stop a GPU's
        MPS daemon, even without capabilities. Example: `c.GpuDockerSpawner.container_user = "1001:100"`
        """,
    )
    remove = Bool(
        True,
        config=True,
        help="""
        Whether a stopped server's container is removed.

        Default: True, and nothing else can be used: a container that is kept would start again with
        devices that another user has by then. What shall last is in the home, a volume of its own.
        Example: none; leave it.
        """,
    )
    starts_at_once = Integer(
        0,
        min=0,
        config=True,
        help="""
        How many containers come up at a time; the others wait in line for their turn.

        Default: 0, one more than this machine has cores. A starting server keeps a core busy for
        seconds: thirty at once make everybody wait for the last, in turns most are ready much sooner.
        A server that is slow gives its turn on after 10 s. Example, for Docker on another machine with
        32 cores: `c.GpuDockerSpawner.starts_at_once = 33`
        """,
    )

    subnet = Unicode(
        "10.213.0.0/20",
        config=True,
        help="""
        Addresses of the labs' own network (`network_name`), in CIDR notation; the host is the first.

        Default: 10.213.0.0/20, 4,092 servers. Used when the network has to be created; Docker refuses
        one that overlaps another network. Example: `c.GpuDockerSpawner.subnet = "172.30.0.0/16"`
        """,
    )

    allowed_images = AnyTrait(
        {},
        config=True,
        help="""
        Images that users may choose beside the tier's own: a list, a dict of shown names to images, or "*".

        An entry with `*` is a pattern, and users may then type a name: the registry is written out, each
        `*` stands for characters within one part, and there is a tag (`:*` for any) or a digest
        (`@sha256:*`). An image without either matches none. "*" alone allows every image. A callable gets
        the spawner and returns one of these. An image needs `jupyterhub-singleuser`; NVIDIA's libraries of
        the driver come with the lease.

        Default: none; each tier has the one image. What isn't allowed is refused with what is.
        Example::

            c.GpuDockerSpawner.allowed_images = [
                "gpuspawner/lab-torch:0.1.0",
                "quay.io/jupyter/*:2026-*",
                "nvcr.io/nvidia/pytorch@sha256:*",
            ]
        """,
    )
    pull_silence = Float(
        300.0,
        min=1.0,
        config=True,
        help="""
        Seconds without a sign of life after which the pull of an image is given up.

        Default: 5 minutes, longer than a big layer takes to be checked. The start ends with a sentence; what
        has come is kept. Example: `c.GpuDockerSpawner.pull_silence = 60`
        """,
    )
    pulls_at_once = Integer(
        6,
        min=1,
        config=True,
        help="""
        How many images are pulled at the same time; further pulls wait in line, and their users are told so.

        Default: 6; the Docker Engine downloads three layers at a time in any case. A pull that nobody waits
        for makes room at once for one that somebody waits for.
        Example: `c.GpuDockerSpawner.pulls_at_once = 2`
        """,
    )
    pulls_by_user = Integer(
        2,
        min=1,
        config=True,
        help="""
        How many of these pulls may be one user's; a further one waits until one of the user's own has ended.

        Default: 2, so that one user can't keep the others from pulling. A pull counts for the first user who
        waits for it, or for the last who left it. Example: `c.GpuDockerSpawner.pulls_by_user = 1`
        """,
    )
    pull_unattended = Float(
        300.0,
        min=0.0,
        config=True,
        help="""
        Seconds after which a pull is given up that nobody waits for any more, because its users stopped or
        cancelled their start.

        Default: 5 minutes: who comes back in time joins the pull. The layers that have come are kept.
        Example: `c.GpuDockerSpawner.pull_unattended = 60`
        """,
    )
    pull_at_start = Bool(
        True,
        config=True,
        help="""
        Whether the images of `image`, of the tiers and of the list `allowed_images` (not what matches its
        patterns) are pulled when the hub starts, as `pull_policy` says: those that are missing
        ("ifnotpresent"), all ("always"), none.

        Default: True, so that the first user of a day doesn't wait for gigabytes. It is done by a service of
        the hub, `python -m gpuspawner.tools.prepull`, in the background: the hub starts without it, and a
        start that needs an image meanwhile joins. What can't be pulled is a warning in the log.
        Example: `c.GpuDockerSpawner.pull_at_start = False`
        """,
    )

    @default("escape")
    def _escape_default(self) -> Callable[[str], str]:
        return escape_name

    @default("prefix")
    def _prefix_default(self) -> str:
        return "gpuspawner"

    @default("network_name")
    def _network_name_default(self) -> str:
        return "gpuspawner"

    @default("use_internal_ip")
    def _use_internal_ip_default(self) -> bool:
        return True

    @default("volumes")
    def _volumes_default(self) -> dict[str, str]:
        return {"{prefix}-home-{username}": "/home/jovyan"}

    @default("http_timeout")
    def _http_timeout_default(self) -> int:
        # Thirty servers that start at once on two cores take more than the hub's 30 s.
        return 120

    @default("poll_interval")
    def _poll_interval_default(self) -> int:
        # Of a server that died the proxy keeps the route until the hub looks; a look is one call to Docker.
        return 10

    @default("progress_ready_hook")
    def _progress_ready_hook_default(self) -> Callable[..., dict[str, Any]]:
        return _ready_event

    @validate("remove")
    def _validate_remove(self, proposal: Any) -> bool:
        if not proposal.value:
            raise TraitError(
                "c.GpuDockerSpawner.remove must stay True: a stopped container that is kept would start "
                "again with devices that another user has by then"
            )
        return True

    @validate("subnet")
    def _validate_subnet(self, proposal: Any) -> str:
        try:
            gateway_of(proposal.value)
        except ConfigError as error:
            raise TraitError(f"c.GpuDockerSpawner.subnet: {error}") from error
        return str(proposal.value)

    @validate("image")
    def _validate_image(self, proposal: Any) -> str:
        try:
            parse_pinned(proposal.value)
        except ValueError as problem:
            raise TraitError(f"c.GpuDockerSpawner.image is {proposal.value!r}: {problem}") from None
        return str(proposal.value)

    @validate("allowed_images")
    def _validate_allowed_images(self, proposal: Any) -> Any:
        """DockerSpawner's, with patterns checked at load. Raises TraitError that names the remedy."""
        if not callable(proposal["value"]):
            try:
                allow_images(proposal["value"])
            except ConfigError as error:
                raise TraitError(str(error)) from error
        return proposal["value"]

    @validate("container_user")
    def _validate_container_user(self, proposal: Any) -> str:
        uid, _, gid = proposal.value.partition(":")
        if not (uid.isdigit() and int(uid) > 0 and gid.isdigit()):
            raise TraitError(
                f"c.GpuDockerSpawner.container_user is {proposal.value!r}: give numbers, "
                'as in "1000:100", and never 0 as the user'
            )
        return str(proposal.value)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.site = GpuSite(parent=self)
        if self.oauth_client_id:  # the hub gave one
            self.oauth_client_id = oauth_client_of(self.user.name, self.name)
        self.lease_id = ""
        self._site_image = ""
        self._refused_form: object = None
        self._progress = Progress()
        self._starting = False
        self._doubted = False
        longest = self.site.queue_timeout + self.http_timeout + _PULL_SECONDS + _SPARE_SECONDS
        if self.start_timeout < longest:
            self.start_timeout = int(longest)

    # ---- what it works with

    @cached_property
    def shared(self) -> HubShared:
        """What all spawners of the hub share."""
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
        """docker-py's client, as DockerSpawner has it; its calls block."""
        return self.shared.docker.client()

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of docker-py's client by name, as DockerSpawner has it. Raises EngineFault."""
        return await self.shared.docker.call(method, *args, **kwargs)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The site's tiers. Raises ConfigError."""
        return self.site.parsed_tiers()

    @property
    def lab_network(self) -> LabNetwork:
        """The network of the labs, and how a server on it is reached."""
        reach = Reach.ADDRESS if self.use_internal_ip else Reach.PUBLISHED
        if self.use_internal_hostname:
            reach = Reach.HOSTNAME
        return LabNetwork(self.network_name, self.subnet, self.port, reach)

    @property
    def lab(self) -> Lab:
        """This server's container, whether or not there is one now."""
        return Lab(self.object_name, self._owner(), self.shared.docker, self.shared.removals, self._note)

    def _owner(self, tier: Tier | None = None) -> Owner:
        return Owner(self.hub_id, self.user.name, self.name, tier.name if tier else "")

    # ---- the spawn page, and what comes back from it

    @default("options_form")
    def _options_form_default(self) -> Callable[..., Any]:
        return type(self)._render_options_form

    @default("options_from_form")
    def _options_from_form_default(self) -> Callable[..., Any]:
        return self._read_form

    @default("apply_user_options")
    def _apply_user_options_default(self) -> Callable[..., None]:
        # start() reads and validates them; this only keeps the hub from warning that nobody does.
        return lambda spawner, user_options: None

    async def _render_options_form(self) -> str:
        """The tiers with what is free now; a sentence if the settings can't be used."""
        try:
            images = self.offered_images()
            cards = await offer.look(self.tiers, self.image, images, self.shared.broker, self.shared.docker)
        except ConfigError as error:
            self._note(logging.ERROR, "The spawn page can't offer anything: %s", error)
            return render_unusable(describe(error).message)
        # What was refused is shown once more, to be corrected; else what the last start had.
        refused, self._refused_form = self._refused_form, None
        return render_form(cards, images, refill(self.user_options if refused is None else refused))

    def _read_form(self, form: Any) -> dict[str, str]:
        """What the form sent, as `user_options`; a refusal is shown above the form."""
        try:
            return parse_form(form, self.tiers, self.offered_images()).as_options()
        except (BadOption, ConfigError) as error:
            self._refused_form = form
            raise self._exception(error) from None

    def options_from_query(self, query_data: Any) -> dict[str, str]:
        """What the address of the spawn page says, as `user_options`."""
        return self._read_form(query_data)

    def offered_images(self) -> AllowedImages:
        """What users may choose. Raises ConfigError (of a callable; a value was checked at load)."""
        return allow_images(self._of_site("allowed_images"))

    def _choose(self) -> Choice:
        """The choice in `user_options`, kept in its shortest form for the next start and the admin page.

        What can't be used isn't kept: a start without options then has the first tier. Raises BadOption.
        """
        try:
            choice = parse_options(self.user_options, self.tiers, self.offered_images())
        except BadOption:
            self._keep_options({})
            raise
        self._keep_options(choice.as_options())
        return choice

    def _keep_options(self, options: dict[str, str]) -> None:
        """Stores them here and in the hub's database; committed, for a request's end rolls back the rest."""
        self.user_options = options
        stored = self.orm_spawner
        if stored is not None and stored.user_options != options:
            stored.user_options = options
            session = object_session(stored)
            if session is not None:
                session.commit()

    # ---- start

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
            await self.shared.removals.wait(job.name)
            launch = Launch(job, self, self.lab_network, self.shared, self._progress)
            ip, port = await launch.run()
            self.object_id = launch.container_id
            if self.post_start_cmd:
                await self.post_start_exec()
            done = True
            return self._address_url(ip, port)
        except (Refusal, StartFault, EngineFault, ConfigError) as error:
            raise self._exception(error) from None
        finally:
            if not done:
                self.object_id = ""
                if launch is not None:
                    self.shared.removals.begin(launch.job.name, launch.give_back())
            self._starting = False
            self._progress.end()

    def _make_job(self, choice: Choice) -> LaunchJob:
        """What is to be started. Until the end, `image` is what was chosen: for names and the site's hooks.

        The container's name is recreated, as the server may have a new one.
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

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """The steps of the start that is under way, for each browser that watches; ends with it."""
        # The page may ask before start() has begun; the hub's flag has no event to wait for.
        while self._progress.ended and self._spawn_pending:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        async for event in self._progress.follow():
            yield event

    async def pull_image(self, image: str, tell: Tell = lambda news: None) -> dict[str, Any]:
        """Docker's document of the image, pulled first if `pull_policy` says so.

        `tell` gets a sentence whenever a pull has news. Raises StartFault, EngineFault.
        """
        images = Images(
            docker=self.shared.docker,
            pulls=self.shared.pulls,
            policy=self.pull_policy.lower(),
            silence_seconds=self.pull_silence,
            user=self.user.name,
        )
        return await images.fetch(image, tell)

    async def plan_container(
        self, job: LaunchJob, image: dict[str, Any], patch: ContainerPatch | None
    ) -> ContainerPlan:
        """The container to create, from the settings, the image and the lease. Raises ConfigError."""
        memory = job.tier.mem_limit_bytes or self.mem_limit
        cores = job.tier.cpu_limit or self.cpu_limit
        env = {**self.get_env(), "JUPYTER_IMAGE_SPEC": job.image, "GPUSPAWNER_TIER": job.tier.name}
        if memory:
            env["MEM_LIMIT"] = str(memory)
        if cores:
            env["CPU_LIMIT"] = str(cores)
        config = image.get("Config") or {}
        command = [*(self.cmd or server_command(config.get("Cmd"))), *self.get_args()]
        facts = ContainerFacts(
            name=job.name,
            image=job.image,
            command=tuple(command),
            owner=job.owner,
            env=env,
            port=self.port,
            container_user=self.container_user,
            network=self.network_name,
            binds=self.volume_binds,
            home=home_beside(str(config.get("WorkingDir") or ""), self.volume_binds),
            mounts=tuple(self.mount_binds),
            links=self.links,
            mem_limit_bytes=memory or None,
            cpu_limit=cores or None,
            published_ip=None if self.use_internal_ip or self.use_internal_hostname else self.host_ip,
            extra_create=await self._evaluate("extra_create_kwargs"),
            extra_host=await self._evaluate("extra_host_config"),
        )
        planned = plan(facts, patch)
        if planned.dropped:
            self.log.warning(
                "Left out what only a lease may give: %s. Remove it from extra_host_config or "
                "extra_create_kwargs of c.GpuDockerSpawner",
                ", ".join(planned.dropped),
            )
        return planned

    async def create_container(self, plan: ContainerPlan) -> str:
        """Creates the container and returns its id. Raises EngineFault, ConfigError."""
        container_id, problem = await create(self.shared.docker, plan, self.lab_network, self.container_user)
        if problem:
            self.log.warning("The home in container %s may not be writable: %s", plan.create["name"], problem)
        return container_id

    async def _evaluate(self, name: str) -> dict[str, Any]:
        """A setting that may be a callable, async or not, with its templates filled in; or ConfigError."""
        value = self._of_site(name)
        try:
            if isawaitable(value):
                value = await value
            rendered: dict[str, Any] = self._render_templates(value)
        except (HTTPError, GpuSpawnerError):
            raise
        except Exception as error:
            raise _failed(name, error) from error
        return rendered

    def _of_site(self, name: str) -> Any:
        """A setting's value, or what it returns if it is a callable. Raises ConfigError if that fails."""
        setting = getattr(self, name)
        try:
            return setting(self) if callable(setting) else setting
        except (HTTPError, GpuSpawnerError):  # the site refuses on purpose
            raise
        except Exception as error:  # it is code of the site: whatever it raises is the site's to fix
            raise _failed(name, error) from error

    # ---- is it running, where, and its end

    async def get_object(self) -> dict[str, Any] | None:
        """Docker's document of this server's container; None only if Docker says that there is none.

        Raises EngineFault when Docker doesn't say. (DockerSpawner reads a 500 as "gone".)
        """
        container = await self.lab.find()
        if container is None:
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
        if self._starting or self.shared.removals.pending(self.object_name):
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
                await asyncio.sleep(CHECK_SECONDS)
        self._doubted = False
        if container is None:
            return 0
        return None if running(container) else exit_status(container)

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
        if container is None or not running(container):
            return known
        return self._address_url(*self.lab_network.address_of(container)) + str(self.server.base_url)

    def _address_url(self, ip: str, port: int) -> str:
        return f"{'https' if self.internal_ssl else 'http'}://{fmt_ip_url(ip)}:{port}"

    async def stop(self, now: bool = False) -> None:
        """Stops the server and returns when its container is gone. Idempotent.

        While Docker doesn't answer this goes on trying: what may be running isn't called stopped.
        """
        await self.shared.removals.wait(self.object_name)
        await self.lab.end(1 if now else _STOP_GRACE_SECONDS)
        if self.lease_id:
            await release(self.shared.broker, self.lease_id)
        self._note(logging.INFO, "Stopped")
        self.object_id = ""

    async def run_post_stop_hook(self) -> None:
        """Removes a container that ended by itself (the hub calls no `stop` then), then the site's hook."""
        if self.object_id and not self.shared.removals.pending(self.object_name):
            self.lab.remove_later(self.object_id)
        await maybe_future(super().run_post_stop_hook())

    # ---- what the hub keeps of it

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores container and lease; forgets options whose tier or image is gone from the settings."""
        super().load_state(state)
        self.lease_id = str(state.get("lease_id") or "")
        if self.server is None and self.user_options:
            try:
                parse_options(self.user_options, self.tiers, self.offered_images())
            except (BadOption, ConfigError) as error:
                self._note(logging.INFO, "Forgot the options of the last start: %s", error)
                self._keep_options({})

    def get_state(self) -> dict[str, Any]:
        """Container and lease, so that a restarted hub finds both."""
        state: dict[str, Any] = super().get_state()
        if self.object_id and self.lease_id:
            state["lease_id"] = self.lease_id
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
        """DockerSpawner's, with server names that differ only in case kept apart."""
        names: dict[str, Any] = super().template_namespace()
        names["servername"] = self.escape(self.name)
        return names

    # ---- what people read

    def _exception(self, error: GpuSpawnerError) -> SpawnException:
        """The exception by which JupyterHub (6.1) shows a sentence, without a traceback, and counts `reason`.

        Logs the error: a refusal as INFO, everything else as ERROR with its cause.
        """
        problem = describe(error)
        if isinstance(error, Refusal):
            self._note(logging.INFO, "Not started: %s", problem.message)
        else:
            self._note(logging.ERROR, "Not started: %s (cause: %r)", error, error.__cause__)
        exception = SpawnException(problem.message, reason=problem.reason, status_code=problem.status)
        # Pages show these two (jupyterhub.utils.format_exception); without them nothing, or a class name.
        vars(exception).update(
            jupyterhub_message=problem.message,
            jupyterhub_html_message=escape(problem.message) + self._plain_link(error),
        )
        return exception

    def _plain_link(self, error: GpuSpawnerError) -> str:
        """A link that starts the server without a GPU, where that would help; HTML."""
        if not isinstance(error, Refusal) or isinstance(error, BadOption | ImageUnfit):
            return ""
        plain = next((tier for tier in self.tiers if not tier.needs_gpu), None)
        if plain is None:
            return ""
        url = url_path_join(
            self.hub.base_url, "spawn", self.user.escaped_name, url_escape_path(self.name)
        )  # the hub takes options of a query with this prefix
        return f' <a href="{escape(url)}?opt-{PROFILE}={plain.name}">Start with {escape(plain.title)} now</a>'

    def _note(self, level: int, message: str, *args: object) -> None:
        """Logs a line about this server, with the ending that all of them have."""
        self.log.log(
            level,
            message + " user=%s server=%s lease=%s devices=- container=%s",
            *args,
            self.user.name,
            self.name,
            self.lease_id or "-",
            (self.object_id or "")[:12] or "-",
        )


def _ready_event(spawner: GpuDockerSpawner, event: dict[str, Any]) -> dict[str, Any]:
    """The last event of a start; "cancelled" where the hub says "ready" of a start that was stopped.

    For a second after somebody stops a server that is starting, JupyterHub (6.1) takes it for ready, and its
    pages would go to a server that isn't there.
    """
    if spawner.object_id:
        return event
    return {"progress": 100, "failed": True, "message": "The start was cancelled."}


def _failed(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"c.GpuDockerSpawner.{name} is a callable that failed with {error!r}: correct it")
