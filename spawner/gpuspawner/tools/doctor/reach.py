"""Which state folder and which broker are meant, and the sentence if that one can't be reached."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import BrokerUnavailable
from ...protocol.client import UNAVAILABLE

_VARIABLE = "GPUSPAWNER_STATE_DIR"
ELSEWHERE = f"If its state is elsewhere, set {_VARIABLE}, or name the hub's config file with --config"


@contextmanager
def state_beside(config_file: str) -> Iterator[None]:
    """While settings are read: `.state` beside the config file, if used, is the default as in `make hub`.

    What the environment says already, or the config file sets, wins.
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
    """What keeps us from the broker, with the socket that was tried and where its path is from."""
    source = f"config file: {Path(config_file).absolute()}" if config_file else "no config file was found"
    cause = getattr(error.__cause__, "os_error", None)
    if isinstance(cause, PermissionError):
        text = f"the broker's socket {socket_path} may not be opened by this user"
    elif error.message == UNAVAILABLE:
        text = f"the broker isn't running: nothing answers on {socket_path}"
    else:
        text = f"the broker gives no answer that can be read on {socket_path}"
    return f"{text} ({source})"
