"""Brings a ledger to the newest schema."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from ...core.errors import ConfigError
from .schema import HEAD

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(connection: sa.Connection) -> None:
    """Run the missing migrations in the connection's current transaction; does nothing at HEAD.

    Raises ConfigError for a ledger that a newer program has written.
    """
    found = _revision(connection)
    if found == HEAD:
        return
    # Imported here: it takes longer than opening a ledger that needs no migration.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    # alembic reads this as an ini value, in which a percent sign must be doubled.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise ConfigError(
            f"The ledger {connection.engine.url.render_as_string()} has schema {found!r}, written by a newer"
            f" gpuspawner; this one knows up to {HEAD!r}. Install the newer version again, or move the ledger"
            " away: leases of running notebooks are rebuilt from Docker, the history is not."
        )
    command.upgrade(config, "head")


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
