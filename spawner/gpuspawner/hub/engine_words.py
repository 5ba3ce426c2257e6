"""Docker's errors as sentences: what the user reads, and what the admin has to do. Pure.

The patterns match messages of Docker Engine 20.10 to 28.5 and of runc 1.1. For an unknown error, the
admin reads Docker's own message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import ConfigError, EngineFault
from ..core.text import escape_name
from .home import Home


@dataclass(frozen=True, slots=True)
class Said:
    """The two sentences about a fault. `reason` labels the metric, `status` is HTTP's."""

    user: str
    admin: str
    reason: str = "docker"
    status: int = 503

    def __str__(self) -> str:
        return f"{self.user} Admin: {self.admin}"


_Make = Callable[[re.Match[str]], Said]


def explain(fault: EngineFault, user: str = "", server: str = "") -> Said:
    """What a Docker fault means for the user whose server didn't start; both names as in the hub."""
    words = str(fault)
    if fault.status is None:
        return _unreachable(words)
    if (too_long := _TOO_LONG.search(words)) is not None:
        return _too_long(_blamed(words[: too_long.start()], user, server))
    for pattern, make in _KNOWN:
        if match := pattern.search(words):
            return make(match)
    return Said(
        "Docker refused to start your server. Trying again doesn't help until an admin has fixed it.",
        f"Docker says: {words[:400]}",
        status=500,
    )


def unusable(error: TypeError) -> ConfigError:
    """docker-py's TypeError for `extra_host_config` or `extra_create_kwargs` as a sentence."""
    words = str(error)
    if match := re.search(r"unexpected keyword argument '(\w+)'", words):
        return ConfigError(
            f"extra_host_config or extra_create_kwargs has {match[1]!r}, which docker-py doesn't know: "
            "remove it, or use the names of docker-py's create_host_config or create_container"
        )
    return ConfigError(f"extra_host_config or extra_create_kwargs: {words}")


def home_fault(words: str, home: Home | None, user: str, image: str) -> str:
    """The sentence for a server that ended because its user can't write to its home; "" for other reasons.

    `words` are its last log lines, `user` the "uid:gid" of its processes, `image` an image on this machine.
    """
    if home is None:
        return ""
    source, target = home.volume.source, home.volume.target
    if not re.search(rf"[Pp]ermission denied:? ['\"]?{re.escape(target)}", words):
        return ""
    if source.startswith("/"):
        command = f"chown -R {user} {source}"
    else:
        command = f"docker run --rm -u 0 --entrypoint chown -v {source}:/home {image} -R {user} /home"
    return (
        f"Your server can't write to your home {target}: it belongs to another user, probably root. "
        f"Admin: run `{command}`."
    )


def _unreachable(words: str) -> Said:
    if "permission denied" in words.lower():
        return Said(
            "No server can be started right now: the hub has no permission to use Docker.",
            "give the user that runs the hub access to Docker's socket (group docker), then restart the hub.",
        )
    return Said(
        "Docker doesn't answer right now, so no server can be started. Try again in a minute.",
        "see `docker info` and the log of the hub.",
    )


def _device(match: re.Match[str]) -> Said:
    return Said(
        "Docker can't give your server its GPU. Choose a server without a GPU, or tell an admin.",
        f"Docker says: {match[0][:300]}. Run `gpuspawner doctor`; `nvidia-ctk cdi generate "
        "--output=/etc/cdi/nvidia.yaml` writes a new CDI spec.",
        "device",
    )


def _mount(match: re.Match[str]) -> Said:
    return Said(
        "A folder that all servers here mount can't be mounted, so your server can't be started.",
        f"Docker says: {match[0][:300]}. Create the folder on the host, or remove it from "
        "c.GpuDockerSpawner.volumes.",
        "mount",
    )


def _blamed(path: str, user: str, server: str) -> str:
    """Which name makes the path too long, "user" or "server": the longer one of those in it; "" for none."""
    names = {"user": escape_name(user.lower()), "server": escape_name(server.lower())}
    found = [whose for whose, name in names.items() if name and name in path]
    return max(found, key=lambda whose: len(names[whose]), default="")


def _too_long(whose: str) -> Said:
    """The log has Docker's own message, with the name, before this."""
    sentences = {
        "user": "Your user name is too long for Docker: ask your admin for a shorter one.",
        "server": "The name of your server is too long for Docker. Give it a shorter one.",
        "": "A name in the settings of this hub is too long for Docker: tell your admin.",
    }
    return Said(
        sentences[whose],
        "Docker says: file name too long. A shorter c.GpuDockerSpawner.prefix or volume name also helps.",
        "name_too_long",
        400,
    )


def _full(match: re.Match[str]) -> Said:
    return Said(
        "The disk of this machine is full, so no server can be started. Your files are not changed.",
        "`docker system df` shows what uses the space, `gpuspawner homes` how large the homes are.",
        "disk_full",
    )


def _runtime(match: re.Match[str]) -> Said:
    return Said(
        "Docker lacks the runtime that your server needs.",
        f"Docker says: {match[0][:300]}. Install it, or remove `runtime` from extra_host_config.",
        "runtime",
        500,
    )


def _init(match: re.Match[str]) -> Said:
    return Said(
        "Docker's own init program is missing on this machine, so no server of this image can be started.",
        "install docker-init (it comes with Docker's packages; Debian: `apt install tini`), or set "
        'c.GpuDockerSpawner.extra_host_config = {"init": False}.',
        "no_init",
        500,
    )


def _limits(match: re.Match[str]) -> Said:
    return Said(
        "Docker can't set the limits that your server needs.",
        f"Docker says: {match[0][:300]}. Docker has no right to raise limits of processes: lower those of "
        "extra_host_config, or run Docker with CAP_SYS_RESOURCE.",
        "limits",
        500,
    )


def _port(match: re.Match[str]) -> Said:
    return Said(
        "The port of your server is in use on this machine. Try again.",
        f"Docker says: {match[0][:300]}.",
        "port",
    )


def _compile(words: str) -> re.Pattern[str]:
    return re.compile(words, re.IGNORECASE)


_TOO_LONG = _compile(r"file name too long")
_KNOWN: tuple[tuple[re.Pattern[str], _Make], ...] = (
    (_compile(r"no space left on device|disk quota exceeded"), _full),
    (_compile(r"docker-init.*(not found|no such file)"), _init),
    (
        _compile(
            r"(cdi device injection failed|unresolvable cdi devices?|could not select device driver"
            r"|failed to inject cdi devices?|error gathering device information|nvidia-container-cli:).*"
        ),
        _device,
    ),
    (
        _compile(
            r"(error while creating mount source path|bind source path does not exist|invalid mount config"
            r"|error while mounting volume|failed to mount local volume|error mounting \"|invalid volume"
            r"|not a directory: unknown: are you trying to mount|is not a shared).*"
        ),
        _mount,
    ),
    (_compile(r"(unknown or invalid runtime name|unknown runtime specified).*"), _runtime),
    (_compile(r"error setting rlimit.*"), _limits),
    (_compile(r"port is already allocated.*|address already in use.*"), _port),
)
"""Patterns of Docker's and runc's messages and their explanations; the first match counts."""
