"""Which files of tests run a second time, on real runs of pytest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import suite

ONCE = """
from pathlib import Path
def test_it():
    seen = Path({seen!r})
    before = seen.exists()
    seen.write_text("")
    assert before
"""
NEVER = "def test_it():\n    assert False\n"
EXAMPLE = """
from pathlib import Path
import tests.conftest
from hypothesis import given, strategies
@given(strategies.binary(min_size=30, max_size=30))
def test_it(value):
    seen = Path({seen!r})
    if not seen.exists() and len(set(value)) > 10:
        seen.write_bytes(value)
    assert not seen.exists() or value != seen.read_bytes()
"""
"""Fails for one value in 10^72, which the first run chooses."""
WALK = """
from pathlib import Path
from tests.seeds import seeds
def test_it():
    seen, seed = Path({seen!r}), str(next(seeds()))
    if not seen.exists():
        seen.write_text(seed)
    assert seed != seen.read_text()
"""
"""Fails for one seed, which the first run chooses."""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project of its own; `tests` is this one's there, so its tests are in another folder."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # starts faster
    monkeypatch.setenv("PYTHONPATH", str(suite.ROOT))
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(suite, "FAILURES", tmp_path / ".pytest_cache/v/cache/lastfailed")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\naddopts = --import-mode=importlib\n")
    return tmp_path


def put(room: Path, file: str, text: str) -> None:
    """A file of tests. `{seen}` in it is where it notes that it ran."""
    (room / file).parent.mkdir(parents=True, exist_ok=True)
    (room / file).write_text(text.replace("{seen!r}", repr(str(room / Path(file).stem))))


@pytest.mark.parametrize(
    ("file", "text", "status"),
    [
        ("checks/hub/test_a.py", ONCE, 0),
        ("checks/hub/test_a.py", NEVER, 1),
        ("checks/unit/test_a.py", ONCE, 0),
        ("checks/unit/test_a.py", EXAMPLE, 1),
        ("checks/unit/test_a.py", WALK, 1),
        ("checks/docker/test_a.py", "import no_such_module\n", 2),
    ],
)
def test_a_file_that_failed_runs_again_alone(
    room: Path, capfd: pytest.CaptureFixture[str], file: str, text: str, status: int
) -> None:
    put(room, "checks/unit/test_right.py", "def test_it():\n    pass\n")
    put(room, file, text)
    assert suite.main("not slow", "-q") == status
    out = capfd.readouterr().out
    assert (f"Running again, alone: {file}" in out) is (status != 2)
    assert (f"passed alone:\n  {file}::test_it" in out) is (status == 0)


def test_what_was_right_ends_at_once(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(room, "tests/hub/test_a.py", "def test_it():\n    pass\n")
    suite.FAILURES.parent.mkdir(parents=True)
    suite.FAILURES.write_text(json.dumps({"tests/hub/test_old.py::test_it": True}))
    assert suite.main("not slow") == 0
    assert "again" not in capfd.readouterr().out


def test_many_failures_are_no_matter_of_load() -> None:
    few = [f"tests/hub/test_{number}.py::test_it" for number in range(3)]
    assert suite.worth_another_run(few) == [name.partition("::")[0] for name in few]
    assert suite.worth_another_run([*few, "tests/browser/test_a.py::test_it"]) == []
    both = ["tests/hub/test_0.py", "tests/unit/test_suite.py"]
    assert suite.worth_another_run([f"{file}::test_it" for file in both]) == both
