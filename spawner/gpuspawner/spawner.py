"""GpuDockerSpawner: DockerSpawner whose containers have a GPU only through a lease of the broker.

This file has the settings and the way to Docker. `choice` answers what users pick, `lifecycle`
starts, polls and stops, `launch` is one start, `container` makes Docker's arguments.
"""

from __future__ import annotations

import asyncio
import inspect as python_inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import docker
import docker.errors
import docker.tls
from docker.api.client import APIClient
from docker.utils import kwargs_from_env
from traitlets import Bool, Integer, TraitError, Unicode, default, validate

from .container import ContainerFacts, ContainerPlan, network_settings, plan
from .errors import ConfigError, EngineFault
from .launch import LaunchJob, image_missing
from .lifecycle import LifecycleSpawner
from .model import ContainerPatch

_THREADS = 16
"""Docker calls at once. DockerSpawner has one thread for all users: a slow call holds up everybody."""
_SLOW = frozenset({"pull", "stop"})
"""Methods that take seconds have threads of their own, so that they can't hold up a start."""
_TIMEOUT_SECONDS = {"inspect_container": 5, "inspect_image": 10, "logs": 5, "pull": 3600}
_USUAL_TIMEOUT_SECONDS = 60
_DOCKERS_OWN_NETWORKS = frozenset({"bridge", "host", "none", "default"})

# docker-py lets some errors of the libraries below it through as they are: requests' and urllib3's
# derive from OSError or ValueError.
_Errors = (docker.errors.DockerException, OSError, ValueError)


