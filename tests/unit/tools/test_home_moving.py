"""`gpuspawner homes move`, from the command line to the machines: what it says, and what it leaves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.leases.home_moves import HomeMoves, MoveParts
from gpuspawner.node.homes import HomeFacts
from gpuspawner.tools import cli

from tests.unit.moved_homes import FakeBook, FakeFiles, Trouble
from tests.unit.rules_bench import Served
from tests.unit.tools.test_homes import ADA, BEN, Docker, swarm

DATA = b"all of ben's files"


class Machines:
    """Machines a and b; ben's home is on a."""

    def __init__(self) -> None:
        self.trouble = Trouble()
        self.a, self.b = FakeFiles("a", self.trouble), FakeFiles("b", self.trouble)
        self.a.volumes[BEN.name] = (HomeFacts("local"), DATA)
        self.book = FakeBook(self.trouble, {BEN.name: "a", ADA.name: "b"})
        machines = {"a": self.a, "b": self.b}
        self.moves = HomeMoves(MoveParts(self.book, lambda: machines, lambda: (), logging.getLogger("moves")))


@pytest.fixture
def machines(times: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """A broker of a Swarm on its socket, and Docker with the same homes; the settings are in config.py."""
    found = Machines()
    broker = Served(tmp_path, times)
    broker.homes = found.moves
    broker.config.write_text(broker.config.read_text() + 'c.GpuSite.engine = "swarm"\n')

    class Here:
        """The hub's way to Docker."""

        def __init__(self, *settings: Any) -> None:
            volumes = {"Volumes": [{"Name": BEN.name, "UsageData": {"Size": 1, "RefCount": 0}}]}
            self.call_here: Docker = swarm(df=volumes)

    monkeypatch.setattr(cli, "DockerEngine", Here)
    monkeypatch.chdir(tmp_path)
    broker.start()
    yield found
    broker.stop()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """What `gpuspawner homes WORDS` says."""
    status = cli.main(["homes", *words, "--config", "config.py"])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_home_is_moved(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "move", "ben", "b")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"{BEN.name}: copying, a to b, 0 B so far",
        f"The home {BEN.name} is on b now. The old copy stays on a until you remove it there: `docker volume "
        f"rm {BEN.name}`.",
    ]
    assert machines.book.places[BEN.name] == "b"
    assert machines.b.volumes[BEN.name][1] == DATA


def test_what_is_refused_and_what_fails_is_said(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "move", "ben", "z") == (
        1, "", "gpuspawner homes: There is no machine 'z': there are a, b.\n"
    )  # fmt: skip
    assert run(capsys, "move", "cy", "b")[2] == (
        "gpuspawner homes: 'cy' has no home here: `gpuspawner homes` lists them\n"
    )
    assert run(capsys, "move", "ben", "b", "--copied")[2] == (
        f"gpuspawner homes: b has no volume {BEN.name}: copy the files there first.\n"
    )
    machines.b.room_bytes = 4
    status, out, _ = run(capsys, "move", "ben", "b")
    assert (status, out.splitlines()[-1]) == (
        1,
        f"The home {BEN.name} was not moved, and is still on a: the disk of Docker on b is full: free space "
        "there, and move it again.",
    )


def test_a_machine_that_does_not_answer_is_said_as_it_is(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    machines.b.away = True
    assert run(capsys, "move", "ben", "b") == (
        1, "", "gpuspawner homes: the machine b can't be reached: the connection was closed. The home stays "
        "where it is.\n",
    )  # fmt: skip


def test_without_a_broker_nothing_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpuspawner.protocol.client.CONNECT_SECONDS", 0.1)
    (tmp_path / "config.py").write_text(
        f'c.GpuSite.engine = "swarm"\nc.GpuSite.socket_path = "{tmp_path}/none.sock"\n'
    )
    docker = swarm(df={"Volumes": [{"Name": BEN.name, "UsageData": {"Size": 1, "RefCount": 0}}]})
    monkeypatch.setattr(cli, "DockerEngine", lambda *settings: type("Here", (), {"call_here": docker}))
    status, out, err = run(capsys, "move", "ben", "b")
    assert (status, out) == (1, "")
    assert "the GPU broker isn't running" in err
