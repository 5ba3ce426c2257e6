"""The broker's process: settings, start and end, and one sentence with the remedy when it can't start."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import aiohttp
import pytest
from gpuspawner.broker.app import GpuBroker, main
from gpuspawner.broker.assembly.rounds import NOT_SET_UP, Rounds
from gpuspawner.broker.enforce.way_in import WayIn
from gpuspawner.broker.keeper import EXIT_SETTINGS
from gpuspawner.broker.lock import BrokerLock
from gpuspawner.core.errors import BrokerUnavailable, ConfigError, EngineFault
from gpuspawner.core.model import GpuRequest
from gpuspawner.core.want import Want
from jupyterhub.services.auth import HubOAuth

from tests.nvml.scripted import Script
from tests.soon import SOON_SECONDS
from tests.unit.lease_examples import UUIDS
from tests.unit.whole_broker import running, settings, state_folder

REQUEST = GpuRequest("a" * 32, "hub", "anna", "", "gpu", Want(1))


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with state_folder(monkeypatch) as found:
        yield found


def test_settings_of_hub_and_broker_come_from_one_file(folder: Path) -> None:
    broker = GpuBroker()
    broker.initialize(
        [
            *settings(
                folder,
                "c.JupyterHub.port = 8000\n"
                "c.GpuBroker.reconcile_seconds = 1\n"
                "c.GpuSite.queue_timeout = 60\n"
                "c.GpuSite.tiers = [{'name': 'pair', 'devices': 2}]\n",
            ),
            "--take-over",
        ]
    )
    tier = broker.tiers[0]
    found = (
        broker.reconcile_seconds,
        broker.site.queue_timeout,
        broker.take_over,
        tier.name,
        tier.want.device_count,
    )
    assert found == (1.0, 60.0, True, "pair", 2)
    assert broker.state_dir == folder
    assert broker.database_url == f"sqlite:///{folder}/ledger.sqlite"


def test_the_command_line_wins_over_the_file(folder: Path) -> None:
    broker = GpuBroker()
    argv = settings(folder, "c.GpuBroker.reconcile_seconds = 1")
    broker.initialize([*argv, "--GpuBroker.reconcile_seconds=0.5"])
    assert broker.reconcile_seconds == 0.5


def fails(capsys: pytest.CaptureFixture[str], argv: list[str], status: int = EXIT_SETTINGS) -> str:
    """The last line that a broker prints that can't start; its exit status is `status`."""
    assert main(argv) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last.startswith("gpuspawner broker: ")
    return last.removeprefix("gpuspawner broker: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("c.GpuBroker.reconcile_seconds = 'often'", "A setting can't be used: The 'reconcile_seconds' trait"),
        ("c.GpuSite.queue_timeout = 0", "A setting can't be used: The value of the 'queue_timeout' trait"),
        ("c.GpuSite.tiers = []", "c.GpuSite.tiers is empty: give at least one tier"),
        ("c.GpuSite.tiers =", "failed in line 2: SyntaxError"),
        (
            "c.GpuSite.quotas = [\n{'devices': -1}]",
            "config.py:3: c.GpuSite.quotas, entry 1 (everybody): devices",
        ),
        ("1 / 0", "failed in line 2: ZeroDivisionError: division by zero"),
        ("c.GpuSite.simulated_devices = 'many'", "c.GpuSite.simulated_devices: 'many' can't be read"),
        ("c.GpuSite.socket_path = '/nowhere/b.sock'", "set c.GpuSite.socket_path to another path"),
        (f"c.GpuSite.socket_path = '/tmp/{'x' * 103}'", "set c.GpuSite.socket_path to a shorter one"),
        ("c.GpuBroker.database_url = 'sqlite:////nowhere/l.sqlite'", "/nowhere"),
    ],
)
def test_a_setting_that_cannot_work_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    assert sentence in fails(capsys, settings(folder, f"c.GpuSite.inventory = 'simulated'\n{text}"))


def test_a_config_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, ["--config", "/nowhere/jupyterhub_config.py"]) == (
        "The config file /nowhere/jupyterhub_config.py doesn't exist: give the hub's config "
        "file with --config"
    )


def test_a_state_folder_that_is_a_file_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("GPUSPAWNER_STATE_DIR", str(folder / "file"))
    assert fails(capsys, []) == (
        f"The state folder {folder}/file can't be created: File exists. Set another one with "
        "c.GpuSite.state_dir or GPUSPAWNER_STATE_DIR, or fix the permissions"
    )


