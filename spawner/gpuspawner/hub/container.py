"""Computes Docker's create arguments from facts. Pure, so that a test can compare the whole result.

The lease's device settings replace those of the configuration; they are never merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core import labels
from ..core.errors import ConfigError
from ..core.labels import Owner
from ..core.limits import LabRules, Limits, Machine
from ..core.model import ContainerPatch
from .home import Home
from .reach import bind_table, check, drop_devices, ways

CPU_PERIOD_US = 100_000
"""Docker's default CFS period; `cpu_quota` is cores times this."""
_GPU_ENV_PREFIXES = ("NVIDIA_", "CUDA_", "DOCKER_RESOURCE_")
"""The last are how Swarm names devices that a task reserved; NVIDIA's runtime reads them if its setting
`swarm-resource` says so (nvidia-container-toolkit 1.17)."""
HARMLESS_ENV = frozenset({
    "CUDA_BINARY_LOADER_THREAD_COUNT", "CUDA_CACHE_DISABLE", "CUDA_CACHE_MAXSIZE", "CUDA_CACHE_PATH",
    "CUDA_COREDUMP_FILE", "CUDA_COREDUMP_GENERATION_FLAGS", "CUDA_COREDUMP_SHOW_PROGRESS",
    "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER", "CUDA_DEVICE_WAITS_ON_EXCEPTION", "CUDA_DISABLE_JIT",
    "CUDA_DISABLE_PTX_JIT", "CUDA_ENABLE_COREDUMP_ON_EXCEPTION", "CUDA_ENABLE_LIGHTWEIGHT_COREDUMP",
    "CUDA_FORCE_JIT", "CUDA_FORCE_PTX_JIT", "CUDA_HOME", "CUDA_LAUNCH_BLOCKING", "CUDA_LOG_FILE",
    "CUDA_MODULE_DATA_LOADING", "CUDA_MODULE_LOADING", "CUDA_PATH", "CUDA_ROOT",
    "CUDA_SCALE_LAUNCH_QUEUES", "CUDA_VERSION", "NVIDIA_BUILD_ID", "NVIDIA_DISABLE_REQUIRE",
    "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_PRODUCT_NAME", "NVIDIA_PYTORCH_VERSION", "NVIDIA_REQUIRE_CUDA",
    "NVIDIA_TF32_OVERRIDE",
})  # fmt: skip
"""NVIDIA's variables that select no device and change no limit: CUDA C++ Programming Guide 13.0,
"CUDA Environment Variables", and NVIDIA's Container Toolkit 1.18, "Environment variables"."""
OPEN_FILES = 65_536
STACK_BYTES = 64 << 20
_ULIMITS = [
    {"Name": "memlock", "Soft": -1, "Hard": -1},
    {"Name": "stack", "Soft": STACK_BYTES, "Hard": STACK_BYTES},
    {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES},
]
"""What NVIDIA recommends for its framework containers (`--ulimit memlock=-1 --ulimit stack=67108864`;
Containers For Deep Learning Frameworks User Guide, "Running A Container") and its servers (`--ulimit
nofile=65536`)."""
OOM_SCORE = 500
"""If the machine runs out of memory, the kernel ends a lab's process before one of the host's."""
_INITS = frozenset(
    {"tini", "tini-static", "dumb-init", "docker-init", "catatonit", "my_init", "init", "s6-svscan"}
)
"""Init programs, which reap ended child processes; an image that starts one needs no docker-init."""
NO_DEVICES = {"NVIDIA_VISIBLE_DEVICES": "void"}
"""If nvidia is the default runtime, an image with `all` would show every GPU; `void` shows none."""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """The facts that a container is created from. Memory is bytes, the CPU limit cores."""

    name: str
    image: str
    command: tuple[str, ...]
    owner: Owner
    env: Mapping[str, str]
    port: int
    container_user: str
    network: str
    binds: Mapping[str, Any] = field(default_factory=dict)
    mounts: tuple[Mapping[str, Any], ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    rules: LabRules = field(default_factory=LabRules)
    machine: Machine = field(default_factory=Machine)
    entrypoint: tuple[str, ...] = ()
    """The image's own."""
    home: Home | None = None
    published_ip: str | None = None
    """Address on the host to publish the port on; None if the container's own address is used."""
    extra_create: Mapping[str, Any] = field(default_factory=dict)
    extra_host: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Arguments of docker-py's `create_container` and of its `create_host_config`."""

    create: dict[str, Any]
    host: dict[str, Any]
    dropped: tuple[str, ...]
    """Settings and variables that were removed because only a lease may give devices."""
    home: Home | None = None
    limits: Limits = field(default_factory=Limits)
    home_volume: Mapping[str, Any] = field(default_factory=dict)
    """With what docker-py creates the home, so that its size is limited; empty without a limit."""
    node: str = ""
    """The machine on which it must run; "" if any will do."""

    @property
    def docker_home(self) -> str | None:
        """The Docker volume that is the home; None if there is none, or if it is a folder of the host."""
        home = self.home
        return home.volume.source if home and home.volume.of_docker else None

    @property
    def sized_home(self) -> str | None:
        """The Docker volume whose size is limited when it is created; None if there is none."""
        home = self.home
        return home.volume.source if home and home.volume.of_docker and self.home_volume else None

    @property
    def new_home(self) -> str | None:
        """The Docker volume's folder that must be given to the user, because the image has no such folder."""
        home = self.home
        return home.volume.target if home and home.unknown and home.volume.of_docker else None


def plan(facts: ContainerFacts, patch: ContainerPatch | None) -> ContainerPlan:
    """The create arguments for these facts and the lease's changes (None: no lease, no device).

    Raises ConfigError for a configuration that would bypass the lease.
    """
    if "host_config" in facts.extra_create:
        raise ConfigError(
            "c.GpuDockerSpawner.extra_create_kwargs has 'host_config': move it to extra_host_config"
        )
    lease = patch or ContainerPatch()
    create = merge(_create(facts), facts.extra_create)
    host = _merge_host(facts)
    dropped = drop_devices(create, host, facts.rules.past_lease)
    check(ways(create, host, facts.rules.private), facts.rules.past_lease)
    create["environment"], left_out = _environment(create.get("environment") or {}, lease)
    create["labels"] = {**(create.get("labels") or {}), **lease.labels, **facts.owner.labels()}
    if facts.limits.memory_bytes is not None:
        create["labels"][labels.MEMORY_LIMIT] = str(facts.limits.memory_bytes)
    host["device_requests"] = [dict(request) for request in lease.device_requests] or None
    if lease.runtime is not None:
        host["runtime"] = lease.runtime
    host["mounts"] = [*host.get("mounts", ()), *(_mount(mount) for mount in lease.mounts)]
    home = facts.home.volume.source if facts.home else ""
    return ContainerPlan(
        create, host, (*dropped, *left_out), facts.home, facts.limits, facts.rules.volume_of_home(home)
    )


_PLAIN_PROGRAMS = frozenset({"sh", "bash", "dash", "zsh", "python", "python3", "ipython"})
SERVER_COMMAND = "jupyterhub-singleuser"


def server_command(command: Sequence[str] | None) -> list[str]:
    """The command that starts the server in an image whose own command is `command`.

    It is the image's own, as with DockerSpawner, if that starts a hub's server, as the docker-stacks'
    (`start-notebook.py`) and this project's do. NVIDIA's images and base images have a shell or nothing
    there; then it is `jupyterhub-singleuser`.
    """
    words = [str(word) for word in command or ()]
    plain = len(words) == 1 and words[0].rpartition("/")[2] in _PLAIN_PROGRAMS
    return [SERVER_COMMAND] if plain or not words else words


def merge(base: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated with `extra`: dicts are merged, other values are replaced, as DockerSpawner does."""
    merged = dict(base)
    for key, value in extra.items():
        present = merged.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(dict(present), value)
        else:
            merged[key] = value
    return merged


def _create(facts: ContainerFacts) -> dict[str, Any]:
    home = facts.home.volume.target if facts.home and facts.home.unknown else None
    threads = facts.limits.threads
    return {
        "image": facts.image,
        "name": facts.name,
        "command": list(facts.command),
        "environment": {
            **({"HOME": home} if home else {}),
            # Numeric libraries start a thread for each core of the machine, and ignore the lab's limit.
            **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
            **facts.env,
        },
        "user": facts.container_user,
        "volumes": sorted(bind["bind"] for bind in facts.binds.values()),
        "ports": {f"{facts.port}/tcp": None},
        **({"working_dir": home} if home else {}),
    }


def has_init(words: Iterable[str]) -> bool:
    """Whether an entrypoint starts an init program, which reaps ended child processes."""
    return any(word.rpartition("/")[2] in _INITS for word in words)


def _host(facts: ContainerFacts) -> dict[str, Any]:
    host: dict[str, Any] = {
        # Not auto_remove: the log of an ended container must stay readable. We remove it later.
        "auto_remove": False,
        "binds": dict(facts.binds),
        "links": dict(facts.links),
        "mounts": [dict(mount) for mount in facts.mounts],
        "network_mode": facts.network,
        "privileged": False,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "oom_score_adj": OOM_SCORE,
        **_limits(facts.limits, facts.extra_host.get("cpu_period", CPU_PERIOD_US)),
    }
    entrypoint = facts.extra_create.get("entrypoint", facts.entrypoint)
    if not has_init(entrypoint.split() if isinstance(entrypoint, str) else entrypoint or ()):
        host["init"] = True
    if facts.machine.raises_limits:
        host["ulimits"] = [dict(limit) for limit in _ULIMITS]
    if facts.machine.log_driver == "json-file":
        sizes = {"max-size": str(facts.rules.log_size_bytes), "max-file": str(facts.rules.log_files)}
        host["log_config"] = {"Type": "json-file", "Config": sizes}
    if facts.published_ip is not None:
        host["port_bindings"] = {facts.port: (facts.published_ip,)}
    return host


def _limits(limits: Limits, cpu_period: int) -> dict[str, Any]:
    """The limits as Docker's arguments.

    No swap on top of the memory: a lab that swaps slows down everybody.
    """
    host: dict[str, Any] = {}
    if limits.memory_bytes is not None:
        host |= {"mem_limit": limits.memory_bytes, "memswap_limit": limits.memory_bytes}
    if limits.cpu_cores is not None:
        host |= {"cpu_period": cpu_period, "cpu_quota": int(limits.cpu_cores * cpu_period)}
    if limits.shm_bytes is not None:
        host["shm_size"] = limits.shm_bytes
    if limits.pids is not None:
        host["pids_limit"] = limits.pids
    if limits.cpu_shares is not None:
        host["cpu_shares"] = limits.cpu_shares
    return host


def _merge_host(facts: ContainerFacts) -> dict[str, Any]:
    """Our arguments updated with `extra_host_config`; for some keys, both lists are combined.

    Otherwise a list of binds ("/data:/data:ro") would remove the home, a `security_opt` for seccomp would
    remove no-new-privileges, and one ulimit the others. The site's own logging driver has its own options.
    """
    extra, host = dict(facts.extra_host), _host(facts)
    if isinstance(extra.get("binds"), Sequence):
        extra["binds"] = bind_table(extra["binds"])
    if extra.get("log_config") is not None:
        host.pop("log_config", None)
    own = {_limit_name(each) for each in extra.get("ulimits") or ()}
    if own:
        extra["ulimits"] = [
            *(each for each in host.get("ulimits", ()) if each["Name"] not in own),
            *extra["ulimits"],
        ]
    options = extra.get("security_opt")
    if options is not None and not any(str(each).startswith("no-new-privileges") for each in options):
        extra["security_opt"] = [*host["security_opt"], *options]
    return merge(host, extra)


def _limit_name(limit: Mapping[str, Any]) -> str:
    return str(limit.get("Name") or limit.get("name") or "")


def _environment(
    configured: Mapping[str, Any], lease: ContainerPatch
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The configured variables without those that select GPUs, updated with the lease's.

    Also returns the names of the removed ones.
    """
    kept, left_out = {}, []
    for name, value in configured.items():
        upper = str(name).upper()
        if not upper.startswith(_GPU_ENV_PREFIXES) or name in HARMLESS_ENV:
            kept[str(name)] = str(value)
        elif (name, str(value)) not in NO_DEVICES.items():
            left_out.append(str(name))
    return {**kept, **NO_DEVICES, **lease.env}, tuple(sorted(left_out))


def _mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    """A mount of a patch, with the Engine API's keys."""
    return {
        "Type": mount.get("type", "bind"),
        "Source": mount["source"],
        "Target": mount["target"],
        "ReadOnly": bool(mount.get("read_only", False)),
    }
