"""Who may join: a token serves once and not for ever, whatever broker and commands do at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from gpuspawner.core.errors import Fault
from gpuspawner.node.remote.membership import Membership

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def test_a_token_serves_once_within_its_hour(tmp_path: Path) -> None:
    clock = Clock()
    membership = Membership(tmp_path / "machines", clock)
    first, second = membership.make_token(), membership.make_token()
    membership.admit(first, "b", "f1")
    with pytest.raises(ValueError, match="this token isn't good, or not any more"):
        membership.admit(first, "c", "f2")
    clock.now += timedelta(minutes=59)
    membership.check(second, "c")
    clock.now += timedelta(minutes=1)
    with pytest.raises(ValueError, match="this token isn't good, or not any more"):
        membership.admit(second, "c", "f2")
    assert membership.fingerprints() == {"b": "f1"}


def test_a_name_that_cannot_be_used_costs_no_token(tmp_path: Path) -> None:
    membership = Membership(tmp_path)
    token = membership.make_token()
    for name in ("", "../b", "a b", "x" * 64):
        with pytest.raises(ValueError, match="is no machine's name"):
            membership.admit(token, name, "f")
    membership.admit(token, "b", "f")
    with pytest.raises(ValueError, match="a machine b has joined already: `gpuspawner node forget b` first"):
        membership.check(membership.make_token(), "b")


def test_no_token_is_in_the_files(tmp_path: Path) -> None:
    token = Membership(tmp_path / "machines").make_token()
    assert not any(token in path.read_text() for path in (tmp_path / "machines").iterdir())
    assert (tmp_path / "machines").stat().st_mode & 0o777 == 0o700


def test_changes_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Each of two sides has an object of its own, as a command and the broker have."""
    sides = [Membership(tmp_path), Membership(tmp_path)]
    tokens = [sides[0].make_token() for _ in range(40)]
    sides[0].admit(tokens[0], "old", "f")

    def change(number: int) -> None:
        if number == 20:
            assert sides[0].forget("old")
        elif number % 2:
            sides[number // 2 % 2].admit(tokens[number], f"m{number}", "f")
        else:
            sides[number // 2 % 2].make_token()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(1, 40)))
    assert set(sides[1].names()) == {f"m{number}" for number in range(1, 40, 2)}
    with pytest.raises(ValueError, match="this token isn't good"):
        sides[1].check(tokens[1], "again")


def test_a_file_that_cannot_be_read_is_no_empty_list(tmp_path: Path) -> None:
    (tmp_path / "joined.json").write_text("{")
    with pytest.raises(Fault, match=r"joined\.json can't be read"):
        Membership(tmp_path).names()


def test_when_machines_were_heard_is_kept_and_never_in_the_way(tmp_path: Path) -> None:
    membership = Membership(tmp_path)
    assert membership.heard() == {}
    membership.note_heard({"b": NOON})
    assert Membership(tmp_path).heard() == {"b": NOON}
    (tmp_path / "heard.json").write_text("{")
    assert membership.heard() == {}
