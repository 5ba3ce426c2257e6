"""The structure of docs' design: which folder may import which, where hardware and Docker are touched."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gpuspawner
import pytest
from gpuspawner.errors import GpuSpawnerError
from traitlets.config import Configurable

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "spawner" / "gpuspawner"
MOST_LINES = 400

MAY_IMPORT = {
    "base": {"base"},
    "wire": {"base"},
    "client": {"base", "wire"},
    "hub": {"base", "wire", "client", "hub"},
    "node": {"base", "node"},
    "broker": {"base", "wire", "node", "broker"},
    "doctor": {"base", "client", "node", "broker", "doctor"},
    "cli": {"base", "client", "broker", "doctor"},
}
"""Who may import whom. The hub's side knows neither broker nor node, only what passes on the socket."""

BASE = {"model", "units", "errors", "settings", "tiers", "pools", "needs", "reference"}
OWN_LAYER = {"wire", "client", "node", "broker", "doctor", "cli"}

ONLY_IN = {
    "pynvml": {f"node/inventory/{name}.py" for name in ("calls", "listing", "nvml")},
    "docker": {"broker/containers.py", "spawner.py", "enginespawner.py", "labnetwork.py"},
    "cuda": {"node/sleep.py"},
    "rich": {"cli.py"},
}
"""Libraries that one place wraps, so that what they do can be found, tested and replaced there."""


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def layer_of(module: str) -> str:
    """The layer of "gpuspawner.node.health"; "package" for `gpuspawner` itself."""
    first = module.split(".")[1] if "." in module else "package"
    if first in BASE:
        return "base"
    return first if first in OWN_LAYER or first == "package" else "hub"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, wherever in it."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import engine` names a module, `from .engine import Removals` a thing in it.
            yield from (f"{base}.{name.name}" if base == "gpuspawner" else base for name in node.names)


def modules() -> list[ModuleType]:
    names = [info.name for info in pkgutil.walk_packages(gpuspawner.__path__, "gpuspawner.")]
    wanted = [name for name in names if not name.endswith("__main__") and ".migrations" not in name]
    return [importlib.import_module(name) for name in wanted]


def test_imports_point_down() -> None:
    wrong = []
    for path in sources():
        layer = layer_of(module_of(path))
        for name in imports_of(path):
            if not name.startswith("gpuspawner.") or layer == "package":
                continue
            if name == "gpuspawner.__version__" or layer_of(name) in MAY_IMPORT[layer]:
                continue
            wrong.append(f"{path.relative_to(PACKAGE)} ({layer}) imports {name} ({layer_of(name)})")
    assert wrong == []


def test_the_test_of_imports_sees_them() -> None:
    found = {name for name in imports_of(PACKAGE / "node" / "health.py") if name.startswith("gpuspawner")}
    assert found == {
        "gpuspawner.errors", "gpuspawner.model", "gpuspawner.node.daemonpool", "gpuspawner.node.inventory",
        "gpuspawner.units",
    }  # fmt: skip
    assert layer_of("gpuspawner.node.health") == "node"
    assert layer_of("gpuspawner.spawner") == "hub"
    assert layer_of("gpuspawner.units") == "base"


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_used_in_its_place_only(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in sources()
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert users <= ONLY_IN[library]


def test_no_file_over_400_lines() -> None:
    folders = [ROOT / name for name in ("spawner", "tests", "setup", "images", "bench")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in [*paths, ROOT / "jupyterhub_config.py"]
        if path.exists() and (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


def settings() -> list[tuple[str, str]]:
    """Name and help of every public setting that our classes define."""
    found = {}
    for module in modules():
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if not issubclass(kind, Configurable) or not kind.__module__.startswith("gpuspawner"):
                continue
            for name, trait in kind.class_own_traits(config=True).items():
                found[f"{kind.__name__}.{name}"] = str(trait.help)
    return sorted(found.items())


@pytest.mark.parametrize(("name", "text"), settings())
def test_every_setting_s_help_has_its_default_and_an_example(name: str, text: str) -> None:
    assert re.search(r"\bdefault\b", text, re.IGNORECASE), f"{name}: what is the default, and why?"
    assert re.search(r"\bexample\b", text, re.IGNORECASE), f"{name}: give an example"


def test_every_error_lies_in_the_one_tree() -> None:
    modules()
    outside = []
    pending = [GpuSpawnerError]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        if kind.__module__.startswith("gpuspawner") and kind.__module__ != "gpuspawner.errors":
            outside.append(f"{kind.__module__}.{kind.__name__}")
    assert outside == []


def test_nothing_is_touched_at_import() -> None:
    """Neither NVML nor Docker nor disk nor a process: no such call at the top of a module."""
    touching = {"open", "docker", "subprocess", "pynvml", "socket", "os", "shutil"}
    found = []
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If):
                continue
            for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
                if ast.unparse(call.func).split(".")[0] in touching:
                    found.append(f"{path.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call)}")
    assert found == []
