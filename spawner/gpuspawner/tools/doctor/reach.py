"""Finds the state folder and the broker to use, and explains why a broker can't be reached."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import BrokerUnavailable
from ...protocol.client import UNAVAILABLE

_VARIABLE = "GPUSPAWNER_STATE_DIR"
ELSEWHERE = f"If its state is in another folder, set {_VARIABLE}, or give the hub's config file with --config"


REMEMBERED = "environment.json"
"""In the state folder: the variables with which `make hub` has started the hub, without its passwords."""


@contextmanager
def state_beside(config_file: str) -> Iterator[None]:
    """While settings are read: `.state` in the config file's folder, if used, is the default as in `make
    hub`, and so are the variables with which it was started.

    The environment and the config file take precedence.
    """
    beside = Path(config_file).resolve().parent / ".state"
    folder = Path(os.environ.get(_VARIABLE) or beside)
    if not config_file or not any((folder / each).exists() for each in ("broker.sock", "ledger.sqlite")):
        yield
        return
    known = {**_remembered(folder), _VARIABLE: str(folder)}
    added = {key: value for key, value in known.items() if key not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


def _remembered(folder: Path) -> dict[str, str]:
    """The variables in the state folder; none if there are none, or if they can't be read."""
    try:
        found = json.loads((folder / REMEMBERED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in pairs if key.startswith("GPUSPAWNER_") and isinstance(value, str)}


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
