"""The starters as they are stored: each fulfils every rule, and each rule finds what it is there for."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from . import rules

FOLDER = Path(__file__).parents[2] / "images" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.name for path in NOTEBOOKS]


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_every_starter_fulfils_every_rule(path: Path, rule: rules.Rule) -> None:
    assert list(rule(read(path))) == []


def test_there_are_twelve_in_order_and_nothing_else() -> None:
    assert [name[:3] for name in NAMES] == [f"{number:02}-" for number in range(1, 13)]
    others = {path.name for path in FOLDER.iterdir() if path.name not in NAMES and path.name != "__pycache__"}
    assert others == {"README.md", "starter"}


def test_readme_and_notebooks_lead_from_one_to_the_next() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\((\S+\.ipynb)\)", readme) == NAMES
    for path, following in zip(NOTEBOOKS, NAMES[1:], strict=False):
        assert f"]({following})" in read(path).cells[-1].source
    titles = [read(path).cells[0].source.partition("\n")[0] for path in NOTEBOOKS]
    assert [title.partition(" · ")[0] for title in titles] == [f"# {number}" for number in range(1, 13)]


def _cell(notebook: Any, **tagged: str) -> Any:
    """The first cell with the tag (`tag=`) or the id (`id=`)."""
    (kind, value) = next(iter(tagged.items()))
    return next(
        cell
        for cell in notebook.cells
        if (value in rules.tags_of(cell) if kind == "tag" else cell.id == value)
    )


def _spoil_output(notebook: Any) -> None:
    _cell(notebook, id="quota").execution_count = 1


def _spoil_id(notebook: Any) -> None:
    notebook.cells[1].id = notebook.cells[2].id


def _spoil_kernel(notebook: Any) -> None:
    notebook.metadata.kernelspec.name = "mine"


def _spoil_type(notebook: Any) -> None:
    _cell(notebook, id="title").cell_type = "heading"


def _spoil_quota(notebook: Any) -> None:
    cell = _cell(notebook, id="quota")
    cell.source = cell.source.replace("show_quota", "quota")


def _spoil_order(notebook: Any) -> None:
    cell = _cell(notebook, id="quota")
    cell.source = "import torch\n" + cell.source


def _spoil_seed(notebook: Any) -> None:
    cell = _cell(notebook, id="quota")
    cell.source = cell.source.replace("torch.manual_seed(0)", "")


def _spoil_solution(notebook: Any) -> None:
    _cell(notebook, tag="solution").metadata.pop("jupyter")


def _spoil_exercise(notebook: Any) -> None:
    _cell(notebook, tag="exercise").metadata.pop("tags")


def _spoil_details(notebook: Any) -> None:
    _cell(notebook, id="solution-text").source = "Here it is."


def _spoil_tag(notebook: Any) -> None:
    _cell(notebook, tag="gpu").metadata.tags = []


def _spoil_needs(notebook: Any) -> None:
    cell = _cell(notebook, tag="gpu")
    cell.source = cell.source.partition("\n")[2]


def _append(code: str) -> Any:
    def spoil(notebook: Any) -> None:
        _cell(notebook, id="quota").source += "\n" + code

    return spoil


def _spoil_checks(notebook: Any) -> None:
    for cell in rules.code_cells(notebook):
        cell.source = cell.source.replace("starter.check", "starter.look")


def _spoil_pictures(notebook: Any) -> None:
    for cell in rules.code_cells(notebook):
        cell.source = re.sub(r"(starter|plt)\.(bars|curves|timeline|show)\(", "print(", cell.source)


@pytest.mark.parametrize(
    ("rule", "spoil"),
    [
        (rules.well_formed, _spoil_output),
        (rules.well_formed, _spoil_id),
        (rules.well_formed, _spoil_kernel),
        (rules.well_formed, _spoil_type),
        (rules.shows_quota_first, _spoil_quota),
        (rules.starts_the_same_everywhere, _spoil_order),
        (rules.starts_the_same_everywhere, _spoil_seed),
        (rules.starts_the_same_everywhere, _append("noise = np.random.default_rng()")),
        (rules.starts_the_same_everywhere, _append("chance = torch.Generator(device=device)")),
        (rules.has_exercise, _spoil_solution),
        (rules.has_exercise, _spoil_exercise),
        (rules.has_exercise, _spoil_details),
        (rules.needs_are_tagged, _spoil_tag),
        (rules.needs_are_tagged, _spoil_needs),
        (rules.gpu_code_is_tagged, _spoil_tag),
        (rules.gpu_code_is_tagged, _append("x = torch.ones(3).cuda()")),
        (rules.gpu_code_is_tagged, _append("x = torch.ones(3, device='cuda:0')")),
        (rules.gpu_code_is_tagged, _append("x = torch.ones(3, pin_memory=True)")),
        (rules.gpu_code_is_tagged, _append("import triton.language")),
        (rules.gpu_code_is_tagged, _append("from torch.cuda import Stream")),
        (rules.gpu_code_is_tagged, _append("try:\n    pass\nexcept Exception:\n    pass")),
        (rules.gpu_code_is_tagged, _append("fast = torch.accelerator.is_available()")),
        (rules.checks_and_draws_everywhere, _spoil_checks),
        (rules.checks_and_draws_everywhere, _spoil_pictures),
        (rules.asserts_no_speed, _append("assert gpu_seconds < cpu_seconds")),
        (rules.asserts_no_speed, _append("assert speed['bfloat16'] > 100")),
    ],
)
def test_each_rule_finds_its_fault(rule: rules.Rule, spoil: Any) -> None:
    notebook = copy.deepcopy(read(FOLDER / "02-matrix-product.ipynb"))
    assert list(rule(notebook)) == []
    spoil(notebook)
    assert list(rule(notebook)) != []
