"""Finds settings with which a container would bypass its lease. Pure.

There are two kinds. Settings that only a lease may give (device requests, NVIDIA's runtime, GPUs in
`devices`) are removed with a warning: the container works without them. All others are refused, because a
container without them would not be what the admin asked for. `c.GpuLab.past_lease` allows them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError

GPU_DEVICES = ("/dev/nvidia", "/dev/dri")
_DEVICES = (*GPU_DEVICES, "/dev/char", "/dev/block", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/vfio")
"""Folders and prefixes of device files that give access to a GPU or to the machine's memory.
/dev/char names every device by its number."""
_ENGINE_SOCKETS = (
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/var/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
)
_GPU_FOLDERS = ("/run/nvidia-container-devices", "/var/run/nvidia-container-devices")
"""With a mount at such a folder, a container requests a GPU from NVIDIA's runtime (nvidia-container-toolkit,
`accept-nvidia-visible-devices-as-volume-mounts`)."""
_HARMLESS_CAPABILITIES = frozenset({"AUDIT_WRITE", "IPC_LOCK", "NET_BIND_SERVICE", "SYS_NICE", "SYS_PTRACE"})
"""Capabilities that give access to neither devices nor other containers (capabilities(7), Linux 6.1)."""
_ALL = "every GPU of this machine"


@dataclass(frozen=True, slots=True)
class Way:
    """One setting that bypasses the lease. `name` is its name in `c.GpuLab.past_lease`."""

    name: str
    value: str
    reaches: str

    def sentence(self) -> str:
        """What is wrong and what to do, for the admin."""
        return (
            f"{self.name} is {self.value}: this gives a lab access to {self.reaches}, regardless of its "
            f'lease. Remove it, or, to allow it, set c.GpuLab.past_lease = ["{self.name}"]'
        )


def ways(create: Mapping[str, Any], host: Mapping[str, Any], private: tuple[str, ...] = ()) -> list[Way]:
    """All settings in Docker's arguments that bypass the lease.

    No lab may mount the host folders `private`.
    """
    return [*_user(create), *_rights(host), *_devices(host), *_sources(host, private), *_others(host)]


def check(found: list[Way], allowed: frozenset[str]) -> None:
    """Raises ConfigError, naming the setting, for one that the admin didn't allow."""
    refused = [way for way in found if way.name not in allowed]
    if refused:
        raise ConfigError(f"extra_host_config or extra_create_kwargs: {refused[0].sentence()}")


def drop_devices(create: dict[str, Any], host: dict[str, Any], allowed: frozenset[str]) -> tuple[str, ...]:
    """Removes from both the settings that only a lease may give; returns the names of the removed ones."""
    dropped = [name for name in ("device_requests",) if host.pop(name, None)]
    for options in (create, host):
        if str(options.get("runtime") or "").startswith("nvidia"):
            del options["runtime"]
            dropped.append("runtime")
    devices = host.get("devices")
    if devices and "devices" not in allowed:
        kept = [device for device in devices if not _reaches_device(_device_path(device))]
        if len(kept) < len(devices):
            dropped.append("devices")
        host["devices"] = kept
    return tuple(dropped)


def bind_table(binds: Any) -> dict[str, Any]:
    """Docker's list of "source:target:mode" as docker-py's other form; that stays as it is."""
    if isinstance(binds, Mapping):
        return dict(binds)
    table = {}
    for text in binds or ():
        source, _, rest = str(text).partition(":")
        target, _, mode = rest.partition(":")
        table[source] = {"bind": target, "mode": mode or "rw"}
    return table


def _user(create: Mapping[str, Any]) -> Iterator[Way]:
    """Reports root, by number or name. Other names can't be checked here: only the image knows them."""
    user = str(create.get("user") or "")
    uid = user.partition(":")[0]
    if not uid.isdigit() or int(uid) == 0:
        reaches = "the MPS daemon of its GPU (root in a container can stop it)"
        yield Way("user", repr(user), reaches)


