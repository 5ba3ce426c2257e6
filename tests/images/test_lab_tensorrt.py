"""TensorRT in its lab. Without a GPU it can only be looked at: its libraries need a driver to be loaded."""

from __future__ import annotations

import pytest

from .conftest import Start, output

pytestmark = pytest.mark.docker

VERSIONS = """
from importlib.metadata import requires, version
from packaging.requirements import Requirement
wanted = [Requirement(text) for text in requires("torch-tensorrt")]
wrong = [str(item) for item in wanted if not item.marker and not item.specifier.contains(version(item.name))]
print(version("torch-tensorrt").split(".")[:2] == version("torch").split(".")[:2], wrong)
"""
LIBRARIES = """
from importlib.metadata import files
print(any(path.name.startswith("libnvinfer.so") for path in files("tensorrt-cu13-libs")))
"""


def test_torch_tensorrt_has_the_pytorch_and_tensorrt_that_it_was_built_for(start: Start) -> None:
    assert output(start("sleep", "infinity"), "python", "-c", VERSIONS) == "True []\n"


def test_nvidias_libraries_are_there(start: Start) -> None:
    assert output(start("sleep", "infinity"), "python", "-c", LIBRARIES) == "True\n"
