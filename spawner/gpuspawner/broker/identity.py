"""This broker's id, in its state folder: it distinguishes the leases of brokers in a shared database."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

from ..core.errors import ConfigError

_ID = re.compile(r"[0-9a-f]{32}")


def broker_id(state_dir: Path) -> str:
    """The id in the file `broker.id`, created at the first start; call this under the broker's lock.

    It is on disk when this returns. Blocks on fsync. Raises ConfigError if it can't be read or written.
    """
    path = state_dir / "broker.id"
    try:
        if path.exists():
            found = path.read_text(encoding="ascii", errors="replace").strip()
            if _ID.fullmatch(found):
                return found
            raise ConfigError(
                f"{path} does not hold a broker's id: restore it, or remove it. Without it, this broker "
                "takes over its leases in a shared database from their running containers"
            )
        made = uuid.uuid4().hex
        _write(path, made)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be used: {error.strerror}. Let the broker's user read and write there"
        ) from error
    return made


def _write(path: Path, text: str) -> None:
    """Write the whole file or nothing, also in a crash."""
    new = path.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
