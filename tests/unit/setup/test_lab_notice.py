"""images/lab-base/gpuspawner_notice.py: a notice is shown each time it changed, and only then."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from setup.steps import ROOT


@pytest.fixture
def module() -> Any:
    """The extension as a module; it is no part of the package."""
    path = ROOT / "images" / "lab-base" / "gpuspawner_notice.py"
    spec = importlib.util.spec_from_file_location("gpuspawner_notice", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_each_change_is_shown_once(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "notice"
    notice = module.Notice(path)
    seen = [notice.unseen()]
    for text in ("lost", None, "back", "  \n", None, "lost"):
        if text is not None:
            other = tmp_path / "new"  # replaced as a whole, as the broker does
            other.write_text(text)
            other.rename(path)
        seen.append(notice.unseen())
    assert seen == [None, "lost", None, "back", None, None, "lost"]


def test_a_notice_that_goes_and_comes_back_is_shown_again(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "notice"
    notice = module.Notice(path)
    path.write_text("lost")
    first = notice.unseen()
    path.unlink()
    between = notice.unseen()
    path.write_text("lost")
    assert (first, between, notice.unseen()) == ("lost", None, "lost")


def test_a_huge_or_strange_notice_disturbs_no_cell(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "notice"
    path.write_bytes(b"\xff" * 100_000)
    assert module.Notice(path).unseen() == "�" * 4096
    assert module.Notice(tmp_path).unseen() is None  # a folder, where a file is expected


def test_it_is_looked_for_after_each_cell(module: Any) -> None:
    registered: list[tuple[str, str]] = []

    class Events:
        def register(self, event: str, callback: Any) -> None:
            registered.append((event, callback.__name__))

    class Shell:
        events = Events()

    module.load_ipython_extension(Shell())
    assert registered == [("post_run_cell", "after_cell")]