def test_a_damaged_ledger_is_named_and_left_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ledger.sqlite").write_bytes(b"garbage" * 1000)
    assert str(folder / "ledger.sqlite") in fails(capsys, [], status=1)
    assert (folder / "ledger.sqlite").read_bytes() == b"garbage" * 1000


def test_a_locked_ledger_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = sqlite3.connect(folder / "ledger.sqlite")
    connection.execute("BEGIN EXCLUSIVE")
    assert "locked" in fails(capsys, [], status=1)
    connection.close()


def test_a_second_broker_names_the_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = BrokerLock(folder)
    lock.acquire(take_over=False)
    assert fails(capsys, []) == (
        f"A broker runs on {folder} already (process {os.getpid()}): stop it first, start this one with "
        "--take-over, or give it its own state folder (c.GpuSite.state_dir)"
    )
    lock.release()


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The environment of a hub's service; the port of its page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "SERVICE_URL": f"http://127.0.0.1:{port}",
        "SERVICE_PREFIX": "/base/services/gpu/",
        "API_URL": "http://127.0.0.1:1/base/hub/api",
        "API_TOKEN": "test",
        "CLIENT_ID": "service-gpu",
        "BASE_URL": "/base/",
    }.items():
        monkeypatch.setenv(f"JUPYTERHUB_{name}", value)
    HubOAuth.clear_instance()
    yield port
    HubOAuth.clear_instance()


# tornado 6.6 leaves a socket that can't be bound to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_taken_port_is_named(page: int, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", page))
        other.listen()
        assert fails(capsys, []) == (
            f"The GPU page can't listen on http://127.0.0.1:{page}: Address already in use. Set another "
            "port for the service in jupyterhub_config.py, or stop the program that uses this one"
        )
    gc.collect()


async def test_without_docker_it_answers_and_gives_nothing_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuspawner.broker.leases.leasing.READY_SECONDS", 0.1)
    async with running(folder) as (_, client):
        status = await client.status()
        found = (status["simulated"], len(status["devices"]), status["leases"], status["queue"])
        assert found == (True, 2, [], [])
        tiers = (await client.tiers())["tiers"]
        assert [(tier["name"], tier["free"], tier["total"]) for tier in tiers] == [
            ("cpu", None, None),
            ("gpu", 2, 2),
        ]
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(folder / "broker.sock"))) as session,
            session.get("http://b/metrics") as response,
        ):
            lines = (await response.text()).splitlines()
        assert {
            'gpuspawner_devices{mode="whole",state="free"} 2.0',
            'gpuspawner_queue_length{tier="gpu"} 0.0',
            "gpuspawner_docker_up 0.0",
        } <= set(lines)
        with pytest.raises(BrokerUnavailable, match="can't reach Docker yet"):
            await client.acquire(REQUEST, lambda *_: None).__aenter__()


async def test_it_ends_cleanly_by_a_signal(folder: Path) -> None:
    async with running(folder):
        assert (folder / "broker.lock").read_text() == f"{os.getpid()}\n"
    assert not (folder / "broker.sock").exists()
    lock = BrokerLock(folder)
    lock.acquire(take_over=False)
    lock.release()


async def test_the_page_is_served_where_the_hub_wants_it(folder: Path, page: int) -> None:
    async with running(folder):
        reader, writer = await asyncio.open_connection("127.0.0.1", page)
        writer.write(b"GET /base/services/gpu/health HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"


async def test_what_a_crash_left_of_closed_leases_is_swept(folder: Path) -> None:
    left = folder / "leases" / ("b" * 32)
    left.mkdir(parents=True)
    async with running(folder):
        assert not left.exists()


async def test_a_round_that_fails_in_any_way_does_not_end_the_timer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Exception] = [ConfigError("no way in"), RuntimeError("broken"), EngineFault("down")]
    looked = 0

    async def look(_: Rounds) -> bool:
        nonlocal looked
        looked += 1
        if 1 < looked < 5:
            raise raised[looked - 2]
        return True

    monkeypatch.setattr(Rounds, "look", look)
    monkeypatch.setattr("gpuspawner.broker.leases.leasing.READY_SECONDS", 0.1)
    async with running(folder, "c.GpuBroker.reconcile_seconds = 0.1") as (broker, _):
        async with asyncio.timeout(SOON_SECONDS):
            while looked < 2:
                await asyncio.sleep(0.01)
            assert broker.leasing.service.not_ready == NOT_SET_UP
            while looked < 7:
                await asyncio.sleep(0.01)


