"""Every error of the ledger names the remedy, and nothing is lost."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.ledger import Ledger, schema
from gpuspawner.core.errors import ConfigError, LedgerFault

from tests.unit.lease_examples import NOON, PAIR, PAIR_RUNNING

# Errors name the remedy, and nothing is lost.


async def test_locked_by_another_program(path: Path, times: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuspawner.broker.ledger.database.BUSY_TIMEOUT_SECONDS", 0.2)
    ledger = times.make_ledger(path)
    await ledger.open()
    await ledger.save(PAIR, at=NOON)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    faults: list[str] = []
    ledger.on_fault = lambda: faults.append("fault")
    with pytest.raises(LedgerFault) as fault:
        await ledger.save(PAIR_RUNNING, at=NOON)
    assert str(fault.value) == (
        f"The ledger {path} is locked by another program: close it (a second broker, an open sqlite3 shell,"
        f" a backup) and try again. `fuser -v {path}` names it."
    )
    assert fault.value.__cause__ is not None
    assert await ledger.living() == (PAIR,)  # reading goes on
    assert faults == ["fault"]
    with pytest.raises(LedgerFault, match="is locked by another program: close it"):
        await times.make_ledger(path).open()
    other.execute("ROLLBACK")
    other.close()
    await ledger.save(PAIR_RUNNING, at=NOON)
    assert await ledger.living() == (PAIR_RUNNING,)
    await ledger.close()


async def test_disk_full(ledger: Ledger, path: Path) -> None:
    await ledger.save(PAIR, at=NOON)

    def limit(pages: int) -> None:
        with ledger._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    await ledger._in_thread(limit, 1)
    crowd = [replace(PAIR, id=f"{number:032x}", notice="x" * 4000) for number in range(50)]
    with pytest.raises(LedgerFault) as fault:
        await ledger.save(PAIR_RUNNING, *crowd, at=NOON)
    assert str(fault.value) == (
        f"The ledger {path} can't grow: the disk is full. Free some space on {path.parent}; nothing was lost."
    )
    assert await ledger.living() == (PAIR,)
    await ledger._in_thread(limit, 1 << 20)
    await ledger.save(PAIR_RUNNING, at=NOON)
    assert await ledger.living() == (PAIR_RUNNING,)


REBUILT = "leases of running notebooks are rebuilt from Docker, the history is not."


async def test_not_a_database(path: Path, times: Any) -> None:
    path.write_bytes(b"not a database " * 1000)
    before = path.read_bytes()
    with pytest.raises(LedgerFault) as fault:
        await times.make_ledger(path).open()
    assert str(fault.value) == (
        f"The ledger {path} is damaged (file is not a database). Stop the broker, move {path}, {path}-wal and"
        f" {path}-shm away and start it again: {REBUILT}"
    )
    assert path.read_bytes() == before


async def test_damaged_in_the_middle(path: Path, times: Any) -> None:
    ledger = times.make_ledger(path)
    await ledger.open()
    await ledger.save(*(replace(PAIR, id=f"{number:032x}") for number in range(500)), at=NOON)
    await ledger.close()
    with path.open("r+b") as file:
        for page in range(3, 30):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with pytest.raises(LedgerFault, match=r"is damaged \(.*malformed.*\)\. Stop the broker, move") as fault:
        await times.make_ledger(path).open()
    assert str(fault.value).endswith(REBUILT)


async def test_damaged_while_open(ledger: Ledger, path: Path) -> None:
    await ledger.save(*(replace(PAIR, id=f"{number:032x}") for number in range(500)), at=NOON)

    def damage() -> None:
        with ledger._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        with path.open("r+b") as file:
            for page in range(3, 60):
                file.seek(page * 4096)
                file.write(os.urandom(4096))
        with ledger._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA shrink_memory")

    await ledger._in_thread(damage)
    with pytest.raises(LedgerFault, match="is damaged"):
        await ledger.living()


async def test_no_such_folder(tmp_path: Path, times: Any) -> None:
    path = tmp_path / "missing" / "ledger.sqlite"
    with pytest.raises(ConfigError) as error:
        await times.make_ledger(path).open()
    assert str(error.value) == (
        f"The ledger {path} can't be written ([Errno 2] No such file or directory: '{path}'): make"
        f" {path.parent} a folder that the broker's user may write, or name another one in"
        " c.GpuSite.state_dir."
    )


async def test_read_only_file(path: Path, times: Any) -> None:
    """SQLite's own view of a file or file system that it may only read (root would write it all the same)."""
    ledger = times.make_ledger(path)
    await ledger.open()
    await ledger.save(PAIR, at=NOON)

    def protect(on: bool) -> None:
        with ledger._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA query_only={int(on)}")

    await ledger._in_thread(protect, True)
    with pytest.raises(LedgerFault, match=r"can't be written .*: make .* a folder that the broker's user"):
        await ledger.save(PAIR_RUNNING, at=NOON)
    await ledger._in_thread(protect, False)
    assert await ledger.living() == (PAIR,)
    await ledger.close()


async def test_written_by_a_newer_program(path: Path, times: Any, query: Any) -> None:
    ledger = times.make_ledger(path)
    await ledger.open()
    await ledger.save(PAIR, at=NOON)
    await ledger.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigError) as error:
        await times.make_ledger(path).open()
    assert str(error.value) == (
        f"The ledger sqlite:///{path} has schema '9999', written by a newer gpuspawner; this one knows up to"
        f" '{schema.HEAD}'. Install the newer version again, or move the ledger away: {REBUILT}"
    )
    assert query("SELECT id FROM leases") == [(PAIR.id,)]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ledger.sqlite", "The ledger's URL 'ledger.sqlite' can't be used"),
        (
            "mysql://host/db",
            "The ledger's URL names 'mysql': use sqlite:////folder/ledger.sqlite or postgresql",
        ),
        ("nosuch://host/db", "The ledger's URL names 'nosuch': use sqlite"),
        ("postgresql+nosuch://host/db", r"The ledger's URL 'postgresql\+nosuch://host/db' can't be used"),
    ],
)
def test_unusable_urls(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ledger(url)


async def test_a_closed_ledger_says_so(path: Path, times: Any) -> None:
    ledger = times.make_ledger(path)
    with pytest.raises(LedgerFault, match="The ledger is not open"):
        await ledger.save(PAIR, at=NOON)
    await ledger.open()
    await ledger.close()
    await ledger.close()
    with pytest.raises(LedgerFault, match="The ledger is closed"):
        await ledger.save(PAIR, at=NOON)


async def test_in_memory(times: Any) -> None:
    """For trying things out: no file, gone when closed."""
    ledger = Ledger("sqlite://", clock=lambda: times.wall, steady=lambda: times.steady)
    await ledger.open()
    await ledger.save(PAIR_RUNNING, at=NOON)
    assert await ledger.living() == (PAIR_RUNNING,)
    await ledger.close()
