"""GpuDockerSpawner: DockerSpawner whose containers have a GPU only through a lease of the broker.

This file has the settings and what is made of them. `choice` answers what users pick, `lifecycle`
starts, polls and stops, `launch` is one start, `container` makes Docker's arguments, `enginespawner` is
the way to Docker.
"""

from __future__ import annotations

import asyncio
import inspect as python_inspect
from contextlib import closing
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import docker.errors
from docker.api.client import APIClient
from traitlets import Any as AnyTrait
from traitlets import Bool, Float, Integer, TraitError, Unicode, default, validate

from ..config.lab import GpuLab
from ..core.errors import ConfigError, EngineFault
from ..core.image_reference import allow_images, parse_pinned
from ..core.limits import Machine, limits_of
from ..core.model import ContainerPatch
from . import lab_container as engine
from . import network as labnetwork
from .container import ContainerFacts, ContainerPlan, plan, server_command
from .docker import EngineSpawner
from .engine_words import unusable
from .home import belongs_to_root, find_home, own_home
from .lab_facts import Configured, ask_machine, limits_env, volumes_of, wish_of
from .launch import LaunchJob


class GpuDockerSpawner(EngineSpawner):
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

    _machines: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Machine]] = WeakKeyDictionary()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lab_settings = GpuLab(parent=self)
        self._general_limits = self._limits_now

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

    @validate("remove")
    def _validate_remove(self, proposal: Any) -> bool:
        if not proposal.value:
            raise TraitError(
                "c.GpuDockerSpawner.remove must stay True: a stopped container that is kept would start "
                "again with devices that another user has by then"
            )
        return True

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

    async def plan_container(
        self, job: LaunchJob, image: dict[str, Any], patch: ContainerPatch | None
    ) -> ContainerPlan:
        """The container to create, from the settings, the image and the lease. Raises ConfigError."""
        config = image.get("Config") or {}
        machine, extra_host = await self._machine(), await self._evaluate(self.extra_host_config)
        rules = self.lab_settings.rules(self.site.state_dir)
        wish = wish_of(job.tier, self._general_limits, self._limits_now, extra_host)
        limits = limits_of(wish, rules, machine)
        env = {**self.get_env(), "JUPYTER_IMAGE_SPEC": job.image, "GPUSPAWNER_TIER": job.tier.name}
        names, folder = (self.user.name, self.escaped_name), str(config.get("WorkingDir") or "")
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
            home=find_home(volumes_of(self), names, folder, self.lab_settings.home),
            mounts=tuple(self.mount_binds),
            links=self.links,
            limits=limits,
            rules=rules,
            machine=machine,
            entrypoint=tuple(config.get("Entrypoint") or ()),
            published_ip=None if self.use_internal_ip or self.use_internal_hostname else self.host_ip,
            extra_create=await self._evaluate(self.extra_create_kwargs),
            extra_host=extra_host,
        )
        planned = plan(facts, patch)
        if planned.dropped:
            self.log.warning(
                "Left out what only a lease may give: %s. Take it out of extra_host_config, "
                "extra_create_kwargs or environment of c.GpuDockerSpawner",
                ", ".join(planned.dropped),
            )
        return planned

    @property
    def _limits_now(self) -> Configured:
        return Configured(self.mem_limit, self.cpu_limit)

    async def _machine(self) -> Machine:
        """What labs share, asked of Docker once. Raises EngineFault."""
        loop = asyncio.get_running_loop()
        if loop not in self._machines:
            self._machines[loop] = await ask_machine(self.docker)
        return self._machines[loop]

    async def _evaluate(self, setting: Any) -> dict[str, Any]:
        """A setting that may be a callable, async or not, with its templates filled in."""
        value = self._eval_if_callable(setting)
        if python_inspect.isawaitable(value):
            value = await value
        rendered: dict[str, Any] = self._render_templates(value)
        return rendered

    async def create_container(self, plan: ContainerPlan) -> str:
        """Creates the container and returns its id. A home that its image doesn't know is made its user's."""

        def create(client: APIClient) -> str:
            place = None
            if plan.host["network_mode"] == self.network_name:  # not another one of extra_host_config
                place = labnetwork.place(client, self.network_name, self.subnet)
            try:
                host = client.create_host_config(**plan.host)
                settings = {"networking_config": place, **plan.create}
                container_id = str(client.create_container(**settings, host_config=host)["Id"])
            except TypeError as error:  # of docker-py, for its arguments
                raise unusable(error) from error
            if plan.new_home:
                self._give_home(client, container_id, plan.new_home)
            return container_id

        return str(await self.run("create", create))

    def _give_home(self, client: APIClient, container_id: str, home: str) -> None:
        """Makes a home that Docker has just made its user's; one that isn't root's is left as it is."""
        parent, archive = own_home(home, self.container_user)
        try:
            stream, _ = client.get_archive(container_id, home)
            with closing(stream):
                first = next(iter(stream), b"")
            if belongs_to_root(first):
                # Without a running container, so as nobody: Docker unpacks it into the volume.
                client.put_archive(container_id, parent, archive)
        except docker.errors.APIError as error:
            self.log.warning("The home in container %s may not be writable: %s", container_id[:12], error)

    async def mend_network(self, fault: EngineFault, container_id: str) -> bool:
        """Whether what kept the labs' network from taking the container is done away with.

        A network that was missing (somebody pruned it) is created; an address that Docker holds for another
        is changed for the next. Raises ConfigError, EngineFault.
        """
        if engine.address_is_taken(fault):
            await self.run(
                "move",
                lambda client: labnetwork.move(client, container_id, self.network_name, self.subnet),
            )
            return True
        missing = fault.status == 404 and f"network {self.network_name} not found" in str(fault)
        if not missing or self.network_name in labnetwork.DOCKERS_OWN:
            return False
        self.log.warning("The network %s was missing: creating it", self.network_name)
        await self.run(
            "create_network", lambda client: labnetwork.ensure_network(client, self.network_name, self.subnet)
        )
        return True

    def address_of(self, container: dict[str, Any]) -> tuple[str, int]:
        """Where the server answers. Raises ConfigError if the container isn't on the network."""
        if self.use_internal_hostname:
            return self.object_name, self.port
        settings = container["NetworkSettings"]
        if self.use_internal_ip:
            network = (settings.get("Networks") or {}).get(self.network_name) or {}
            if not network.get("IPAddress"):
                raise ConfigError(
                    f"the container has no address on the network {self.network_name!r}: "
                    "set c.GpuDockerSpawner.network_name, or use_internal_ip = False"
                )
            return str(network["IPAddress"]), self.port
        published = (settings.get("Ports") or {}).get(f"{self.port}/tcp") or [{}]
        ip = published[0].get("HostIp") or "127.0.0.1"
        return "127.0.0.1" if ip == "0.0.0.0" else ip, int(published[0].get("HostPort") or self.port)
