"""What a starter notebook has to fulfil before it is run: one function a rule, giving faults in words."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any

import nbformat

from .run import NEEDS

Notebook = Any
Rule = Callable[[Notebook], Iterator[str]]

GPU_NAMES = {"cuda", "triton", "tl", "torch_tensorrt", "pin_memory", "CUDAGraph"}
CLOCK = re.compile(r"second|time|took|speed|rate|flop|bandwidth|latency|throughput|ladder|p50|p99", re.I)


def tags_of(cell: Any) -> set[str]:
    """A cell's tags."""
    return set(cell.metadata.get("tags", ()))


def code_cells(notebook: Notebook) -> list[Any]:
    """The cells that run, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _python(cell: Any) -> ast.Module:
    """A cell's code without its `%%needs` line; empty for a cell that only writes a file."""
    first, _, rest = cell.source.partition("\n")
    if first.startswith("%%needs"):
        return ast.parse(rest)
    return ast.parse("" if first.startswith("%%") else cell.source)


def well_formed(notebook: Notebook) -> Iterator[str]:
    """nbformat 4.5 with ids of its own choosing, the python3 kernel, and nothing of a run left inside."""
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        yield f"nbformat {notebook.nbformat}.{notebook.nbformat_minor}, not 4.5"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    if notebook.metadata != {"kernelspec": kernel, "language_info": {"name": "python"}}:
        yield f"metadata of a run or of another kernel: {dict(notebook.metadata)}"
    ids = [cell.id for cell in notebook.cells]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    yield from (f"id {one!r} twice" for one in twice)
    yield from (f"id {one!r} says nothing" for one in ids if not re.fullmatch(r"[a-z][a-z0-9-]*", one))
    for cell in code_cells(notebook):
        if cell.outputs or cell.execution_count is not None:
            yield f"{cell.id}: stored with outputs or an execution count"
    try:
        if not twice:  # nbformat would give one of the two another id
            nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"not valid: {error.message}"


def shows_quota_first(notebook: Notebook) -> Iterator[str]:
    """The first cell that runs shows the quota."""
    if "starter.show_quota()" not in code_cells(notebook)[0].source:
        yield "the first code cell doesn't show the quota"


def starts_the_same_everywhere(notebook: Notebook) -> Iterator[str]:
    """`starter` is imported before PyTorch and says what to do without it; all that is random is seeded."""
    first = _python(code_cells(notebook)[0])
    imported = [sorted(_names(node)) for node in first.body if isinstance(node, ast.Import | ast.ImportFrom)]
    before = imported[: imported.index(["starter"])] if ["starter"] in imported else imported
    if ["starter"] not in imported or any("torch" in names for names in before):
        yield "the first code cell imports torch before starter"
    if "torch.manual_seed" not in {_called(node) for node in ast.walk(first)}:
        yield "the first code cell doesn't call torch.manual_seed"
    for cell in code_cells(notebook):
        for source in re.findall(r"default_rng\(\)|Generator\([^)]*\)(?!\.manual_seed\()", cell.source):
            yield f"{cell.id}: {source} without a seed"


def has_exercise(notebook: Notebook) -> Iterator[str]:
    """An exercise to fill in, then its solution: told in a folded paragraph, in cells that are hidden."""
    order = [index for index, cell in enumerate(notebook.cells) if "exercise" in tags_of(cell)]
    solutions = [index for index, cell in enumerate(notebook.cells) if "solution" in tags_of(cell)]
    if not order or not solutions or solutions[0] < order[0]:
        yield "no exercise that is followed by a solution"
        return
    for index in solutions:
        hidden = notebook.cells[index].metadata.get("jupyter", {})
        if hidden != {"source_hidden": True, "outputs_hidden": True}:
            yield f"{notebook.cells[index].id}: the solution isn't hidden"
    between = notebook.cells[order[-1] + 1 : solutions[0]]
    if not any("<details>" in cell.source for cell in between if cell.cell_type == "markdown"):
        yield "the solution isn't told in a folded paragraph"


def needs_are_tagged(notebook: Notebook) -> Iterator[str]:
    """What `%%needs` asks for at run time is what the tags say to the runner."""
    for cell in code_cells(notebook):
        first = cell.source.partition("\n")[0]
        asked = set(first.split()[1:]) if first.startswith("%%needs") else set()
        tagged = tags_of(cell) & set(NEEDS)
        if asked != tagged:
            yield f"{cell.id}: %%needs {sorted(asked)}, tags {sorted(tagged)}"


def gpu_code_is_tagged(notebook: Notebook) -> Iterator[str]:
    """Code that only works on a GPU carries the tag; nothing is left to `is_available` or to an `except`."""
    for cell in code_cells(notebook):
        for node in ast.walk(_python(cell)):
            named = _names(node) & GPU_NAMES
            if named and "gpu" not in tags_of(cell):
                yield f"{cell.id}: {sorted(named)} without the tag gpu"
            if "is_available" in _names(node):
                yield f"{cell.id}: asks is_available instead of carrying a tag"
            if isinstance(node, ast.ExceptHandler) and _catches_too_much(node):
                yield f"{cell.id}: catches everything"


def _names(node: ast.AST) -> set[str]:
    """The names that a node uses: variables, attributes, imports, keywords, device strings."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
            return {name}
        case ast.Import(names=names):
            return {alias.name.partition(".")[0] for alias in names}
        case ast.ImportFrom(module=str(module)):
            return set(module.split("."))
        case ast.Constant(value=str(text)) if re.fullmatch(r"(cuda|nccl)(:\d+)?", text):
            return {"cuda"}
    return set()


def _catches_too_much(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or bool(_names(handler.type) & {"Exception", "BaseException", "RuntimeError"})


def checks_and_draws_everywhere(notebook: Notebook) -> Iterator[str]:
    """Without a GPU, too, there are a check against float64 and a picture outside of the solution."""
    plain = [cell for cell in code_cells(notebook) if not tags_of(cell) & {*NEEDS, "solution"}]
    used = {(_called(node)) for cell in plain for node in ast.walk(_python(cell))}
    if not used & {"starter.check", "starter.check_product"}:
        yield "no check against float64 that runs everywhere"
    if not used & {"starter.bars", "starter.curves", "starter.timeline", "plt.show"}:
        yield "no picture that is drawn everywhere"


def _called(node: ast.AST) -> str:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
            return f"{owner}.{name}"
    return ""


def asserts_no_speed(notebook: Notebook) -> Iterator[str]:
    """Times are shown, never asserted: machines and neighbours differ."""
    for cell in code_cells(notebook):
        for node in ast.walk(_python(cell)):
            if isinstance(node, ast.Assert):
                used = {name for part in ast.walk(node.test) for name in _names(part)}
                yield from (
                    f"{cell.id}: an assertion about {name}" for name in sorted(used) if CLOCK.search(name)
                )


RULES: tuple[Rule, ...] = (
    well_formed,
    shows_quota_first,
    starts_the_same_everywhere,
    has_exercise,
    needs_are_tagged,
    gpu_code_is_tagged,
    checks_and_draws_everywhere,
    asserts_no_speed,
)
