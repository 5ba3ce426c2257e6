"""Which broker it is: the same after every start, and a sentence where that can't be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuspawner.broker.identity import broker_id
from gpuspawner.core.errors import ConfigError


def test_the_id_stays_and_is_its_folders_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    first = broker_id(tmp_path / "one")
    assert len(first) == 32
    assert broker_id(tmp_path / "one") == first
    assert broker_id(tmp_path / "other") != first
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["broker.id"]
    assert (tmp_path / "one" / "broker.id").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "not an id\n", "é" * 32])
def test_a_file_that_holds_no_id_is_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "broker.id").write_text(text)
    with pytest.raises(ConfigError, match="does not hold a broker's id: restore it, or remove it"):
        broker_id(tmp_path)
    assert (tmp_path / "broker.id").read_text() == text


def test_a_half_written_one_of_a_crash_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "broker.new").write_text("0123")
    made = broker_id(tmp_path)
    assert (tmp_path / "broker.id").read_text() == f"{made}\n"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be used: No such file or directory"):
        broker_id(tmp_path / "missing")
