"""The starters run top to bottom in each lab with PyTorch, as their user, without a network, on two cores."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.labs import offspring

from . import rules
from .test_starters import FOLDER, NOTEBOOKS, read

pytestmark = pytest.mark.docker

HERE = Path(__file__).parent
LABS = [image.reference for image in offspring("lab-torch")]
WITHOUT_PYTORCH = offspring("lab-base")[0].reference
HAS = {"compiler"}
"""Of what a cell may need, what each of these has without a GPU."""
LIMIT_SECONDS = 180
"""What a student may have to wait for one notebook, on the smallest share there is."""


def in_container(*command: str, mount: Path, image: str = LABS[0]) -> subprocess.CompletedProcess[str]:
    """Run Python in the lab image; `mount` is /out there. The starters and these tests are read-only."""
    engine = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
    if engine.returncode:
        pytest.skip(f"{image} is not built, or no Docker Engine answers: make images")
    mounts = [f"{FOLDER}:/starters:ro", f"{HERE}:/tests:ro", f"{mount}:/out"]
    limits = ["--network", "none", "--cpus", "2", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    volumes = [word for pair in mounts for word in ("--volume", pair)]
    settings = ["--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "PYTHONPATH=/starters", "--workdir", "/tmp"]
    return subprocess.run(
        ["docker", "run", "--rm", *limits, *volumes, *settings, "--entrypoint", "python", image, *command],
        capture_output=True,
        text=True,
        timeout=3600,
    )


@pytest.fixture(scope="module", params=LABS)
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, dict[str, Any]]:
    """All starters, run one after the other in one container: name → what `run.py` says about it."""
    out = tmp_path_factory.mktemp("starters")
    out.chmod(0o777)
    paths = [f"/starters/{path.name}" for path in NOTEBOOKS]
    command = ["/tests/run.py", "--json", "/out/outcomes.json", *paths]
    done = in_container(*command, mount=out, image=request.param)
    print(done.stdout, done.stderr)
    report = json.loads((out / "outcomes.json").read_text())
    return {one["notebook"]: one for one in report["notebooks"]}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_starter_runs_whole_without_a_gpu(path: Path, outcomes: dict[str, dict[str, Any]]) -> None:
    cells = rules.code_cells(read(path))
    for_everybody = [cell for cell in cells if not rules.tags_of(cell) & (set(rules.NEEDS) - HAS)]
    one = outcomes[path.stem]
    assert (one["problem"], one["warnings"]) == ("", [])
    assert one["cells_run"] == len(for_everybody)
    assert sum(one["cells_skipped"].values()) == len(cells) - len(for_everybody)
    # A machine that is busy with other things may need longer: then what it computed itself counts.
    assert min(one["seconds"], one["cpu_seconds"]) < LIMIT_SECONDS
    assert one["cpu_seconds"] > 1  # importing PyTorch alone takes that: the kernel's time is in it


def test_the_helper_package(tmp_path: Path) -> None:
    done = in_container("-W", "error", "/tests/helper_checks.py", mount=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "OK"


def test_a_starter_says_what_to_do_where_pytorch_is_missing(tmp_path: Path) -> None:
    first = rules.code_cells(read(NOTEBOOKS[0]))[0].source  # the others begin the same way: a rule of theirs
    done = in_container("-c", first, mount=tmp_path, image=WITHOUT_PYTORCH)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: These notebooks need PyTorch, and this image has none: File → Hub Control "
        "Panel → Stop My Server, then start it with the image lab-torch."
    )


def _notebook(folder: Path, *cells: tuple[str, list[str]]) -> str:
    """Write a notebook with these (code, tags); its path in the container."""
    made = nbformat.v4.new_notebook()
    for code, tags in cells:
        made.cells.append(nbformat.v4.new_code_cell(code, metadata={"tags": tags}))
    nbformat.write(made, folder / "made.ipynb")
    folder.chmod(0o755)
    return "/out/made.ipynb"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("import os; os._exit(1)", "Kernel died"),
        ("import starter\nget_ipython().run_cell_magic('needs', 'gpu', '1')", "skipped"),
    ],
)
def test_the_runner_reports_what_fails(code: str, says: str, tmp_path: Path) -> None:
    path = _notebook(tmp_path, ("x = 1", []), (code, []))
    done = in_container("/tests/run.py", path, mount=tmp_path)
    assert done.returncode == 1
    assert says in done.stdout
    assert "ok" not in done.stdout.splitlines()[1].split()


def test_the_runner_skips_by_tag_and_counts(tmp_path: Path) -> None:
    path = _notebook(
        tmp_path, ("x = 1", []), ("1 / 0", ["gpu"]), ("1 / 0", ["tensorrt"]), ("x += 1", ["mine"])
    )
    done = in_container("/tests/run.py", path, mount=tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[1].split()[:6] == ["made", "2", "1", "gpu,", "1", "tensorrt"]


def test_a_gpu_run_without_a_gpu_is_refused(tmp_path: Path) -> None:
    path = _notebook(tmp_path, ("x = 1", []))
    done = in_container("/tests/run.py", "--gpu", path, mount=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "--gpu: PyTorch sees no GPU here, and nothing falls back to the CPU.\n"
