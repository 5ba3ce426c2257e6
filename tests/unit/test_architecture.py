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
from gpuspawner.core.errors import GpuSpawnerError
from traitlets.config import Configurable

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "spawner" / "gpuspawner"

LAYERS = {
    "core": set(),
    "config": {"core"},
    "protocol": {"core", "config"},
    "hub": {"core", "config", "protocol"},
    "node": {"core", "config", "protocol"},
    "broker": {"core", "config", "protocol", "node"},
    "tools": {"core", "config", "protocol", "hub", "node", "broker"},
}
"""Each folder of the package, and the folders that it may import. Hub and broker don't know each other."""

FLOORS = ("decide", "ledger", "observe", "leases", "enforce", "api", "pages", "assembly")
"""The broker's folders: each may import itself and those before it. `app` and its neighbours import all."""

ONLY_IN = {
    "pynvml": ("node/inventory/",),
    "docker": ("node/docker_engine.py", "hub/docker.py"),
    "cuda": ("node/checkpoint/",),
    "rich": ("tools/",),
}
"""Libraries that one place wraps, so that what they do can be found, tested and replaced there."""


NODE_DOORS = (
    "api", "engine", "docker_engine", "swarm", "docker_swarm", "opening", "remote.members", "injection",
    "mps.patch", "labs", "homes", "docker_homes", "docker_home_book", "lease_folder", "local_folders",
    "daemon_pool", "file_lock",
)  # fmt: skip
"""What the broker may import of `node`: the interface, the one place that makes nodes, and what is pure or
holds no hardware."""


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def place_of(module: str) -> tuple[str, str]:
    """Folder and subfolder of "gpuspawner.broker.decide.line.queue"; "" for what lies above them."""
    parts = [*module.split(".")[1:], "", ""]
    return parts[0], parts[1]


def may_import(importer: str, imported: str) -> bool:
    """Whether the rule of folders allows it."""
    folder, room = place_of(importer)
    other, other_room = place_of(imported)
    if folder == "":  # the package itself, which names its one public class
        return True
    if folder != other:
        return other in LAYERS[folder] or imported == "gpuspawner.__version__"
    if folder != "broker" or room not in FLOORS:
        return True
    return other_room in FLOORS[: FLOORS.index(room) + 1]


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
            # `from . import notice` names a module, `from .notice import no_capacity` a thing in it.
            for name in node.names:
                inside = PACKAGE.parent.joinpath(*base.split("."), name.name)
                is_module = inside.with_suffix(".py").exists() or (inside / "__init__.py").exists()
                yield f"{base}.{name.name}" if is_module else base


def modules() -> list[ModuleType]:
    names = [info.name for info in pkgutil.walk_packages(gpuspawner.__path__, "gpuspawner.")]
    wanted = [name for name in names if not name.endswith("__main__") and ".migrations" not in name]
    return [importlib.import_module(name) for name in wanted]


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sources()
        for name in imports_of(path)
        if name.startswith("gpuspawner.") and not may_import(module_of(path), name)
    ]
    assert wrong == []


def test_the_broker_reaches_hardware_through_the_node_s_interface_alone() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name.removeprefix("gpuspawner.node."))
        for path in sources()
        for name in imports_of(path)
        if path.is_relative_to(PACKAGE / "broker") and name.startswith("gpuspawner.node")
    }
    assert [each for each in sorted(found) if each[1] not in NODE_DOORS] == []
    assert {file for file, name in found if name == "opening"} == {"broker/app.py"}


def test_every_module_lies_in_a_folder() -> None:
    loose = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    rooms = {path.name for path in (PACKAGE / "broker").iterdir() if (path / "__init__.py").exists()}
    assert (loose, folders, rooms) == ([], set(LAYERS), set(FLOORS))


def test_the_test_of_imports_sees_them() -> None:
    found = {name for name in imports_of(PACKAGE / "node" / "health.py") if name.startswith("gpuspawner")}
    assert {"gpuspawner.core.errors", "gpuspawner.core.model", "gpuspawner.node.inventory"} <= found
    assert not may_import("gpuspawner.hub.launch", "gpuspawner.broker.app")
    assert not may_import("gpuspawner.core.model", "gpuspawner.config.site")
    assert not may_import("gpuspawner.broker.decide.line.queue", "gpuspawner.broker.leases.allocator")
    assert may_import("gpuspawner.broker.app", "gpuspawner.broker.pages.look")


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_used_in_its_place_only(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in sources()
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert [user for user in sorted(users) if not user.startswith(ONLY_IN[library])] == []


def test_the_first_line_of_a_file_says_its_idea() -> None:
    silent = [
        str(path.relative_to(PACKAGE))
        for path in sources()
        if not (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert silent == []


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
        if kind.__module__.startswith("gpuspawner") and kind.__module__ != "gpuspawner.core.errors":
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


def drawn() -> set[str]:
    """The folders and files that the tree of docs/architecture.md names, relative to the package."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = text.split("<!-- tree -->")[1].split("<!-- end of tree -->")[0].splitlines()
    found: set[str] = set()
    above: list[str] = []
    for line in (each for each in lines if each.startswith("  ")):
        folder = re.match(r"( +)(\w+)/ ", line)
        if folder:
            above = [*above[: len(folder[1]) // 2 - 1], folder[2]]
            found.add("/".join(above))
        found.update("/".join([*above, name]) for name in re.findall(r"\b\w+\.py\b", line))
    return found


def test_the_tree_in_the_docs_is_the_tree_that_exists() -> None:
    folders = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*")
        if path.is_dir() and path.name not in ("__pycache__", "versions") and any(path.glob("*.*"))
    }
    tree = drawn()
    assert {name for name in tree if not name.endswith(".py")} == folders
    assert [name for name in sorted(tree) if not (PACKAGE / name).exists()] == []


def test_every_file_that_the_page_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = sorted(set(re.findall(r"`((?:broker|config|core|hub|node|protocol|tools)/[\w/]+\.py)`", text)))
    assert len(named) > 15
    assert [name for name in named if not (PACKAGE / name).exists()] == []
