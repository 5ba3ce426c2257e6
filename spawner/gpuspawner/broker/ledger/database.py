"""The connection to the database, and its errors as sentences that name the remedy."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ...core.errors import ConfigError, GpuSpawnerError, LedgerFault

BUSY_TIMEOUT_SECONDS = 2.0
"""How long a commit waits for another program's lock; everybody who wants a lease waits with it."""

QUICK_CHECK_MAX_BYTES = 64 << 20
"""Up to this size the file is checked for damage at open, at about 0.2 s."""


WRITE = "gpuspawner_write"
"""Execution option of a connection whose transactions will write."""


def make_engine(url: str) -> sa.Engine:
    """An engine for one connection. Raises ConfigError for a URL that can't be used."""
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise ConfigError(
                f"The ledger's URL names {backend!r}: use sqlite:////folder/ledger.sqlite or postgresql://…"
            )
        if backend == "postgresql":
            return sa.create_engine(parsed, pool_size=1, max_overflow=0, pool_pre_ping=True)
        engine = sa.create_engine(
            parsed, poolclass=sa.pool.StaticPool, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}
        )
    except (sa.exc.ArgumentError, ImportError) as error:
        raise ConfigError(
            f"The ledger's URL {url!r} can't be used ({error}): write it like sqlite:////folder/ledger.sqlite"
        ) from error
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin)
    return engine


def sqlite_path(engine: sa.Engine) -> Path | None:
    """The file of an SQLite ledger; None for PostgreSQL and for one in memory."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        return None
    return Path(name)


def create_private(path: Path) -> None:
    """Make the file, readable by nobody else (it names users), before SQLite would with the umask."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def quick_check(connection: sa.Connection) -> None:
    """Raise sqlite3.DatabaseError, as SQLite itself would, if the file is damaged."""
    path = sqlite_path(connection.engine)
    if path is None or path.stat().st_size > QUICK_CHECK_MAX_BYTES:
        return
    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed: {found}")


def explain(error: Exception, engine: sa.Engine, *, opening: bool = False) -> GpuSpawnerError:
    """The error as a ConfigError (a path or right is wrong at open) or LedgerFault, with what to do."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    path = sqlite_path(engine)
    where = str(path) if path is not None else engine.url.render_as_string()
    folder = path.parent if path is not None else Path()
    name = str(getattr(cause, "sqlite_errorname", ""))
    text = " ".join(str(cause).split())
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LedgerFault(
            f"The ledger {where} is locked by another program: close it (a second broker, an open sqlite3"
            f" shell, a backup) and try again. {_holders_hint(path)}"
        )
    if name.startswith("SQLITE_FULL") or (isinstance(cause, OSError) and cause.errno == 28):
        return LedgerFault(
            f"The ledger {where} can't grow: the disk is full. Free some space on {folder}; nothing was lost."
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "malformed" in text:
        return LedgerFault(
            f"The ledger {where} is damaged ({text}). Stop the broker, move {where}, {where}-wal and"
            f" {where}-shm away and start it again: leases of running notebooks are rebuilt from Docker,"
            " the history is not."
        )
    rights = name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH"))
    if rights or isinstance(cause, OSError):
        kind = ConfigError if opening else LedgerFault
        return kind(
            f"The ledger {where} can't be written ({text}): make {folder} a folder that the broker's user"
            " may write, or name another one in c.GpuSite.state_dir."
        )
    if name.startswith("SQLITE_IOERR"):
        return LedgerFault(
            f"The disk under the ledger {where} fails ({text}): see dmesg, then free or replace it."
        )
    return LedgerFault(f"The ledger {where} gave an error ({text}): see the broker's log.")


def _holders_hint(path: Path | None) -> str:
    return f"`fuser -v {path}` names it." if path is not None else ""


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, see _begin
    cursor = connection.cursor()
    # FULL: the write-ahead log is fsync'd at every commit, so a lease outlives a power cut.
    # The log goes into the main file every 16 MiB, about 500 commits; SQLite's 4 MiB would show in the p99.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=4000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    # To write, the lock is taken at once: a transaction that began by reading could fail to get it later.
    write = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
