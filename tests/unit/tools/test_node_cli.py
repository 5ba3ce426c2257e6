"""`gpuspawner node` as typed: a token, joining a real door, the list, forgetting and leaving."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gpuspawner.broker import app
from gpuspawner.node.remote.joining import parse_line
from gpuspawner.node.remote.members import FOLDER, membership_of
from gpuspawner.tools import cli

from tests.unit.node.agents import Broker
from tests.unit.whole_broker import running, settings, state_folder

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def port(state_dir: Path) -> Iterator[int]:
    """A door for this state folder, on a loop of its own."""
    loop = asyncio.new_event_loop()
    broker = Broker(state_dir / FOLDER)
    loop.run_until_complete(broker.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield broker.port
    asyncio.run_coroutine_threadsafe(broker.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def typed(
    state_dir: Path, port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Typed:
    """Types a command on the broker's machine; exit status, what it printed, and what it complained of."""
    config = state_dir / "config.py"
    config.write_text(f'c.GpuBroker.agents_address = "127.0.0.1:{port}"\n')

    def run(*words: str, at: Path = state_dir) -> tuple[int, str, str]:
        monkeypatch.setenv("GPUSPAWNER_STATE_DIR", str(at))
        more = ("--config", str(config)) if at == state_dir else ()
        status = cli.main(["node", *words, *more])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_machine_joins_is_listed_forgotten_and_leaves(
    typed: Typed, state_dir: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, line, err = typed("token")
    assert (status, err) == (0, "")
    assert (parse_line(line).host, parse_line(line).port) == ("127.0.0.1", port)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpuspawner.tools.node_cli.RUNNING", tmp_path / "no systemd")
    status, out, err = typed("join", line.strip(), "--name", "gpu-b", at=tmp_path)
    assert (status, err) == (0, "")
    module = f"-m gpuspawner.node.remote.agent_process --broker=127.0.0.1:{port} --name=gpu-b"
    assert out.splitlines()[:2] == [
        "Joined as gpu-b. systemd doesn't run here, so start the agent yourself, as root:",
        f"    GPUSPAWNER_STATE_DIR={tmp_path} {sys.executable} {module}",
    ]
    assert f"\nExecStart={sys.executable} {module}\nEnvironment=GPUSPAWNER_STATE_DIR={tmp_path}\n" in out
    assert membership_of(state_dir).names() == ("gpu-b",)
    assert (tmp_path / "agent" / "key.pem").stat().st_mode & 0o077 == 0
    status, out, _ = typed("list", "--json")
    row = {
        "name": "gpu-b", "state": "no broker answers", "reason": "", "since": None, "heard_at": None,
        "release": "", "own": False, "gpus": None, "in_service": None, "drained": None, "leases": None,
        "labels": [], "notices": [],
    }  # fmt: skip
    assert (status, json.loads(out)) == (0, [row])
    assert [line.split() for line in typed("list")[1].splitlines()][1:] == [
        ["Name", "State", "Since", "(UTC)", "Last", "heard", "of", "Version", "GPUs", "Leases"],
        ["gpu-b", "no", "broker", "answers", "–", "–", "–", "–"],
    ]
    status, _, err = typed("drain", "gpu-b")
    assert (status, err) == (1, "gpuspawner node: The broker doesn't answer: this needs one that runs.\n")
    again = typed("join", line.strip(), "--name", "gpu-c", at=tmp_path)
    assert (again[0], again[2]) == (
        1,
        "gpuspawner node: The broker refused: this token isn't good, or not any more: `gpuspawner node "
        "token` makes another\n",
    )
    forgotten = typed("forget", "gpu-b")
    assert forgotten == (
        0, "Forgot gpu-b: its leases end within seconds. Switch the machine off if it still runs.\n", "",
    )  # fmt: skip
    assert typed("forget", "gpu-b")[0] == 1
    assert typed("leave", at=tmp_path)[0] == 0
    assert not (tmp_path / "agent").exists()


def test_what_is_typed_wrongly_is_told(typed: Typed, state_dir: Path, tmp_path: Path) -> None:
    assert typed("tokens")[0] == 2
    status, _, err = typed("join", "10.0.0.1:8098", at=tmp_path)
    assert (status, err) == (
        1, "gpuspawner node: This isn't a line of `gpuspawner node token`: copy the whole line\n",
    )  # fmt: skip


def test_without_a_door_there_is_no_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSPAWNER_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["node", "token"]) == 1
    assert "set c.GpuBroker.agents_address and restart it" in capsys.readouterr().err


async def test_a_machine_is_drained_and_serves_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = 'c.GpuSite.simulated_devices = "a: 1 x H100 80GB; b: 2 x T4 16GB"\n'
    with state_folder(monkeypatch) as folder:
        async with running(folder, two) as (broker, client):

            async def typed(*words: str) -> tuple[int, str]:
                status = await asyncio.to_thread(
                    cli.main, ["node", *words, "--config", str(folder / "config.py")]
                )
                found = capsys.readouterr()
                return status, found.out or found.err

            async def drained() -> list[tuple[str, bool]]:
                devices = (await client.status())["devices"]
                return [(each["node"], each["drained"]) for each in devices]

            assert await typed("drain", "b", "new disk") == (
                0,
                "Nothing new starts on b (2 GPUs), nor on GPUs that appear there later; "
                "what runs there goes on.\n",
            )
            assert await drained() == [("a", False), ("b", True), ("b", True)]
            reasons = {each.reason for each in broker.deciding.rulebook.rules.drained.values()}
            assert reasons == {"new disk"}
            single = next(each["uuid"] for each in (await client.status())["devices"] if each["node"] == "b")
            await broker.deciding.rules.drain(single, "root", "by itself")
            assert await typed("undrain", "b") == (0, "New servers start on b again (2 GPUs).\n")
            assert (await typed("undrain", "b"))[1] == "gpuspawner node: The machine b is not drained.\n"
            assert await drained() == [("a", False), ("b", False), ("b", False)]
            _, listed = await typed("list", "--json")
            assert [(each["name"], each["state"], each["gpus"]) for each in json.loads(listed)] == [
                ("a", "ready", 1), ("b", "ready", 2),
            ]  # fmt: skip
            assert await typed("drain", "c") == (
                1,
                "gpuspawner node: The broker knows no machine c: see `gpuspawner node list`.\n",
            )


def test_a_broker_without_its_door_does_not_take_its_other_machines_for_gone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with state_folder(monkeypatch) as folder:
        membership = membership_of(folder)
        membership.admit(membership.make_token(), "gpu-b", "f")
        assert app.main(settings(folder, "c.GpuSite.inventory = 'simulated'\n")) == 78
    assert (
        "Other machines have joined (gpu-b), and c.GpuBroker.agents_address isn't set: set it, or run "
        "`gpuspawner node forget NAME` for each"
    ) in capfd.readouterr().err
