"""A child image reruns the tests of all images below it: what tests/images collects, asked of pytest."""

from __future__ import annotations

import re
import subprocess
import sys

from images.table import read_table
from setup.steps import ROOT


def test_each_test_runs_on_its_image_and_on_all_that_stand_on_it() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/images",
    ]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^tests/images/test_([a-z_]+)\.py::(\w+)\[([a-z-]+)\]$", said, re.M)
    table = read_table()
    names = [image.name for image in table.images]
    runs: dict[tuple[str, str], set[str]] = {}
    for module, test, image in found:
        of = next(name for name in names if f"{module.replace('_', '-')}-".startswith(f"{name}-"))
        runs.setdefault((of, f"{module}.{test}"), set()).add(image)
    children = {
        below.name: {
            image.name
            for image in table.images
            if below.name in {parent.name for parent in table.with_parents([image.name])}
        }
        for below in table.images
    }
    assert children["lab-base"] == {"lab-base", "lab-torch", "lab-tensorrt"}
    assert {module for module, _ in runs} == set(children)  # each image has tests of its own
    assert {test: on for test, on in runs.items() if on != children[test[0]]} == {}
