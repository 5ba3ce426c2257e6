"""Every setting of ours is documented: docs/settings.md is what the traits' own help says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_settings", DOCS / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(page: ModuleType) -> None:
    written = page.PAGE.read_text(encoding="utf-8")
    assert written == page.render(page.documented_classes()), "run python docs/make_settings.py"


def test_every_setting_has_help_with_default_and_example(page: ModuleType) -> None:
    lacking = [
        f"{cls.__name__}.{name}"
        for cls in page.documented_classes()
        for name, trait in page.own_settings(cls).items()
        if "Default" not in trait.help or "Example" not in trait.help
    ]
    assert lacking == []


def test_every_environment_variable_is_listed(page: ModuleType) -> None:
    read = set(re.findall(r'"(GPUSPAWNER_[A-Z_]+)"', page.CONFIG.read_text(encoding="utf-8")))
    listed = set(
        re.findall(r"^    (GPUSPAWNER_[A-Z_]+)", page.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert listed == read - {"GPUSPAWNER_"}
