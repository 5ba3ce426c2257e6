"""The connection to the database, and its errors as sentences that name the remedy."""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ...core.errors import ConfigError, GpuSpawnerError, LedgerFault

BUSY_TIMEOUT_SECONDS = 2.0
"""How long a commit waits for another program's lock; all requests for a lease wait as long."""

CONNECT_TIMEOUT_SECONDS = 5
"""How long PostgreSQL may take to accept a connection; libpq takes whole seconds, 2 at least."""
STATEMENT_TIMEOUT_SECONDS = 5.0
"""How long PostgreSQL may work on one statement; ours take milliseconds."""
MIGRATION_TIMEOUT_SECONDS = 600.0
"""The same limit while the ledger is opened: a migration may have to rewrite every row."""
_OPEN_LOCK = 0x67707573  # "gpus"
"""PostgreSQL's advisory lock while a ledger is opened: two brokers must not migrate it at the same time."""

QUICK_CHECK_MAX_BYTES = 64 << 20
"""Up to this size the file is checked for damage at open, at about 0.2 s."""


WRITE = "gpuspawner_write"
"""Execution option of a connection whose transactions will write."""


def make_engine(url: str) -> sa.Engine:
    """An engine for one connection. Raises ConfigError for an invalid URL."""
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise ConfigError(
                f"The ledger's URL names {backend!r}: use sqlite:////folder/ledger.sqlite or postgresql://…"
            )
        if backend == "postgresql":
            return _make_postgresql(parsed)
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


def _make_postgresql(url: sa.URL) -> sa.Engine:
    """An engine with a time limit for every wait: for the connection, for locks, for an answer.

    The limits are set in the session and not with libpq's `options`, which PgBouncer refuses.
    """
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url,
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS},
    )
    sa.event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
        cursor.execute(f"SET statement_timeout = {int(STATEMENT_TIMEOUT_SECONDS * 1000)}")
    connection.commit()


def begin_open(connection: sa.Connection) -> None:
    """In the transaction that opens the ledger: take the lock, and allow enough time for a migration."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_OPEN_LOCK})")
        milliseconds = int(MIGRATION_TIMEOUT_SECONDS * 1000)
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")


def hang_up(raw: Any) -> None:
    """Break the connection `raw` (psycopg's) from another thread: a call that waits for its answer fails.

    Does nothing for SQLite, which waits for no other machine.
    """
    try:
        number = raw.fileno()
    except Exception:  # closed already, or no connection of a network
        return
    with suppress(OSError), socket.socket(fileno=os.dup(number)) as copy:
        copy.shutdown(socket.SHUT_RDWR)


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
    if engine.dialect.name == "postgresql":
        return _explain_postgresql(cause, where, text, opening)
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


def _explain_postgresql(cause: object, where: str, text: str, opening: bool) -> GpuSpawnerError:
    """By SQLSTATE (PostgreSQL 15, appendix A); without one there was no answer."""
    state = str(getattr(cause, "sqlstate", None) or "")
    if state in ("55P03", "40P01"):
        return LedgerFault(
            f"The ledger {where} is locked by another session: see pg_stat_activity and pg_locks, end that"
            " session (pg_terminate_backend), and try again. Nothing was lost."
        )
    if state == "57014":
        return LedgerFault(
            f"The ledger {where} took longer than {STATEMENT_TIMEOUT_SECONDS:g} s for one statement: see the"
            " load of the database server. Nothing was lost."
        )
    if state in ("53100", "53200", "53300"):
        return LedgerFault(
            f"The database server of the ledger {where} lacks disk, memory or connections ({text}): free"
            " some. Nothing was lost."
        )
    if state == "25006":
        return LedgerFault(
            f"The ledger {where} can only be read: name the primary server, not a standby, in"
            " c.GpuBroker.database_url."
        )
    refused = state.startswith(("28", "3D", "3F", "42501")) or "authentication failed" in text
    if opening and (refused or "does not exist" in text):
        return ConfigError(
            f"The ledger {where} can't be opened ({text}): create the database and let its user create"
            " tables, or correct c.GpuBroker.database_url."
        )
    if not state or state.startswith(("08", "57P")):
        return LedgerFault(
            f"The database server of the ledger {where} does not answer ({text}): see that it runs and can be"
            " reached from here."
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
