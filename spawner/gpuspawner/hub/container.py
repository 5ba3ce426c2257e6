"""Facts in, Docker's create arguments out: pure, so that a test can compare the whole result.

What a lease says about devices replaces what a configuration says; nothing of it is merged.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError
from ..core.labels import Owner
from ..core.model import ContainerPatch

CPU_PERIOD_US = 100_000
"""Docker's default CFS period; `cpu_quota` is cores times this."""
_GPU_ENV_PREFIXES = ("NVIDIA_", "CUDA_")
_GPU_DEVICE_PREFIXES = ("/dev/nvidia", "/dev/dri")
NO_DEVICES = {"NVIDIA_VISIBLE_DEVICES": "void"}
"""With the nvidia runtime as default, an image that says `all` would show every GPU; `void` shows none."""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """What is known before a container is created. Memory is bytes, the CPU limit cores."""

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
    mem_limit_bytes: int | None = None
    cpu_limit: float | None = None
    home: str | None = None
    """Where HOME and the working directory are put; None where the image has both right."""
    published_ip: str | None = None
    """Address on the host to publish the port on; None where the container's own is used."""
    extra_create: Mapping[str, Any] = field(default_factory=dict)
    extra_host: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Arguments of docker-py's `create_container` and of its `create_host_config`."""

    create: dict[str, Any]
    host: dict[str, Any]
    dropped: tuple[str, ...]
    """Settings that were left out because only a lease may give devices."""
    home: str | None = None
    """Folder of a volume that has to be made the user's, as the image doesn't know it."""


def plan(facts: ContainerFacts, patch: ContainerPatch | None) -> ContainerPlan:
    """The container of these facts with what the lease changes (None: no lease, no device).

    Raises ConfigError for a configuration that would go round this.
    """
    if "host_config" in facts.extra_create:
        raise ConfigError(
            "c.GpuDockerSpawner.extra_create_kwargs holds 'host_config': put it into extra_host_config"
        )
    lease = patch or ContainerPatch()
    create = merge(_create(facts), facts.extra_create)
    host = merge(_host(facts), facts.extra_host)
    dropped = _drop_devices(create, host)
    create["environment"] = _environment(create.get("environment") or {}, lease)
    create["labels"] = {**(create.get("labels") or {}), **lease.labels, **facts.owner.labels()}
    host["device_requests"] = [dict(request) for request in lease.device_requests] or None
    if lease.runtime is not None:
        host["runtime"] = lease.runtime
    host["mounts"] = [*host.get("mounts", ()), *(_mount(mount) for mount in lease.mounts)]
    return ContainerPlan(create, host, dropped, _volume_home(facts))


_PLAIN_PROGRAMS = frozenset({"sh", "bash", "dash", "zsh", "python", "python3", "ipython"})
SERVER_COMMAND = "jupyterhub-singleuser"


def server_command(command: Sequence[str] | None) -> list[str]:
    """What starts the server in an image whose own command is `command`.

    The image's own, as with DockerSpawner: the docker-stacks' (`start-notebook.py`) and the project's start
    a server of the hub. NVIDIA's images and base images have a shell there, or nothing: then
    `jupyterhub-singleuser`.
    """
    words = [str(word) for word in command or ()]
    plain = len(words) == 1 and words[0].rpartition("/")[2] in _PLAIN_PROGRAMS
    return [SERVER_COMMAND] if plain or not words else words


def home_beside(working_dir: str, binds: Mapping[str, Any]) -> str | None:
    """The first volume's folder, for an image that works elsewhere (`/workspace`, `/`); None if it knows one.

    An image knows a volume that lies in its working directory, or the other way round. Without this, the
    work of who starts NVIDIA's image would be gone with the container.
    """
    folders = [str(bind["bind"]).rstrip("/") for bind in binds.values()]
    place = working_dir.rstrip("/")
    for folder in folders:
        if place and (f"{place}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{place}/")):
            return None
    return folders[0] if folders else None


def own_home(home: str, user: str) -> tuple[str, bytes]:
    """The folder above `home`, and a tar archive that makes `home` the property of `user` ("uid:gid")."""
    parent, _, name = home.rpartition("/")
    uid, _, gid = user.partition(":")
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o755, int(uid), int(gid)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(entry)
    return parent or "/", data.getvalue()


def merge(base: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `extra` over it; dicts are merged, everything else is replaced, as DockerSpawner does."""
    merged = dict(base)
    for key, value in extra.items():
        present = merged.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(dict(present), value)
        else:
            merged[key] = value
    return merged


def _create(facts: ContainerFacts) -> dict[str, Any]:
    return {
        "image": facts.image,
        "name": facts.name,
        "command": list(facts.command),
        "environment": {**({"HOME": facts.home} if facts.home else {}), **facts.env},
        "user": facts.container_user,
        "volumes": sorted(bind["bind"] for bind in facts.binds.values()),
        "ports": {f"{facts.port}/tcp": None},
        **({"working_dir": facts.home} if facts.home else {}),
    }


def _volume_home(facts: ContainerFacts) -> str | None:
    """The home, if it is a volume of Docker's; whom a folder of the host belongs to is the site's."""
    named = [bind["bind"] for source, bind in facts.binds.items() if not str(source).startswith("/")]
    return facts.home if facts.home in named else None


def _host(facts: ContainerFacts) -> dict[str, Any]:
    host: dict[str, Any] = {
        # Not auto_remove: the last words of a container that ended must stay readable. We remove it.
        "auto_remove": False,
        "binds": dict(facts.binds),
        "links": dict(facts.links),
        "mounts": [dict(mount) for mount in facts.mounts],
        "network_mode": facts.network,
        "privileged": False,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }
    if facts.mem_limit_bytes is not None:
        host["mem_limit"] = facts.mem_limit_bytes
    if facts.cpu_limit is not None:
        period = facts.extra_host.get("cpu_period", CPU_PERIOD_US)
        host["cpu_period"] = period
        host["cpu_quota"] = int(facts.cpu_limit * period)
    if facts.published_ip is not None:
        host["port_bindings"] = {facts.port: (facts.published_ip,)}
    return host


def _environment(configured: Mapping[str, Any], lease: ContainerPatch) -> dict[str, str]:
    """What configuration and user brought without anything that picks GPUs, then what the lease says."""
    kept = {
        str(key): str(value)
        for key, value in configured.items()
        if not str(key).upper().startswith(_GPU_ENV_PREFIXES)
    }
    return {**kept, **NO_DEVICES, **lease.env}


def _drop_devices(create: dict[str, Any], host: dict[str, Any]) -> tuple[str, ...]:
    """Takes out of both what would give GPUs past the lease; returns the names of what was there."""
    dropped = [name for name in ("device_requests",) if host.pop(name, None)]
    for options in (create, host):
        if options.get("runtime") == "nvidia":
            del options["runtime"]
            dropped.append("runtime")
    devices = host.get("devices")
    if devices:
        kept = [device for device in devices if not _device_path(device).startswith(_GPU_DEVICE_PREFIXES)]
        if len(kept) < len(devices):
            dropped.append("devices")
        host["devices"] = kept
    return tuple(dropped)


def _device_path(device: Any) -> str:
    """The host's path of a device setting: docker-py takes "host:container:rwm" and Engine API dicts."""
    return str(device.get("PathOnHost", "") if isinstance(device, Mapping) else device)


def _mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    """A patch's mount with the Engine API's keys."""
    return {
        "Type": mount.get("type", "bind"),
        "Source": mount["source"],
        "Target": mount["target"],
        "ReadOnly": bool(mount.get("read_only", False)),
    }
