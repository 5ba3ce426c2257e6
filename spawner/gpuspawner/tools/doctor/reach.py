"""Finds the state folder and the broker to use, and explains why a broker can't be reached."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import BrokerUnavailable
from ...protocol.client import UNAVAILABLE

_VARIABLE = "GPUSPAWNER_STATE_DIR"
ELSEWHERE = f"If its state is in another folder, set {_VARIABLE}, or give the hub's config file with --config"


@contextmanager
def state_beside(config_file: str) -> Iterator[None]:
    """While settings are read: `.state` in the config file's folder, if used, is the default as in `make
    hub`.

    The environment and the config file take precedence.
    """
    folder = Path(config_file).resolve().parent / ".state"
    used = any((folder / name).exists() for name in ("broker.sock", "ledger.sqlite"))
    if not config_file or not used or _VARIABLE in os.environ:
        yield
        return
    os.environ[_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[_VARIABLE]


def unreachable(error: BrokerUnavailable, socket_path: str, config_file: str) -> str:
    """Why the broker can't be reached, with the socket and the source of its path."""
    source = f"config file: {Path(config_file).absolute()}" if config_file else "no config file was found"
    cause = getattr(error.__cause__, "os_error", None)
    if isinstance(cause, PermissionError):
        text = f"this user has no permission to open the broker's socket {socket_path}"
    elif error.message == UNAVAILABLE:
        text = f"the broker isn't running: nothing answers on {socket_path}"
    else:
        text = f"the broker's answer on {socket_path} can't be read"
    return f"{text} ({source})"
