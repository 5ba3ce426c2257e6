"""The recipes of docs/quotas.md and docs/admins.md do what they say: settings load, commands run in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.app import GpuBroker
from gpuspawner.tools import cli
from traitlets.config import Config

from tests.unit.rules_bench import Served

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    """The blocks of a page, each with its kind ("python", "sh")."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


BLOCKS = blocks("quotas.md")
SETTINGS = [text for kind, text in BLOCKS if kind == "python"]
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line]


def test_there_are_recipes() -> None:
    assert (len(SETTINGS), len(COMMANDS)) == (8, 17)


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_load(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(text)
    broker = GpuBroker()
    broker.initialize(["--config", str(tmp_path / "config.py")])
    assert len(broker.quotas) == len(broker.site.quotas)
    assert ("quotas" in text) == bool(broker.quotas)


def test_commands_run(tmp_path: Path, times: Any, capsys: pytest.CaptureFixture[str], database: str) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=26)
    served = Served(tmp_path, times, database=database)
    served.start()
    try:
        for line in COMMANDS:
            words = shlex.split(line)
            assert words[0] == "gpuspawner"
            status = cli.main([*words[1:], "--config", str(served.config)])
            assert (line, status, capsys.readouterr().err) == (line, 0, "")
    finally:
        served.stop()


def test_the_role_of_an_instructor_is_about_groups_that_are_loaded() -> None:
    """With `load_groups`, no other group may have quotas and lab sessions."""
    (recipe,) = [text for kind, text in blocks("admins.md") if kind == "python" and "!group=" in text]
    settings = Config()
    settings.JupyterHub.load_roles = []
    exec(recipe, {"c": settings})
    hub = settings.JupyterHub
    (role,) = hub.load_roles
    about = {scope.partition("!group=")[2] for scope in role["scopes"] if "!group=" in scope}
    assert (set(role["groups"]) | about, about) == (set(hub.load_groups), {"cs231n"})