async def test_a_way_in_that_docker_does_not_tell_yet_is_asked_for_again(folder: Path) -> None:
    async with running(folder) as (broker, _):
        asked = 0

        async def reconciled() -> bool:
            return True

        async def probe(late: Iterable[str] = ()) -> None:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise EngineFault("down")

        broker.leasing.service.reconcile_or_log = reconciled  # type: ignore[method-assign]
        broker.machines.here.way_in.probe = probe  # type: ignore[method-assign]
        await broker.rounds.look()
        assert not broker.leasing.service.ready.is_set()
        await broker.rounds.look()
        assert broker.leasing.service.ready.is_set()


async def test_it_comes_up_while_nvml_hangs_and_takes_the_gpus_up_when_it_answers(
    folder: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(_: WayIn, late: Iterable[str] = ()) -> None:
        """Docker is not what this is about."""

    monkeypatch.setattr("gpuspawner.node.local.OPEN_SECONDS", 0.3)
    monkeypatch.setattr(WayIn, "probe", probe)
    line = script.hang("nvmlInitWithFlags")

    async def reconciled() -> bool:
        return True

    monkeypatch.setattr("gpuspawner.broker.leases.leasing.READY_SECONDS", 0.1)
    async with running(folder, "c.GpuSite.inventory = 'nvml'") as (broker, client):
        broker.leasing.service.reconcile_or_log = reconciled  # type: ignore[method-assign]
        await broker.rounds.look()
        with pytest.raises(BrokerUnavailable, match="the GPUs of this machine don't answer"):
            await client.acquire(REQUEST, lambda *_: None).__aenter__()
        status = await client.status()
        fault = (
            "NVML has not answered for 0.3 s: see `dmesg` and `nvidia-smi`. GPUs are leased once it answers"
        )
        assert (status["fault"], status["devices"], status["simulated"]) == (fault, [], False)
        tiers = await client.tiers()
        assert (tiers["driver"], tiers["tiers"][1]["total"]) == (None, 0)
        script.drop(line)
        async with asyncio.timeout(SOON_SECONDS):
            while not (status := await client.status())["devices"]:
                await asyncio.sleep(0.05)
        found = (status["fault"], [device["uuid"] for device in status["devices"]])
        assert found == ("", list(UUIDS))
        tiers = await client.tiers()
        assert (tiers["driver"]["version"], tiers["tiers"][1]["total"]) == ("580.159.04", 2)
        await broker.rounds.look()
        assert broker.leasing.service.ready.is_set()


async def test_it_comes_up_beside_a_driver_that_fails_and_takes_the_gpus_up_after_the_repair(
    folder: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel module and library of two versions: a start is refused at once, and no restart is needed."""

    async def probe(_: WayIn, late: Iterable[str] = ()) -> None:
        """Docker is not what this is about."""

    monkeypatch.setattr("gpuspawner.node.local.LOOK_SECONDS", 0.2)
    monkeypatch.setattr(WayIn, "probe", probe)
    script.init = 18  # NVML_ERROR_LIB_RM_VERSION_MISMATCH
    script.write()

    async def reconciled() -> bool:
        return True

    monkeypatch.setattr("gpuspawner.broker.leases.leasing.READY_SECONDS", 0.1)
    async with running(folder, "c.GpuSite.inventory = 'auto'") as (broker, client):
        broker.leasing.service.reconcile_or_log = reconciled  # type: ignore[method-assign]
        await broker.rounds.look()
        with pytest.raises(BrokerUnavailable, match="the GPUs of this machine don't answer"):
            await client.acquire(REQUEST, lambda *_: None).__aenter__()
        status = await client.status()
        assert (status["simulated"], status["devices"]) == (False, [])
        assert status["fault"].startswith(
            "Driver and NVML library have different versions, as after an upgrade"
        )
        script.init = 0
        script.write()
        async with asyncio.timeout(SOON_SECONDS):
            while not (status := await client.status())["devices"]:
                await asyncio.sleep(0.05)
        assert (status["fault"], [device["uuid"] for device in status["devices"]]) == ("", list(UUIDS))
