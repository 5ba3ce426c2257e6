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


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project of its own."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # starts faster
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
        ("tests/hub/test_a.py", ONCE, 0),
        ("tests/hub/test_a.py", NEVER, 1),
        ("tests/unit/test_a.py", ONCE, 1),
        ("tests/docker/test_a.py", "import no_such_module\n", 2),
    ],
)
def test_a_file_with_real_processes_runs_again_alone(
    room: Path, capfd: pytest.CaptureFixture[str], file: str, text: str, status: int
) -> None:
    put(room, "tests/unit/test_right.py", "def test_it():\n    pass\n")
    put(room, file, text)
    assert suite.main("not slow", "-q") == status
    out = capfd.readouterr().out
    assert (f"Running again, alone: {file}" in out) is file.startswith("tests/hub")
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
    assert suite.worth_another_run([*few[:1], "tests/unit/test_suite.py::test_it"]) == []