class GpuDockerSpawner(LifecycleSpawner):
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

    _local: ClassVar[threading.local] = threading.local()
    _executors: ClassVar[dict[bool, ThreadPoolExecutor]] = {}

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

    @validate("remove")
    def _validate_remove(self, proposal: Any) -> bool:
        if not proposal.value:
            raise TraitError(
                "c.GpuDockerSpawner.remove must stay True: a stopped container that is kept would start "
                "again with devices that another user has by then"
            )
        return True

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
        memory = job.tier.mem_limit_bytes or self.mem_limit
        cores = job.tier.cpu_limit or self.cpu_limit
        env = {**self.get_env(), "JUPYTER_IMAGE_SPEC": job.image, "GPUSPAWNER_TIER": job.tier.name}
        if memory:
            env["MEM_LIMIT"] = str(memory)
        if cores:
            env["CPU_LIMIT"] = str(cores)
        command = [*(self.cmd or image.get("Config", {}).get("Cmd") or ()), *self.get_args()]
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
            mounts=tuple(self.mount_binds),
            links=self.links,
            mem_limit_bytes=memory or None,
            cpu_limit=cores or None,
            published_ip=None if self.use_internal_ip or self.use_internal_hostname else self.host_ip,
            extra_create=await self._evaluate(self.extra_create_kwargs),
            extra_host=await self._evaluate(self.extra_host_config),
        )
        planned = plan(facts, patch)
        if planned.dropped:
            self.log.warning(
                "Left out what only a lease may give: %s. Take it out of extra_host_config or "
                "extra_create_kwargs of c.GpuDockerSpawner",
                ", ".join(planned.dropped),
            )
        return planned

    async def _evaluate(self, setting: Any) -> dict[str, Any]:
        """A setting that may be a callable, async or not, with its templates filled in."""
        value = self._eval_if_callable(setting)
        if python_inspect.isawaitable(value):
            value = await value
        rendered: dict[str, Any] = self._render_templates(value)
        return rendered

    async def pull_image(self, image: str) -> dict[str, Any]:
        """Docker's document of the image, pulled first if `pull_policy` says so. Raises StartFault."""
        policy = self.pull_policy.lower()
        try:
            if policy != "always":
                try:
                    return await self._inspect_image(image)
                except EngineFault as fault:
                    if fault.status != 404 or policy != "ifnotpresent":
                        raise
            name, _, tag = image.rpartition(":") if ":" in image.split("/")[-1] else (image, "", "latest")
            self.log.info("Pulling image %s", image)
            await self.docker("pull", name, tag)
            return await self._inspect_image(image)
        except EngineFault as fault:
            if fault.status is None:
                raise
            raise image_missing(image) from fault

    async def _inspect_image(self, image: str) -> dict[str, Any]:
        document: dict[str, Any] = await self.docker("inspect_image", image)
        return document

    async def create_container(self, plan: ContainerPlan) -> str:
        """Creates the container and returns its id."""

        def create(client: APIClient) -> str:
            host = client.create_host_config(**plan.host)
            return str(client.create_container(**plan.create, host_config=host)["Id"])

        return str(await self._run("create", create))

    async def mend_network(self, fault: EngineFault) -> bool:
        """Creates the labs' network if it was missing (somebody pruned it). Raises ConfigError."""
        missing = fault.status == 404 and f"network {self.network_name} not found" in str(fault)
        if not missing or self.network_name in _DOCKERS_OWN_NETWORKS:
            return False
        self.log.warning("The network %s was missing: creating it", self.network_name)
        await self._run(
            "create_network", lambda client: ensure_network(client, self.network_name, self.subnet)
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

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of docker-py's APIClient in a thread. Raises EngineFault, with Docker's status if any."""
        return await self._run(method, lambda client: getattr(client, method)(*args, **kwargs))

    async def _run(self, method: str, call: Any) -> Any:
        slow = method in _SLOW
        if slow not in self._executors:
            name = "docker-slow" if slow else "docker"
            self._executors[slow] = ThreadPoolExecutor(_THREADS, thread_name_prefix=name)
        return await asyncio.wrap_future(self._executors[slow].submit(self.run_here, call, method))

    def run_here(self, call: Any, method: str = "") -> Any:
        """`call(client)` in this thread: blocks on Docker. Raises EngineFault."""
        try:
            client = self.client
            client.timeout = _TIMEOUT_SECONDS.get(method, _USUAL_TIMEOUT_SECONDS)
            return call(client)
        except docker.errors.APIError as error:
            raise EngineFault(str(error.explanation or error), error.status_code) from error
        except _Errors as error:
            raise EngineFault(f"Docker does not answer: {error}") from error

    @property
    def client(self) -> APIClient:
        """docker-py's client, one a thread: its connections aren't made for being shared."""
        client: APIClient | None = getattr(self._local, "client", None)
        if client is None:
            settings: dict[str, Any] = {"version": "auto", "timeout": 10}
            if self.tls_config:
                settings["tls"] = docker.tls.TLSConfig(**self.tls_config)
            settings |= {**kwargs_from_env(), **self.client_kwargs}
            client = self._local.client = APIClient(**settings)
        return client


def ensure_network(client: APIClient, name: str, subnet: str) -> str:
    """Creates the labs' network if there is none; returns the host's address on it. Blocks on Docker.

    Raises ConfigError if one of that name has another subnet, or if Docker refuses the subnet.
    """
    wanted = network_settings(name, subnet)
    config = wanted["ipam"]["Config"][0]
    try:
        present = client.inspect_network(name)
    except docker.errors.NotFound:
        try:
            client.create_network(**wanted, check_duplicate=True)
        except docker.errors.APIError as error:
            if error.status_code != 409:  # somebody else created it just now
                raise ConfigError(
                    f"Docker can't create the network {name!r} with {subnet}: {error.explanation}. "
                    "Set another one (GPUSPAWNER_SUBNET, c.GpuDockerSpawner.subnet)"
                ) from error
        present = client.inspect_network(name)
    found = [entry.get("Subnet") for entry in (present.get("IPAM") or {}).get("Config") or ()]
    if config["Subnet"] not in found:
        raise ConfigError(
            f"the network {name!r} has the addresses {found}, not {config['Subnet']}: remove it with "
            f"'docker network rm {name}', or set GPUSPAWNER_SUBNET to what it has"
        )
    return str(config["Gateway"])
