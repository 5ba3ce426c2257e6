"""Computes a Swarm service from a container's settings. Pure, so that a test can compare the whole result.

A service is one task that isn't started again, on one machine, in one network. What a service can't have is
refused with the name of the setting, never left out silently, unless it is only a wish (`_WISHES`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...core.errors import ConfigError
from ...core.image_reference import parse_pinned
from ...core.units import parse_bytes
from ..container import CPU_PERIOD_US, ContainerPlan
from ..reach import bind_table

NODE_ID = "node.id"
NANO = 1_000_000_000
NO_CHECK = {"Test": ["NONE"]}
"""In place of the image's health check, unless the settings have one. With a check, Swarm calls a task
started when it first succeeds: seen after 5 s with Docker 28, with one that succeeds at once. And it ends a
task that fails the check, as a lab does that is too busy. The hub looks itself whether a lab answers."""
SHM = "/dev/shm"

_OURS_CREATE = frozenset({"name", "image", "ports"})
_OURS_HOST = frozenset(
    {"auto_remove", "network_mode", "privileged", "port_bindings", "device_requests", "runtime"}
)
"""They are decided here, or checked one by one."""
_WISHES = frozenset({"cpu_shares", "memswap_limit", "cpu_period"})
"""What a service can't have and a lab works without: the weight of its CPU, no swap beside its memory."""
_CREATE = {
    "hostname": "Hostname",
    "user": "User",
    "working_dir": "Dir",
    "tty": "TTY",
    "stdin_open": "OpenStdin",
    "stop_signal": "StopSignal",
    "healthcheck": "Healthcheck",
}
_HOST = {
    "init": "Init",
    "cap_drop": "CapabilityDrop",
    "cap_add": "CapabilityAdd",
    "oom_score_adj": "OomScoreAdj",
    "read_only": "ReadOnly",
    "sysctls": "Sysctls",
    "ulimits": "Ulimits",
    "group_add": "Groups",
}
"""docker-py's name, and that of a service's ContainerSpec (Engine API 1.51)."""
_TAKEN_CREATE = (
    frozenset(_CREATE)
    | _OURS_CREATE
    | frozenset(("command", "entrypoint", "environment", "labels", "volumes", "stop_timeout"))
)
_TAKEN_HOST = frozenset(_HOST) | _OURS_HOST | _WISHES | frozenset(
    (
        "binds", "mounts", "volume_driver", "tmpfs", "security_opt", "log_config", "mem_limit",
        "mem_reservation", "cpu_quota", "nano_cpus", "pids_limit", "shm_size", "dns", "dns_search",
        "dns_opt", "extra_hosts",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Berth:
    """Where a lab runs: the machine by Swarm's id, the network by its id, and the lab's name in it."""

    node_id: str
    network_id: str
    alias: str


def service_of(plan: ContainerPlan, berth: Berth, image: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of docker-py's `create_service` for a lab that doesn't run yet: 0 replicas.

    `image` is what every machine takes for the same (`pinned`), `labels` are the service's own, besides
    those of the container. Raises ConfigError for what a service can't have.
    """
    create, host = plan.create, plan.host
    check_carried(create, host)
    container = {
        "Image": image,
        "Labels": dict(create.get("labels") or {}),
        "Env": _environment(create.get("environment") or {}),
        "Mounts": _mounts(create, host),
        "Privileges": _privileges(host.get("security_opt") or ()),
        "Healthcheck": NO_CHECK,
        **_command(create),
        **_named(create, _CREATE),
        **_named(host, _HOST),
        **_names(host),
    }
    if "stop_timeout" in create:
        container["StopGracePeriod"] = int(create["stop_timeout"]) * NANO
    task = {
        "ContainerSpec": container,
        "Resources": {"Limits": _limits(host)},
        "RestartPolicy": {"Condition": "none"},
        "Placement": {"Constraints": [f"{NODE_ID}=={berth.node_id}"]},
        "Networks": [{"Target": berth.network_id, "Aliases": [berth.alias]}],
    }
    if host.get("log_config"):
        log = host["log_config"]
        task["LogDriver"] = {"Name": log["Type"], "Options": dict(log.get("Config") or {})}
    return {
        "name": create["name"],
        "labels": {**container["Labels"], **labels},
        "task_template": task,
        "mode": {"Replicated": {"Replicas": 0}},
        # No address of the service beside the task's: Swarm would need IPVS for it on every machine.
        "endpoint_spec": {"Mode": "dnsrr"},
    }


def check_carried(create: Mapping[str, Any], host: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the remedy, for settings that a service can't have."""
    for name in _unknown(create, host):
        raise ConfigError(
            f"extra_create_kwargs or extra_host_config has {name!r}, which a service of a Swarm can't have: "
            'remove it, or use one machine (c.GpuSite.engine = "docker")'
        )
    if host.get("port_bindings"):
        raise ConfigError(
            "Labs of a Swarm are reached through their own networks and not by a port of a machine: set "
            "c.GpuDockerSpawner.use_internal_ip = True"
        )
    if host.get("device_requests") or host.get("runtime"):
        raise ConfigError(
            "A service of a Swarm takes no device requests and no runtime: its machine's default runtime "
            "must be NVIDIA's. Admin: run `gpuspawner doctor`"
        )


def _unknown(create: Mapping[str, Any], host: Mapping[str, Any]) -> list[str]:
    """The settings that are set, and that no part of a service takes."""
    found = [name for name, value in create.items() if value and name not in _TAKEN_CREATE]
    found += [name for name, value in host.items() if value and name not in _TAKEN_HOST]
    return sorted(found)


def pinned(image: Mapping[str, Any], reference: str) -> str:
    """The image by a name that means the same on every machine, from Docker's document of it.

    By digest if a registry has it: then a machine without it can pull it, and one that has it doesn't ask.
    Else by its id, which no machine looks for in a registry; there it must have been loaded. By tag, every
    start would ask the registry (moby 28, `daemon/cluster/executor/container/adapter.go`).
    """
    if (digest := _digest_of(image, reference)) is not None:
        return digest
    return str(image.get("Id") or reference)


def _digest_of(image: Mapping[str, Any], reference: str) -> str | None:
    """NAME@DIGEST for the name of the reference; the same image may have digests of other names."""
    with suppress(ValueError):
        wanted = parse_pinned(reference)
        for text in image.get("RepoDigests") or ():
            found = parse_pinned(str(text))
            if (found.host, found.path) == (wanted.host, wanted.path):
                return str(text)
    return None


def literal(text: str) -> str:
    """The text as a service must have it: Swarm takes environment, mounts and host name for Go templates."""
    return text.replace("{{", '{{"{{"}}')


def _environment(variables: Mapping[str, Any]) -> list[str]:
    return [literal(f"{name}={value}") for name, value in variables.items()]


def _command(create: Mapping[str, Any]) -> dict[str, Any]:
    """A service's `Command` is a container's entrypoint, its `Args` the command."""
    entrypoint, command = create.get("entrypoint"), create.get("command")
    found: dict[str, Any] = {"Args": _words(command)} if command else {}
    return {**found, "Command": _words(entrypoint)} if entrypoint else found


def _words(command: str | Sequence[str]) -> list[str]:
    return command.split() if isinstance(command, str) else [str(word) for word in command]


def _named(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {new: settings[old] for old, new in names.items() if settings.get(old) is not None}
    if "Hostname" in found:
        found["Hostname"] = literal(str(found["Hostname"]))
    return found


def _names(host: Mapping[str, Any]) -> dict[str, Any]:
    """Name servers, and names of hosts: "ADDRESS NAME", as in /etc/hosts."""
    keys = {"dns": "Nameservers", "dns_search": "Search", "dns_opt": "Options"}
    servers = {new: list(host[old]) for old, new in keys.items() if host.get(old)}
    found: dict[str, Any] = {"DNSConfig": servers} if servers else {}
    hosts = host.get("extra_hosts") or {}
    if hosts:
        pairs = hosts.items() if isinstance(hosts, Mapping) else [str(each).split(":", 1) for each in hosts]
        found["Hosts"] = [f"{address} {name}" for name, address in pairs]
    return found


def _privileges(options: Sequence[Any]) -> dict[str, Any]:
    """`security_opt` as a service has it. Raises ConfigError for an option that it doesn't know."""
    found: dict[str, Any] = {}
    for option in options:
        name, _, value = str(option).replace("=", ":", 1).partition(":")
        if name == "no-new-privileges":
            found["NoNewPrivileges"] = value != "false"
        elif (name, value) in (("seccomp", "unconfined"), ("apparmor", "unconfined")):
            key = "Seccomp" if name == "seccomp" else "AppArmor"
            found[key] = {"Mode": "unconfined" if name == "seccomp" else "disabled"}
        else:
            raise ConfigError(
                f"extra_host_config: security_opt {option!r} is nothing that a service of a Swarm can have: "
                "remove it"
            )
    return found


def _limits(host: Mapping[str, Any]) -> dict[str, int]:
    limits: dict[str, int] = {}
    if host.get("mem_limit"):
        limits["MemoryBytes"] = parse_bytes(host["mem_limit"], "mem_limit of extra_host_config")
    if host.get("nano_cpus"):
        limits["NanoCPUs"] = int(host["nano_cpus"])
    elif host.get("cpu_quota"):
        limits["NanoCPUs"] = int(host["cpu_quota"]) * NANO // int(host.get("cpu_period") or CPU_PERIOD_US)
    if host.get("pids_limit"):
        limits["Pids"] = int(host["pids_limit"])
    return limits


def _mounts(create: Mapping[str, Any], host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that is mounted, each target once: binds, mounts, temporary folders, shared memory."""
    driver = host.get("volume_driver")
    binds = bind_table(host.get("binds"))
    found = [_bind(str(source), bind, driver) for source, bind in binds.items()]
    found += [_literal_mount(mount) for mount in host.get("mounts") or ()]
    found += [_temporary(folder) for folder in host.get("tmpfs") or ()]
    if host.get("shm_size"):
        size = parse_bytes(host["shm_size"], "shm_size of extra_host_config")
        options = {"SizeBytes": size, "Mode": 0o1777}
        found.append({"Type": "tmpfs", "Target": SHM, "TmpfsOptions": options})
    targets = {mount["Target"] for mount in found}
    named = [literal(str(target)) for target in create.get("volumes") or ()]
    return [*found, *({"Type": "volume", "Target": target} for target in named if target not in targets)]


def _bind(source: str, bind: Any, driver: str | None) -> dict[str, Any]:
    value = bind if isinstance(bind, Mapping) else {"bind": bind}
    modes = set(str(value.get("mode") or "rw").split(",")) - {"rw"}
    if modes - {"ro"}:
        raise ConfigError(
            f"The volume {source} is mounted with mode {value.get('mode')!r}: a service of a Swarm knows "
            "rw and ro"
        )
    mount: dict[str, Any] = {
        "Type": "bind" if source.startswith("/") else "volume",
        "Source": literal(source),
        "Target": literal(str(value["bind"])),
        "ReadOnly": "ro" in modes,
    }
    if driver and mount["Type"] == "volume":
        mount["VolumeOptions"] = {"DriverConfig": {"Name": driver}}
    return mount


def _literal_mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    """A mount as the settings have it; options of a driver are Go templates too."""
    found = {key: value for key, value in mount.items() if value is not None}
    return {key: literal(value) if key in ("Source", "Target") else value for key, value in found.items()}


def _temporary(folder: Any) -> dict[str, Any]:
    return {"Type": "tmpfs", "Target": literal(str(folder))}
