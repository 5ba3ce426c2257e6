"""The options that a server was started with, in the hub's database: its next start offers them again."""

from __future__ import annotations

from typing import Any

from dockerspawner import DockerSpawner
from sqlalchemy.orm import object_session


def keep_options(spawner: DockerSpawner, options: dict[str, Any]) -> None:
    """Stores them in the spawner and in the hub's database."""
    spawner.user_options = options
    stored = spawner.orm_spawner
    if stored is not None and stored.user_options != options:
        stored.user_options = options
        commit(stored)


def last_options(spawner: DockerSpawner) -> Any:
    """The options of this server's last start, or of the user's server that was used last."""
    if spawner.user_options:
        return spawner.user_options
    used = [row for row in spawner.user.orm_spawners.values() if row.user_options and row.last_activity]
    last = max(used, key=lambda row: row.last_activity, default=None)
    return {} if last is None else last.user_options


def commit(stored: Any) -> None:
    """Writes a row of the hub's database now: the hub rolls back at the end of a request."""
    session = object_session(stored)
    if session is not None:
        session.commit()
