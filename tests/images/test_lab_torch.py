"""PyTorch in its lab: it computes, compiles, and says the truth about the GPU."""

from __future__ import annotations

import pytest

from .conftest import Start, output

pytestmark = pytest.mark.docker

PRODUCT = """
import torch
a, b = torch.randn(300, 200, generator=torch.manual_seed(1)), torch.randn(200, 100)
exact = a.double() @ b.double()
print(torch.cuda.is_available(), bool(((a @ b).double() - exact).abs().max() < 1e-3))
"""
COMPILED = """
import torch
f = torch.compile(lambda x: x.sin() + 1)
x = torch.linspace(0, 1, 1000)
print(bool(((f(x) - (x.double().sin() + 1)).abs() < 1e-6).all()))
"""


def test_a_matrix_product_without_a_gpu(start: Start) -> None:
    assert output(start("sleep", "infinity"), "python", "-W", "ignore", "-c", PRODUCT) == "False True\n"


def test_torch_compile_has_its_compiler(start: Start) -> None:
    assert output(start("sleep", "infinity"), "python", "-W", "ignore", "-c", COMPILED) == "True\n"
