"""A ledger on a disk, time that the test moves, and a scripted driver."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger, Steady
from gpuspawner.core.errors import LedgerFault
from gpuspawner.node.inventory import NvmlInventory

from tests import postgres as postgresql
from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Script
from tests.unit.lease_examples import GPU0, GPU1, UUIDS

pytest.register_assert_rewrite(
    "tests.unit.allocator_machine", "tests.unit.share_walk", "tests.unit.slice_machine"
)


class Times:
    """A wall clock and a steady one, and ledgers that go by them."""

    def __init__(self) -> None:
        self.wall = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
        self.steady = Steady("boot-1", 1000.0)

    def now(self) -> datetime:
        """The wall clock."""
        return self.wall

    def pass_seconds(self, seconds: float) -> None:
        """Time passes on both clocks."""
        self.wall += timedelta(seconds=seconds)
        self.steady = self.steady._replace(seconds=self.steady.seconds + seconds)

    def set_clock(self, seconds: float) -> None:
        """Somebody sets the wall clock, forward or back; no time passes."""
        self.wall += timedelta(seconds=seconds)

    def reboot(self, down_seconds: float) -> None:
        """The machine is down for a while, then counts from the start."""
        self.wall += timedelta(seconds=down_seconds)
        self.steady = Steady(self.steady.boot_id + "'", 10.0)

    def make_ledger(self, where: Path | str, kind: type[Ledger] = Ledger, **settings: Any) -> Ledger:
        """A ledger in this file, or at this URL, not yet open."""
        url = where if isinstance(where, str) and "://" in where else f"sqlite:///{where}"
        return kind(url, clock=self.now, steady=lambda: self.steady, **settings)


class FaultyLedger(Ledger):
    """Fails its next commit when told to: `before` nothing was written, `after` only the answer was lost."""

    fault = ""
    written = 0

    def commit(self, change: Any) -> None:
        fault, self.fault = self.fault, ""
        if fault == "before":
            raise LedgerFault("the disk is full")
        super().commit(change)
        self.written += 1
        if fault == "after":
            raise LedgerFault("the answer was lost")


@pytest.fixture(scope="session")
def faulty_ledger() -> type[FaultyLedger]:
    """A ledger whose commits fail on order."""
    return FaultyLedger


@pytest.fixture(scope="session")
def new_times() -> type[Times]:
    """To make fresh times within one test, as Hypothesis needs them."""
    return Times


@pytest.fixture
def times() -> Times:
    """The test's clocks."""
    return Times()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the ledger's file is."""
    return tmp_path / "ledger.sqlite"


@pytest.fixture
async def ledger(path: Path, times: Times) -> AsyncIterator[Ledger]:
    """An empty, open ledger."""
    ledger = times.make_ledger(path)
    await ledger.open()
    yield ledger
    await ledger.close()


@pytest.fixture
async def allocator(ledger: Ledger, times: Times) -> Allocator:
    """Two H100."""
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0, GPU1])
    return allocator


@pytest.fixture
def query(path: Path | str) -> Callable[[str], list[tuple[Any, ...]]]:
    """Rows of the ledger as another program sees them."""

    def run(sql: str) -> list[tuple[Any, ...]]:
        engine = sa.create_engine(path if isinstance(path, str) else f"sqlite:///{path}")
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.exec_driver_sql(sql)]
        finally:
            engine.dispose()

    return run


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables. A test with it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    server: postgresql.Server = request.getfixturevalue("postgres")
    return server.url(server.create())


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, fast_folder: Path) -> Callable[[], str]:
    """Gives the URL of an empty ledger, again and again, as Hypothesis needs them. On both kinds."""
    if request.param == "sqlite":
        names = itertools.count()
        return lambda: f"sqlite:///{shutil.copy(fast_folder / 'empty', fast_folder / f'fresh-{next(names)}')}"
    server: postgresql.Server = request.getfixturevalue("postgres")
    name = server.create()
    asyncio.run(_make_empty(server.url(name)))

    def emptied() -> str:
        with server.connect(name) as connection:
            connection.execute(
                "TRUNCATE leases, lease_devices, lease_groups, awake, ended_processes, decisions, "
                "wait_errors, end_warnings"
            )
        return server.url(name)

    return emptied


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """The scripted NVML library, with two whole GPUs."""
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(uuid) for uuid in UUIDS]
        script.write()
        yield script


@pytest.fixture
def inventory(script: Script) -> Iterator[NvmlInventory]:
    """The scripted library's devices, by the real pynvml."""
    inventory = NvmlInventory()
    yield inventory
    inventory.close()


@pytest.fixture(scope="session")
def fast_folder() -> Iterator[Path]:
    """In memory where there is such a place, as Hypothesis writes a lot; holds `empty`, a migrated ledger."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        asyncio.run(_make_empty(Path(name) / "empty"))
        yield Path(name)


async def _make_empty(where: Path | str) -> None:
    ledger = Times().make_ledger(where)
    await ledger.open()
    await ledger.close()
