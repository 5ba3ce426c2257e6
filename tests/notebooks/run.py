"""Run starter notebooks top to bottom, skipping cells by tag alone: `python run.py [--gpu] NOTEBOOK…`

Prints a table: notebook, cells run, cells skipped by tag, seconds, outcome. Without `--gpu` every
cell that needs a GPU is skipped, and none is visible. With `--gpu` there must be one, and no cell is
skipped for the want of it; `--json FILE` then keeps what the notebooks measured. Needs nbclient, and
the notebooks' folder with its package `starter`; the notebooks run in a copy, so nothing is written there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NEEDS = ("gpu", "multi-gpu", "fp8", "compiler", "tensorrt")
"""The tags by which a cell may be skipped: the words that `%%needs` knows."""

MARK = "starter results: "
CELL_LIMIT_SECONDS = 900
"""A cell that hangs is ended. What a notebook may take is another matter, and is judged from its times."""


def machine(folder: Path) -> dict[str, Any]:
    """What the helper package finds here, asked in a process of its own: this one is to hold no GPU."""
    code = (
        "import json, platform, starter, torch; print(json.dumps({'available': sorted(starter.available()),"
        "'gpus': starter.quota().gpus, 'torch': torch.__version__, 'cuda': torch.version.cuda,"
        "'python': platform.python_version()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the helper package can't be imported in {folder}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_notebook(path: Path, runnable: set[str]) -> dict[str, Any]:
    """Run one notebook in its folder; say what ran, what was skipped by which tag, and what it measured."""
    notebook = nbformat.read(path, as_version=4)
    skipped: Counter[str] = Counter()
    kept = []
    for cell in notebook.cells:
        lacking = [tag for tag in cell.metadata.get("tags", ()) if tag in NEEDS and tag not in runnable]
        if lacking:
            skipped[lacking[0]] += 1
        else:
            kept.append(cell)
    ran = sum(cell.cell_type == "code" for cell in kept)
    last = nbformat.v4.new_code_cell(f"import json, starter\nprint({MARK!r} + json.dumps(starter.results))")
    notebook.cells = [*kept, last]
    begin, used = time.monotonic(), _cpu_seconds()
    problem = ""
    try:
        NotebookClient(
            notebook,
            timeout=CELL_LIMIT_SECONDS,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=40"],
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()
    except (CellExecutionError, TimeoutError, RuntimeError) as error:
        problem = str(error)
    texts = list(_texts(notebook))
    aside = [text for stream, text in texts if stream == "stdout" and text.startswith("Skipped:")]
    if aside and not problem:
        problem = f"a cell that was to run was skipped: {aside[0]}"
    return {
        "notebook": path.stem,
        "cells_run": ran,
        "cells_skipped": dict(skipped),
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_seconds": round(_cpu_seconds() - used, 1),
        "problem": problem,
        "warnings": [text for stream, text in texts if stream == "stderr"],
        "results": _results(texts),
    }


def _cpu_seconds() -> float:
    """What processes that were started here and have ended have computed, on all cores together."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _texts(notebook: Any) -> Any:
    """Every (stream, text) that the cells printed."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                yield output.name, output.text


def _results(texts: list[tuple[str, str]]) -> dict[str, Any]:
    """What the notebook recorded, printed by a cell that `run_notebook` put at its end; {} without it."""
    for stream, text in texts:
        if stream == "stdout" and text.startswith(MARK):
            results: dict[str, Any] = json.loads(text.removeprefix(MARK))
            return results
    return {}


def show(outcomes: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'notebook':34} {'run':>4} {'skipped':28} {'seconds':>8}  outcome")
    for one in outcomes:
        skipped = ", ".join(f"{count} {tag}" for tag, count in one["cells_skipped"].items()) or "none"
        outcome = "failed" if one["problem"] else "ok"
        if one["warnings"]:
            outcome += f", {len(one['warnings'])} on stderr"
        print(f"{one['notebook']:34} {one['cells_run']:4} {skipped:28} {one['seconds']:8.1f}  {outcome}")
    for one in outcomes:
        for warning in one["warnings"]:
            print(f"\n{one['notebook']} wrote to stderr:\n{warning}")
        if one["problem"]:
            print(f"\n{one['notebook']} failed:\n{one['problem']}")


def main() -> int:
    """Run the notebooks of the command line; 0 if all of them ran."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpu", action="store_true", help="there must be a GPU; skip no cell for the want of it"
    )
    parser.add_argument("--json", type=Path, help="write outcome, machine and measured results to this file")
    parser.add_argument("notebooks", nargs="+", type=Path)
    options = parser.parse_args()
    if not options.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep: others use these cores, too
    with tempfile.TemporaryDirectory(prefix="starters-") as temporary:
        folder = Path(temporary) / "starters"
        shutil.copytree(options.notebooks[0].resolve().parent, folder)
        here = machine(folder)
        if options.gpu and "gpu" not in here["available"]:
            raise SystemExit("--gpu: PyTorch sees no GPU here, and nothing falls back to the CPU.")
        if options.gpu and "compiler" not in here["available"]:
            raise SystemExit(
                "--gpu: Triton needs a C compiler and Python.h, and one of them is missing here."
            )
        outcomes = []
        for path in options.notebooks:
            outcomes.append(run_notebook(folder / path.name, set(here["available"])))
            print(f"{path.name}: {outcomes[-1]['seconds']} s", file=sys.stderr, flush=True)
    show(outcomes)
    if options.json:
        options.json.write_text(json.dumps({"machine": here, "notebooks": outcomes}, indent=2) + "\n")
    return int(any(one["problem"] for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
