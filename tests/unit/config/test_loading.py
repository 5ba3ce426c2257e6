"""A config file that fails: the sentence names file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuspawner.config.loading import load_settings
from gpuspawner.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("c = get_config()\nc.A.b = [\n  {1: 2\n", "in line 3: SyntaxError: '{' was never closed"),
        ("c = get_config()\n\nc.A.b = missing\n", "in line 3: NameError: name 'missing' is not defined"),
        (
            "import json\n\n\njson.loads('[')\n",
            "in line 4: JSONDecodeError: Expecting value",
        ),
        ("def f():\n    raise ValueError('no')\nf()\n", "in line 2: ValueError: no"),
        (
            "load_subconfig('other.py')\n",
            "in line 2 of {folder}/other.py: ZeroDivisionError: division",
        ),
        ("load_subconfig('wrong.py')\n", "in line 1 of {folder}/wrong.py: SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "other.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / "wrong.py").write_text("x = = 1\n")
    path = tmp_path / "hub.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    said = sentence.replace("{folder}", str(tmp_path))
    assert str(error.value).startswith(f"The config file {path} failed {said}")


def test_settings_are_read_and_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "hub.py"
    with pytest.raises(ConfigError, match="doesn't exist: give the hub's config file with --config"):
        load_settings(path)
    path.write_text("c.GpuSite.timezone = 'Asia/Tokyo'\n")
    assert load_settings(path) == {"GpuSite": {"timezone": "Asia/Tokyo"}}
