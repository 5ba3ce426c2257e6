"""`gpuspawner node` as typed: a token, joining a real door, the list, forgetting and leaving."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gpuspawner.node.remote.joining import parse_line
from gpuspawner.node.remote.members import FOLDER, membership_of
from gpuspawner.tools import cli

from tests.unit.node.agents import Broker

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
    joined = typed("join", line.strip(), "--name", "gpu-b", at=tmp_path)
    assert joined == (0, f"Joined as gpu-b. Now run: gpuspawner node agent 127.0.0.1:{port}\n", "")
    assert membership_of(state_dir).names() == ("gpu-b",)
    assert (tmp_path / "agent" / "key.pem").stat().st_mode & 0o077 == 0
    status, out, _ = typed("list", "--json")
    assert (status, json.loads(out)) == (0, [{"name": "gpu-b", "devices": None, "in_service": 0}])
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
