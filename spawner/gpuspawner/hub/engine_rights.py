"""Whether the Docker Engine of this machine may raise the limits of processes (CAP_SYS_RESOURCE).

An engine that runs in a container, or as a user (rootless), may not: runc then fails each start with "error
setting rlimit". Docker doesn't tell this, but the kernel does, about the process that listens on its socket.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CAP_SYS_RESOURCE = 24
_SCHEME = "unix://"
_DEFAULT = "unix:///var/run/docker.sock"


def may_raise_limits(info: Mapping[str, Any], host: str = "", proc: Path = Path("/proc")) -> bool:
    """Whether it may, by `docker info` and the process that listens on the socket; True if unknown.

    `host` is an address as in DOCKER_HOST, whose value is the default. An engine on another machine, or
    outside our own pid namespace, can't be checked.
    """
    if any("name=rootless" in str(option) for option in info.get("SecurityOptions") or ()):
        return False
    address = host or os.environ.get("DOCKER_HOST") or _DEFAULT
    if not address.startswith(_SCHEME):
        return True
    try:
        pid = _peer(address.removeprefix(_SCHEME))
        status = (proc / str(pid) / "status").read_text(encoding="ascii", errors="replace") if pid else ""
    except OSError:
        return True
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return match is None or bool(int(match[1], 16) >> _CAP_SYS_RESOURCE & 1)


def _peer(path: str) -> int:
    """The pid of the process that listens on a unix socket (SO_PEERCRED); 0 if it is in another namespace."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(path)
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", found)[0]
    return pid