def _rights(host: Mapping[str, Any]) -> Iterator[Way]:
    if host.get("privileged"):
        yield Way("privileged", "True", _ALL)
    added = [str(each).upper().removeprefix("CAP_") for each in host.get("cap_add") or ()]
    beyond = sorted(set(added) - _HARMLESS_CAPABILITIES)
    if beyond:
        yield Way("cap_add", ", ".join(beyond), "what only the machine's root should access")
    dropped = {str(each).upper() for each in host.get("cap_drop") or ()}
    if "ALL" not in dropped:
        yield Way("cap_drop", "without ALL", "what only root should access: labs need no capability")
    for option in host.get("security_opt") or ():
        if str(option).replace("=", ":") == "no-new-privileges:false":
            reaches = "root by a setuid program, and with it the MPS daemon of its GPU"
            yield Way("security_opt", str(option), reaches)


def _devices(host: Mapping[str, Any]) -> Iterator[Way]:
    rules = host.get("device_cgroup_rules")
    if rules:
        yield Way("device_cgroup_rules", repr(list(rules)), "devices that aren't leased to it")
    for device in host.get("devices") or ():
        if _reaches_device(path := _device_path(device)):
            yield Way("devices", path, "GPUs that aren't leased to it")


def _sources(host: Mapping[str, Any], private: tuple[str, ...]) -> Iterator[Way]:
    for source, bind in bind_table(host.get("binds")).items():
        target = str(bind["bind"] if isinstance(bind, Mapping) else bind)
        yield from _mounted("binds", str(source), target, private)
    for mount in host.get("mounts") or ():
        options = ((mount.get("VolumeOptions") or {}).get("DriverConfig") or {}).get("Options") or {}
        for place in (mount.get("Source"), options.get("device")):
            yield from _mounted("mounts", str(place or ""), str(mount.get("Target") or ""), private)


def _mounted(name: str, source: str, target: str, private: tuple[str, ...]) -> Iterator[Way]:
    if any(_within(_normal(target), folder) for folder in _GPU_FOLDERS):
        yield Way(name, target, _ALL)
    elif source.startswith("/") and (reached := _reached(_normal(source), private)):
        yield Way(name, source, reached)


def _reached(path: str, private: tuple[str, ...]) -> str:
    """What this path of the host gives access to; "" if that is harmless."""
    if _reaches_device(path):
        return _ALL
    if any(_within(socket, path) for socket in _ENGINE_SOCKETS):
        return "Docker, and with it " + _ALL
    if path == "/proc" or _within("/proc/driver", path):
        return "the processes of other labs"
    if any(_within(folder, path) or _within(path, folder) for folder in map(_normal, private)):
        return "the broker's state"
    return ""


def _others(host: Mapping[str, Any]) -> Iterator[Way]:
    if host.get("volumes_from"):
        yield Way("volumes_from", repr(host["volumes_from"]), "what other containers mount")
    for name in ("pid_mode", "ipc_mode"):
        mode = str(host.get(name) or "")
        if mode == "host" or mode.startswith("container:"):
            yield Way(name, mode, "the processes of other labs")
    policy = host.get("restart_policy") or {}
    if policy.get("Name") not in (None, "", "no"):
        reaches = "devices that another user may hold when it restarts"
        yield Way("restart_policy", str(policy["Name"]), reaches)


def _reaches_device(path: str) -> bool:
    path = _normal(path)
    return path in ("/", "/dev") or path.startswith(_DEVICES) or "nvidia.com/" in path


def _device_path(device: Any) -> str:
    """The host's path of a device setting: docker-py takes "host:container:rwm" and Engine API dicts."""
    if isinstance(device, Mapping):
        return str(device.get("PathOnHost", ""))
    return str(device).partition(":")[0]


def _normal(path: str) -> str:
    """The path without `.`, `..` and double slashes (POSIX lets two slashes stand at the beginning)."""
    return "/" + posixpath.normpath(path).lstrip("/") if path.startswith("/") else path


def _within(path: str, folder: str) -> bool:
    return f"{path}/".startswith(folder if folder.endswith("/") else f"{folder}/")
